import pytest

from extproc.address import Address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9002", Address("127.0.0.1", 9002)),
        ("router.local:0", Address("router.local", 0)),
        ("[::1]:9002", Address("::1", 9002)),
        ("unix:/run/a.sock", Address(path="/run/a.sock")),
        ("unix:a.sock", Address(path="a.sock")),
    ],
)
def test_addresses_are_read_and_written(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text


def test_grpcs_form_of_a_unix_socket_is_read() -> None:
    assert Address.parse("unix:///run/a.sock") == Address(path="/run/a.sock")


@pytest.mark.parametrize(
    "text",
    [
        *("", "9002", "host", "host:", "host:port", "host:65536", ":9002", "::1:9002"),
        *("a b:1", "[::1]", "[]:1", "host:\u0661", "unix:", "unix:/", "unix:///"),
    ],
)
def test_text_that_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT or unix:PATH"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("first", "fourth"),
    [
        ("0.0.0.0:9002", "0.0.0.0:9005"),
        ("[::1]:9002", "[::1]:9005"),
        ("unix:/run/grpc.sock", "unix:/run/grpc.sock.3"),
    ],
)
def test_addresses_follow_each_other(first: str, fourth: str) -> None:
    assert str(Address.parse(first).nth(3)) == fourth


def test_the_bound_port_takes_the_place_of_zero() -> None:
    assert str(Address.parse("[::]:0").with_port(5)) == "[::]:5"
    assert str(Address.parse("unix:a").with_port(0)) == "unix:a"
