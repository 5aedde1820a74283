"""How calls fail and end, and what an h2 client then receives."""

import h2.errors
import pytest

from extproc.rpc.call import RpcError, StatusCode
from extproc.rpc.frames import ErrorCode
from extproc.rpc.limits import Limits

from .peers import H2Peer, framed

# ---- errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/test.Test/Echo", {":method": "GET"}, {":status": "405", "allow": "POST"}),
        ("/test.Test/Echo", {"content-type": "text/plain"}, {":status": "415"}),
        ("/test.Test/Echo", {"content-type": None}, {":status": "415"}),
        (
            "/test.Test/Echo",
            {"content-type": "application/grpc-web"},
            {":status": "415"},
        ),
        ("/other.Service/Method", {}, {":status": "200", "grpc-status": "12"}),
        (
            "/test.Test/Echo",
            {"grpc-encoding": "gzip"},
            {"grpc-status": "12", "grpc-accept-encoding": "identity"},
        ),
        ("/test.Test/Echo", {"grpc-timeout": "soon"}, {"grpc-status": "3"}),
        ("/test.Test/DenyEarly", {}, {"grpc-status": "14", "grpc-message": "not now"}),
        ("/test.Test/FailEarly", {}, {"grpc-status": "13"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_request_that_cannot_be_served_is_answered_with_headers_only(
    path, headers, expected
):
    peer = H2Peer()
    stream = peer.request(path, headers=headers)
    response = peer.response(stream)
    assert expected.items() <= response.headers.items()
    assert response.ended
    assert not response.data
    assert peer.machine.calls == []
    peer.client.send_data(stream, framed(b"already on its way"))
    peer.exchange()
    assert peer.response(stream).reset == h2.errors.ErrorCodes.NO_ERROR
    assert peer.response(peer.request("/test.Test/Once", b"x")).status == 0


@pytest.mark.parametrize("kind", ["", "+proto", ";charset=utf-8"])
def test_grpc_content_types(kind):
    peer = H2Peer()
    headers = {"content-type": "application/grpc" + kind, "grpc-encoding": "identity"}
    stream = peer.request("/test.Test/Once", b"x", headers=headers)
    assert peer.response(stream).status == 0


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/test.Test/FailEarly", "open /test.Test/FailEarly"),
        ("/test.Test/Fail", "receive"),
        ("/test.Test/FailLate", "half_closed"),
    ],
)
def test_a_bug_in_a_call_is_reported_once_and_ends_only_its_stream(path, where):
    peer = H2Peer()
    other = peer.request("/test.Test/Echo", b"before")
    messages = (b"x",) if path.endswith("Fail") else ()
    stream = peer.request(path, *messages, ends=True)
    assert peer.response(stream).status == 13
    assert "bug" not in str(peer.response(stream).headers)
    ((reported, error),) = peer.machine.reports
    assert reported == where
    assert isinstance(error, ZeroDivisionError)
    for call in peer.machine.calls[1:]:
        assert call.closed_with == [True]
    peer.client.send_data(other, framed(b"after"), end_stream=True)
    peer.exchange()
    assert peer.response(other).messages == [b"before", b"after"]


def test_a_bug_in_closed_is_reported_and_changes_nothing():
    peer = H2Peer()
    stream = peer.request("/test.Test/FailLater", ends=True)
    assert peer.response(stream).status == 0
    assert [where for where, _ in peer.machine.reports] == ["closed"]


def test_a_call_may_name_its_status():
    peer = H2Peer()
    stream = peer.request("/test.Test/Deny", b"x")
    response = peer.response(stream)
    assert response.status == 5
    assert response.headers["grpc-message"] == "no such thing: 100%25 gone %C3%A9"
    assert peer.machine.reports == []
    assert peer.machine.calls[0].closed_with == [True]


def test_an_error_after_replies_is_in_the_trailers():
    peer = H2Peer()
    stream = peer.request("/test.Test/Echo", b"x")
    peer.client.send_data(stream, b"\1" + framed(b"compressed")[1:])
    peer.exchange()
    assert peer.response(stream).messages == [b"x"]
    assert peer.response(stream).trailers["grpc-status"] == "13"
    assert "compressed" in peer.response(stream).trailers["grpc-message"]


def test_a_request_that_ends_inside_a_message_is_an_error():
    peer = H2Peer()
    stream = peer.request("/test.Test/Echo")
    peer.client.send_data(stream, framed(b"whole", b"torn")[:-1], end_stream=True)
    peer.exchange()
    assert peer.response(stream).messages == [b"whole"]
    assert peer.response(stream).status == 13


@pytest.mark.parametrize(("announced", "reset"), [(6, None), (7, 1), (5, 1)])
def test_content_length_must_add_up(announced, reset):
    peer = H2Peer()
    headers: dict[str, str | None] = {"content-length": str(announced)}
    stream = peer.client.get_next_available_stream_id()
    peer.client.config.validate_outbound_headers = False
    peer.request("/test.Test/Silent", headers=headers)
    peer.client.send_data(stream, framed(b"x"), end_stream=True)
    peer.exchange()
    assert peer.response(stream).reset == reset


# ---- ends --------------------------------------------------------------------------


def test_a_reset_cancels_the_call():
    peer = H2Peer()
    stream = peer.request("/test.Test/Echo", b"x")
    peer.client.reset_stream(stream)
    peer.exchange()
    assert peer.machine.calls[0].closed_with == [True]
    peer.machine.calls[0].send((b"too late",))
    assert peer.machine.connection.take() == b""


def test_a_lost_connection_cancels_every_call_once():
    peer = H2Peer()
    for path in ("Echo", "Once", "Silent"):
        peer.request(f"/test.Test/{path}", b"x")
    peer.machine.connection.lost()
    peer.machine.connection.lost()
    closed = [call.closed_with for call in peer.machine.calls]
    assert closed == [[True], [False], [True]]
    assert peer.machine.connection.finished


def test_a_call_may_send_later():
    peer = H2Peer()
    stream = peer.request("/test.Test/Silent", b"x")
    (call,) = peer.machine.calls
    call.send((b"later",))
    assert peer.machine.wakes == 1
    peer.exchange()
    call.send((b"and last",), end=True)
    call.send((b"after the end",))
    assert peer.machine.wakes == 2
    peer.exchange()
    assert peer.response(stream).messages == [b"later", b"and last"]
    assert peer.response(stream).status == 0
    assert call.closed_with == [False]


def test_a_call_may_fail_later():
    peer = H2Peer()
    stream = peer.request("/test.Test/Silent", b"x")
    (call,) = peer.machine.calls
    call.send((b"well",), RpcError(StatusCode.UNAVAILABLE, "not now"))
    call.send((b"after the end",), RpcError(StatusCode.INTERNAL, "again"))
    assert peer.machine.wakes == 1
    peer.exchange()
    assert peer.response(stream).messages == [b"well"]
    assert peer.response(stream).status == 14
    assert peer.response(stream).trailers["grpc-message"] == "not now"
    assert call.closed_with == [True]


def test_a_call_may_send_before_it_is_open():
    peer = H2Peer()
    stream = peer.request("/test.Test/SendEarly")
    assert peer.response(stream).messages == [b"early"]
    assert peer.machine.calls[0].closed_with == [False]
    assert peer.machine.wakes == 0, "what comes inside a read goes out with it"


def test_a_deadline_ends_the_call():
    peer = H2Peer()
    connection = peer.machine.connection
    late = peer.request("/test.Test/Echo", b"x", headers={"grpc-timeout": "2S"})
    early = peer.request("/test.Test/Echo", b"y", headers={"grpc-timeout": "500m"})
    done = peer.request("/test.Test/Once", b"z", headers={"grpc-timeout": "1m"})
    assert connection.next_deadline == pytest.approx(100.5)
    connection.expire(100.4)
    connection.expire(100.5)
    peer.exchange()
    assert peer.response(early).status == 4
    assert peer.response(done).status == 0
    assert connection.next_deadline == pytest.approx(102.0)
    peer.client.end_stream(late)
    peer.exchange()
    assert peer.response(late).status == 0
    assert connection.next_deadline is None


def test_deadlines_of_calls_that_ended_do_not_pile_up():
    peer = H2Peer()
    for _ in range(300):
        peer.request("/test.Test/Once", b"x", ends=True, headers={"grpc-timeout": "1H"})
    assert len(peer.machine.connection._calls._deadlines) < 100


def test_resets_that_are_remembered_are_bounded():
    peer = H2Peer(Limits(max_concurrent_streams=10))
    calls = peer.machine.connection._calls
    for number in range(1, 201, 2):
        calls.reject(number, ErrorCode.NO_ERROR)
    assert len(calls._reset_ids) == 20
    assert calls.was_reset(199)
    assert not calls.was_reset(1)
