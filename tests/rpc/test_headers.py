"""Header blocks, compared with the hpack package's encoder and decoder."""

import contextlib
import urllib.parse

import pytest
from hpack import Decoder, Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.rpc.call import StatusCode
from extproc.rpc.frames import ConnectionFault, ErrorCode
from extproc.rpc.headers import (
    MAX_REMEMBERED,
    HeaderReader,
    Malformed,
    checked,
    timeout_s,
)
from extproc.rpc.responses import MAX_GRPC_MESSAGE_BYTES, literal, trailers

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a.B/C"),
    (":authority", "router"),
    ("content-type", "application/grpc"),
]
BYTES = [(name.encode(), value.encode()) for name, value in REQUEST]


def test_the_same_block_is_decoded_once_while_the_table_stays():
    encoder, reader = Encoder(), HeaderReader(16_384)
    first = reader.read(encoder.encode(REQUEST))
    block = encoder.encode(REQUEST)  # now contains only indices
    again = reader.read(block)
    assert reader.read(block) is again
    assert again == first
    encoder_only_adds = encoder.encode([("x-new", "1")])
    reader.read_trailers(encoder_only_adds)
    with_other_indices = encoder.encode(REQUEST)
    assert with_other_indices != block
    assert reader.read(with_other_indices) == first


def test_a_block_means_something_else_once_the_table_has_changed():
    """The same bytes now refer to another header, because the table has changed."""
    reader = HeaderReader(16_384)
    encoder = Encoder()
    reader.read(encoder.encode([*REQUEST, ("x-a", "1")]))
    # The newest entry of the dynamic table is index 62.
    block = encoder.encode(REQUEST) + b"\xbe"
    assert reader.read(block).headers["x-a"] == "1"
    reader.read_trailers(encoder.encode([("x-a", "2")]))
    block_now = encoder.encode(REQUEST) + b"\xbe"
    assert reader.read(block_now).headers["x-a"] == "2"
    reader.read_trailers(b"\x20")  # the peer shrinks the table to nothing
    with pytest.raises(ConnectionFault):
        reader.read(block_now)


VALUES = st.sampled_from(["", "a", "bb", "c" * 100, "d" * 3000])
NAMES = st.sampled_from(["x-a", "x-b", "user-agent", "grpc-trace", "x" * 40])
FIELD_KINDS = st.sampled_from([HeaderTuple, NeverIndexedHeaderTuple])
LISTS = st.lists(st.tuples(FIELD_KINDS, NAMES, VALUES), max_size=4)
SIZES = st.none() | st.sampled_from([0, 50, 200, 4096])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(LISTS, SIZES, st.booleans()), max_size=8))
def test_any_sequence_of_blocks_reads_as_the_plain_decoder_reads_it(sequence):
    encoder, decoder, reader = Encoder(), Decoder(), HeaderReader(65_536)
    for fields, table_bytes, huffman in sequence:
        if table_bytes is not None:
            encoder.header_table_size = table_bytes
        block = encoder.encode(
            [*REQUEST, *(kind(name, value) for kind, name, value in fields)],
            huffman=huffman,
        )
        expected = checked(decoder.decode(block, raw=True), 65_536)
        assert reader.read(block) == expected


def test_what_is_remembered_is_bounded():
    encoder, reader = Encoder(), HeaderReader(16_384)
    reader.read(encoder.encode(REQUEST))
    for n in range(3 * MAX_REMEMBERED):
        field = NeverIndexedHeaderTuple("x-request-id", str(n))
        assert reader.read(encoder.encode([*REQUEST, field])).headers[
            "x-request-id"
        ] == str(n)
    assert len(reader._remembered) <= MAX_REMEMBERED


def test_a_malformed_block_stays_malformed():
    reader = HeaderReader(16_384)
    for _ in range(3):
        with pytest.raises(Malformed):
            reader.read(b"\x83")


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xff\xff\xff\xff\xff\x0f",  # far outside the table
        b"\x40",  # literal without a name
        b"\x00\x05ab",  # truncated name
        b"\x00\x01a\x85\xff\xff\xff\xff\xff",  # EOS inside a Huffman string
        b"\x3f\xe2\x1f",  # table size above the limit
        b"\x83\x20",  # table size update after a header
        b"\xff",  # truncated integer
        b"\x00\x01a",  # missing value
    ],
    ids=lambda block: block.hex(),
)
def test_a_block_that_does_not_decode_ends_the_connection(block):
    with pytest.raises(ConnectionFault) as raised:
        HeaderReader(16_384).read(block)
    assert raised.value.code is ErrorCode.COMPRESSION_ERROR


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_head_or_one_of_two_errors(block):
    reader = HeaderReader(16_384)
    for read in (reader.read, reader.read_trailers):
        with contextlib.suppress(Malformed, ConnectionFault):
            read(block)


def test_the_hard_limit_counts_what_is_decoded():
    """A small block repeats references to a large entry ("HPACK bomb")."""
    reader = HeaderReader(16_384)
    encoder = Encoder()
    encoder.encode([("x-a", "v" * 3000)])
    with pytest.raises(ConnectionFault) as raised:
        reader.read(b"\x40\x01a\x7f\xb9\x16" + b"v" * 3000 + b"\xbe" * 1000)
    assert raised.value.code is ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("drop", b":method"),
        ("drop", b":scheme"),
        ("drop", b":path"),
        ("add", (b":path", b"/again")),
        ("add", (b":status", b"200")),
        ("add", (b":protocol", b"websocket")),
        ("late", (b":authority", b"router")),
        ("set", (b":path", b"")),
        ("set", (b":path", b"/a\nb")),
        ("add", (b"X-Upper", b"1")),
        ("add", (b"x space", b"1")),
        ("add", (b"", b"1")),
        ("add", (b"x-a", b"line\nbreak")),
        ("add", (b"x-a", b"return\r")),
        ("add", (b"x-a", b"\0")),
        ("add", (b"x-a", b" leading")),
        ("add", (b"x-a", b"trailing\t")),
        ("add", (b"connection", b"close")),
        ("add", (b"transfer-encoding", b"chunked")),
        ("add", (b"keep-alive", b"1")),
        ("add", (b"upgrade", b"h2c")),
        ("add", (b"te", b"gzip")),
        ("add", (b"content-length", b"-1")),
        ("add", (b"content-length", b"5,5")),
        ("add", (b"content-length", b"")),
    ],
    ids=str,
)
def test_malformed_headers(change, value):
    match change:
        case "drop":
            fields = [field for field in BYTES if field[0] != value]
        case "set":
            fields = [field if field[0] != value[0] else value for field in BYTES]
        case "late":
            fields = [field for field in BYTES if field[0] != value[0]] + [value]
        case _:
            at = 4 if value[0].startswith(b":") else 5
            fields = [*BYTES[:at], value, *BYTES[at:]]
    with pytest.raises(Malformed):
        checked(fields, 16_384)


def test_repeated_headers_are_joined():
    head = checked([*BYTES, (b"x-a", b"1"), (b"x-a", b"2")], 16_384)
    assert head.headers["x-a"] == "1,2"
    with pytest.raises(TypeError):
        head.headers["x-a"] = "3"  # type: ignore[index]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"250m", 0.25),
        (b"5u", 5e-6),
        (b"99999999n", 0.099999999),
        (b"0S", 0.0),
        (b"123456789S", None),
        (b"1", None),
        (b"S", None),
        (b"1s", None),
        (b"-1S", None),
        (b"1.5S", None),
        ("١S".encode(), None),
        (b"", None),
    ],
)
def test_timeouts(value, seconds):
    assert timeout_s(value) == pytest.approx(seconds)


@pytest.mark.parametrize("name_bytes", [0, 1, 126, 127, 300])
@pytest.mark.parametrize("value_bytes", [0, 126, 127, 128, 254, 255, 16_510, 20_000])
def test_our_literals_read_back(name_bytes, value_bytes):
    name, value = b"n" * name_bytes, b"v" * value_bytes
    decoder = Decoder(max_header_list_size=65_536)
    assert list(decoder.decode(literal(name, value), raw=True)) == [(name, value)]


def test_a_status_message_is_cut_between_characters():
    block = trailers(StatusCode.INTERNAL, "é" * 5_000)
    (status, message) = Decoder().decode(block)
    name, code = status
    assert (str(name), str(code)) == ("grpc-status", "13")
    assert len(message[1]) <= MAX_GRPC_MESSAGE_BYTES
    assert set(urllib.parse.unquote(message[1], errors="strict")) == {"é"}
