"""The machine in memory, against python-hyper/h2 as the client."""

import h2.errors
import pytest
from h2.events import (
    ConnectionTerminated,
    PingAckReceived,
    SettingsAcknowledged,
    WindowUpdated,
)
from h2.settings import SettingCodes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from extproc.server.limits import Limits

from .peers import HEADERS, H2Peer, framed

KIB = 1024


def test_messages_are_answered_in_order_and_the_end_is_ok():
    peer = H2Peer()
    stream = peer.request("/test.Test/Echo", b"one", b"", b"three", ends=True)
    response = peer.response(stream)
    assert response.headers == {":status": "200", "content-type": "application/grpc"}
    assert response.messages == [b"one", b"", b"three"]
    assert response.trailers == {"grpc-status": "0"}
    assert response.ended
    (call,) = peer.machine.calls
    assert call.received == [b"one", b"", b"three"]
    assert call.closed_with == [False]
    assert peer.has(SettingsAcknowledged)


def test_a_call_sees_path_and_headers():
    peer = H2Peer()
    peer.request("/test.Test/Echo", headers={"x-a": "1", "user-agent": "h2"})
    (call,) = peer.machine.calls
    assert call.path == "/test.Test/Echo"
    assert call.headers == {
        "te": "trailers",
        "content-type": "application/grpc",
        "x-a": "1",
        "user-agent": "h2",
    }


def test_the_server_may_end_first_and_the_stream_lingers_until_the_client_does():
    peer = H2Peer()
    stream = peer.request("/test.Test/Once", b"question")
    assert peer.response(stream).messages == [b"question"]
    assert peer.response(stream).status == 0
    assert peer.response(stream).reset is None
    assert peer.machine.calls[0].closed_with == [False]
    assert peer.machine.connection.open_calls == 0
    peer.client.end_stream(stream)
    peer.exchange()
    assert peer.machine.calls[0].closed_with == [False]


def test_a_client_that_sends_on_after_the_answer_is_asked_to_stop():
    peer = H2Peer()
    stream = peer.request("/test.Test/Once", b"question")
    peer.client.send_data(stream, framed(b"more"))
    peer.exchange()
    assert peer.response(stream).reset == h2.errors.ErrorCodes.NO_ERROR
    assert peer.machine.calls[0].received == [b"question"]


def test_of_many_lingering_streams_the_oldest_are_reset():
    peer = H2Peer(Limits(max_lingering_streams=2, max_concurrent_streams=4))
    streams = [peer.request("/test.Test/Once", b"x") for _ in range(8)]
    resets = [peer.response(stream).reset for stream in streams]
    assert resets == [h2.errors.ErrorCodes.NO_ERROR] * 6 + [None] * 2


def test_half_close_is_answered():
    peer = H2Peer()
    stream = peer.request("/test.Test/Silent", b"a", b"b")
    assert peer.response(stream).headers == {}
    peer.client.end_stream(stream)
    peer.exchange()
    assert peer.response(stream).messages == [b"2"]
    assert peer.response(stream).status == 0


def test_trailers_end_a_request():
    peer = H2Peer()
    stream = peer.request("/test.Test/Silent", b"a")
    peer.client.send_headers(stream, [("x-checksum", "1")], end_stream=True)
    peer.exchange()
    assert peer.response(stream).messages == [b"1"]


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 7, 19, 20])
def test_messages_are_put_together_from_pieces(cut):
    peer = H2Peer()
    stream = peer.request("/test.Test/Echo")
    octets = framed(b"first", b"", b"second message")
    for at in range(0, len(octets), cut):
        peer.client.send_data(stream, octets[at : at + cut])
        peer.exchange()
    peer.client.end_stream(stream)
    peer.exchange()
    assert peer.machine.calls[0].received == [b"first", b"", b"second message"]
    assert peer.response(stream).status == 0


def test_a_message_in_very_many_pieces():
    peer = H2Peer()
    body = bytes(range(250)) * 8
    stream = peer.request("/test.Test/Silent")
    for octet in framed(body):
        peer.client.send_data(stream, bytes((octet,)))
    peer.client.end_stream(stream)
    peer.exchange()
    assert peer.machine.calls[0].received == [body]
    assert peer.response(stream).status == 0


def test_what_follows_the_last_message_in_its_frame_is_dropped():
    peer = H2Peer()
    stream = peer.request("/test.Test/Once", b"last", b"", b"dropped", ends=True)
    assert peer.machine.calls[0].received == [b"last"]
    assert peer.response(stream).messages == [b"last"]
    other = peer.request("/test.Test/Once", b"", b"dropped")
    assert peer.machine.calls[1].received == [b""]
    assert peer.response(other).status == 0


def test_a_large_message_of_many_frames():
    peer = H2Peer(settings={SettingCodes.MAX_FRAME_SIZE: 2**14})
    body = bytes(range(256)) * 2000
    stream = peer.request("/test.Test/Echo")
    octets = framed(body)
    for at in range(0, len(octets), 16_000):
        peer.client.send_data(stream, octets[at : at + 16_000])
    peer.exchange()
    assert peer.machine.calls[0].received == [body]
    assert peer.response(stream).messages == [body]


def test_padding_is_not_content_but_counts_as_received():
    peer = H2Peer()
    stream = peer.request("/test.Test/Echo")
    octets = framed(b"padded")
    peer.client.send_data(stream, octets[:3], pad_length=200)
    peer.client.send_data(stream, octets[3:], pad_length=0)
    peer.client.send_data(stream, b"", pad_length=7)
    peer.client.send_data(stream, framed(b"again"), pad_length=1, end_stream=True)
    peer.exchange()
    assert peer.response(stream).messages == [b"padded", b"again"]
    assert peer.response(stream).status == 0


def test_priorities_are_ignored():
    peer = H2Peer()
    stream = peer.client.get_next_available_stream_id()
    peer.client.prioritize(stream + 10, weight=5)
    peer.client.send_headers(
        stream,
        list((HEADERS | {":path": "/test.Test/Once"}).items()),
        priority_weight=12,
        priority_depends_on=0,
        priority_exclusive=True,
    )
    peer.client.send_data(stream, framed(b"x"), end_stream=True)
    peer.exchange()
    assert peer.response(stream).status == 0


def test_ping_is_answered():
    peer = H2Peer()
    peer.client.ping(b"12345678")
    peer.exchange()
    assert [event.ping_data for event in peer.has(PingAckReceived)] == [b"12345678"]


def test_many_streams_at_once_do_not_mix():
    peer = H2Peer()
    streams = [peer.request("/test.Test/Echo", b"%d a" % n) for n in range(50)]
    for n, stream in enumerate(reversed(streams)):
        peer.client.send_data(stream, framed(b"%d b" % n), end_stream=n % 2 == 0)
    peer.exchange()
    for n, stream in enumerate(streams):
        assert peer.response(stream).messages == [b"%d a" % n, b"%d b" % (49 - n)]


# ---- flow control -----------------------------------------------------------------


def test_replies_wait_for_the_streams_window():
    peer = H2Peer(acknowledge=False, settings={SettingCodes.INITIAL_WINDOW_SIZE: 1_000})
    body = b"0123456789" * 500
    stream = peer.request("/test.Test/Once", body, ends=True)
    response = peer.response(stream)
    assert len(response.data) == 1_000
    assert not response.ended
    for _ in range(4):
        peer.client.acknowledge_received_data(1_000, stream)
        peer.exchange()
    assert len(response.data) == 5_000
    peer.client.increment_flow_control_window(5, stream)
    peer.exchange()
    assert response.messages == [body]
    assert response.status == 0


def test_replies_wait_for_the_connections_window():
    peer = H2Peer(
        acknowledge=False, settings={SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20}
    )
    bodies = [bytes((n,)) * 40_000 for n in range(3)]
    streams = [peer.request("/test.Test/Once", body, ends=True) for body in bodies]
    assert sum(len(peer.response(stream).data) for stream in streams) == 65_535
    peer.client.increment_flow_control_window(1 << 20)
    peer.exchange()
    for stream, body in zip(streams, bodies, strict=True):
        assert peer.response(stream).messages == [body]
        assert peer.response(stream).status == 0


def test_later_replies_keep_behind_those_that_wait():
    peer = H2Peer(acknowledge=False, settings={SettingCodes.INITIAL_WINDOW_SIZE: 100})
    stream = peer.request("/test.Test/Echo", b"a" * 200)
    for message in (b"b", b"c" * 300, b"d"):
        peer.client.send_data(stream, framed(message))
        peer.exchange()
    peer.client.increment_flow_control_window(10_000, stream)
    peer.exchange()
    expected = [b"a" * 200, b"b", b"c" * 300, b"d"]
    assert peer.response(stream).messages == expected


def test_a_changed_initial_window_applies_to_open_streams():
    peer = H2Peer(acknowledge=False, settings={SettingCodes.INITIAL_WINDOW_SIZE: 100})
    stream = peer.request("/test.Test/Once", b"x" * 500, ends=True)
    assert len(peer.response(stream).data) == 100
    peer.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 50})
    peer.exchange()
    peer.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 200})
    peer.exchange()
    assert len(peer.response(stream).data) == 200
    peer.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 5_000})
    peer.exchange()
    assert peer.response(stream).messages == [b"x" * 500]
    assert peer.response(stream).ended


def test_frames_keep_to_the_peers_maximum():
    peer = H2Peer(settings={SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    stream = peer.request("/test.Test/Echo", b"y" * 50_000)
    assert peer.response(stream).messages == [b"y" * 50_000]  # h2 checks each frame


def test_an_error_overtakes_what_is_queued():
    peer = H2Peer(acknowledge=False, settings={SettingCodes.INITIAL_WINDOW_SIZE: 100})
    stream = peer.request("/test.Test/Echo", b"a" * 200)
    peer.machine.connection.abort("stopping")
    peer.exchange()
    assert len(peer.response(stream).data) == 100
    assert peer.response(stream).status == 14


def test_credit_is_returned_in_large_pieces():
    limits = Limits(
        stream_window_bytes=64 * KIB,
        connection_window_bytes=128 * KIB,
        max_message_bytes=2 * KIB * KIB,
    )
    peer = H2Peer(limits)
    body = b"z" * (KIB * KIB)
    octets = framed(body)
    stream = peer.request("/test.Test/Silent")
    at = 0
    while at < len(octets):
        room = min(peer.client.local_flow_control_window(stream), 10_000)
        assert room > 0, "the server must return credit before the window is used up"
        peer.client.send_data(stream, octets[at : at + room])
        at += room
        peer.exchange()
    assert peer.machine.calls[0].received == [body]
    updates = [event.stream_id for event in peer.has(WindowUpdated)]
    # One returns at least half a window, and at the very start 64 KiB are granted.
    assert updates.count(stream) <= len(octets) / (32 * KIB)
    assert 10 < updates.count(0) <= len(octets) / (64 * KIB) + 1


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["open", "send", "send", "send", "end", "reset", "window", "ping"]),
        st.integers(0, 5),
        st.sampled_from([0, 1, 30, 300, 5_000, 20_000]),
    ),
    max_size=30,
)  # fmt: skip


@example([("open", 0, 0), ("send", 0, 10_000)], 10, True)  # 2,000 WINDOW_UPDATEs
@settings(deadline=None)
@given(ACTIONS, st.sampled_from([0, 10, 1_000, 65_535]), st.booleans())
def test_any_correct_conversation_is_answered_correctly(actions, window, acknowledge):
    """h2 raises on what breaks its rules; nothing may be lost, mixed or reordered."""
    peer = H2Peer(
        acknowledge=acknowledge, settings={SettingCodes.INITIAL_WINDOW_SIZE: window}
    )
    sent: dict[int, list[bytes]] = {}
    open_streams: list[int] = []
    reset: set[int] = set()
    for kind, which, size in actions:
        if kind == "open" or not open_streams:
            stream = peer.request("/test.Test/Echo")
            sent[stream] = []
            open_streams.append(stream)
            continue
        stream = open_streams[which % len(open_streams)]
        match kind:
            case "send":
                message = bytes((which + size % 251,)) * size
                octets = framed(message)
                sent[stream].append(message)
                for at in range(0, len(octets), 16_384):
                    peer.client.send_data(stream, octets[at : at + 16_384])
            case "end":
                peer.client.end_stream(stream)
                open_streams.remove(stream)
            case "reset":
                peer.client.reset_stream(stream)
                open_streams.remove(stream)
                reset.add(stream)
            case "window":
                peer.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: size})
            case "ping":
                peer.client.ping(b"12345678")
        peer.exchange()
    for stream in open_streams:
        peer.client.end_stream(stream)
    peer.client.increment_flow_control_window(1 << 27)
    for stream in sent.keys() - reset:
        if not peer.response(stream).ended:
            peer.client.increment_flow_control_window(1 << 26, stream)
    peer.exchange()
    for stream, messages in sent.items():
        if stream in reset:
            continue
        assert peer.response(stream).messages == messages
        assert peer.response(stream).status == 0
        assert peer.response(stream).ended
    closed = [call.closed_with for call in peer.machine.calls]
    assert closed == [[stream in reset] for stream in sent]
    assert peer.machine.connection.open_calls == 0


# ---- limits -----------------------------------------------------------------------


def test_streams_over_the_limit_are_refused_and_others_go_on():
    peer = H2Peer(Limits(max_concurrent_streams=2))
    first, second = peer.request(), peer.request()
    # h2 keeps to the limit; a client that has not seen our SETTINGS yet would not.
    peer.client.remote_settings.max_concurrent_streams = 100
    peer.client.remote_settings.acknowledge()
    third = peer.request()
    assert peer.response(third).reset == h2.errors.ErrorCodes.REFUSED_STREAM
    for stream in (first, second):
        peer.client.send_data(stream, framed(b"x"), end_stream=True)
    peer.exchange()
    assert peer.response(first).status == peer.response(second).status == 0
    fourth = peer.request("/test.Test/Echo", b"y", ends=True)
    assert peer.response(fourth).messages == [b"y"]


def test_a_message_over_the_limit_ends_its_stream():
    peer = H2Peer(Limits(max_message_bytes=2_000))
    stream = peer.request("/test.Test/Echo", b"x" * 2_000)
    assert peer.response(stream).messages == [b"x" * 2_000]
    peer.client.send_data(stream, framed(b"x" * 2_001))
    peer.exchange()
    assert peer.response(stream).status == 8
    assert peer.machine.calls[0].closed_with == [True]


def test_incomplete_messages_are_bounded_together():
    peer = H2Peer(Limits(max_buffered_bytes=10_000))
    streams = [peer.request("/test.Test/Silent") for _ in range(3)]
    for stream in streams:
        peer.client.send_data(stream, framed(b"x" * 8_000)[:4_005])
        peer.exchange()
    assert [bool(peer.response(stream).trailers or peer.response(stream).headers) for stream in streams] == [False, False, True]  # fmt: skip
    assert peer.response(streams[2]).status == 8
    for stream in streams[:2]:
        peer.client.send_data(stream, b"x" * 4_000, end_stream=True)
        peer.exchange()
        assert peer.response(stream).status == 0
    # What they held has been given back, by messages, errors and resets alike.
    for _ in range(20):
        stream = peer.request("/test.Test/Silent")
        peer.client.send_data(stream, framed(b"x" * 9_000)[:8_000])
        peer.exchange()
        peer.client.reset_stream(stream)
        peer.exchange()
        assert peer.response(stream).headers == {}


def test_replies_that_are_not_read_are_bounded():
    peer = H2Peer(
        Limits(max_queued_bytes=100_000),
        acknowledge=False,
        settings={SettingCodes.INITIAL_WINDOW_SIZE: 0},
    )
    first = peer.request("/test.Test/Repeat", b"x" * 30_000)
    second = peer.request("/test.Test/Repeat", b"x" * 30_000)
    assert peer.response(first).reset is None
    assert peer.response(second).reset == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
    assert peer.machine.calls[1].closed_with == [True]
    peer.client.increment_flow_control_window(100_000, first)
    peer.client.increment_flow_control_window(100_000)
    peer.exchange()
    assert peer.response(first).messages == [b"x" * 30_000] * 3


def test_too_large_a_header_list_is_refused_and_the_connection_goes_on():
    peer = H2Peer(Limits(max_header_list_bytes=2_000))
    big = peer.request(headers={"x-big": "b" * 2_000})
    assert peer.response(big).status == 8
    small = peer.request("/test.Test/Echo", b"x", ends=True)
    assert peer.response(small).messages == [b"x"]


def test_a_far_too_large_header_list_ends_the_connection():
    peer = H2Peer(Limits(max_header_list_bytes=2_000))
    peer.request(headers={"x-big": "b" * 20_000})
    (end,) = peer.has(ConnectionTerminated)
    assert end.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
    assert peer.machine.connection.finished


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_concurrent_streams": 0},
        {"max_frame_bytes": 2**14 - 1},
        {"max_frame_bytes": 2**24},
        {"connection_window_bytes": 65_534},
        {"stream_window_bytes": 2**31},
        {"max_message_bytes": 0},
    ],
    ids=str,
)
def test_limits_that_http2_does_not_allow_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


# ---- errors -----------------------------------------------------------------------


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
    headers = {"content-length": str(announced)}
    stream = peer.client.get_next_available_stream_id()
    peer.client.config.validate_outbound_headers = False
    peer.request("/test.Test/Silent", headers=headers)
    peer.client.send_data(stream, framed(b"x"), end_stream=True)
    peer.exchange()
    assert peer.response(stream).reset == reset


# ---- ends -------------------------------------------------------------------------


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


# ---- drain ------------------------------------------------------------------------


def test_drain_lets_open_calls_end_and_accepts_those_under_way():
    peer = H2Peer()
    connection = peer.machine.connection
    stream = peer.request("/test.Test/Echo", b"x")
    connection.drain()
    farewell = connection.take()
    # A request that crosses the first GOAWAY is still served.
    crossing = peer.client.get_next_available_stream_id()
    peer.client.send_headers(
        crossing,
        list((HEADERS | {":path": "/test.Test/Once"}).items()),
    )
    peer.client.send_data(crossing, framed(b"crossing"))
    answer = peer.machine.feed(peer.client.data_to_send())
    assert framed(b"crossing") in answer
    assert not connection.finished
    # Octets, as h2's client accepts nothing after a GOAWAY.
    assert farewell.endswith(b"\0\0\x08\x06\0\0\0\0\0draining")
    last_goaway = peer.machine.feed(b"\0\0\x08\x06\1\0\0\0\0draining")
    assert last_goaway == b"\0\0\x08\x07\0\0\0\0\0" + bytes((0, 0, 0, crossing)) + bytes(4)  # fmt: skip
    assert not connection.finished
    refused = peer.machine.feed(
        b"\0\0\1\1\5\0\0\0\x09\x83"  # HEADERS, incomplete: malformed, and so reset
        + b"\0\0\x05\0\1"
        + stream.to_bytes(4, "big")
        + framed(b"")
    )
    assert b"grpc-status\x010" in refused
    assert connection.finished
    assert [call.closed_with for call in peer.machine.calls] == [[False], [False]]


def test_streams_after_the_drain_are_refused():
    peer = H2Peer()
    connection = peer.machine.connection
    peer.request("/test.Test/Echo", b"x")
    connection.drain()
    connection.take()
    peer.machine.feed(b"\0\0\x08\x06\1\0\0\0\0draining")
    peer.client.send_headers(
        peer.client.get_next_available_stream_id(),
        list((HEADERS | {":path": "/test.Test/Once"}).items()),
    )
    answer = peer.machine.feed(peer.client.data_to_send())
    assert answer == b"\0\0\x04\x03\0\0\0\0\x03\0\0\0\x07"
    assert len(peer.machine.calls) == 1


def test_drain_is_said_once():
    peer = H2Peer()
    peer.machine.connection.drain()
    assert peer.machine.connection.take()
    peer.machine.connection.drain()
    assert peer.machine.connection.take() == b""


def test_abort_ends_what_is_open():
    peer = H2Peer()
    stream = peer.request("/test.Test/Echo", b"x")
    peer.machine.connection.abort("the server is shutting down")
    peer.exchange()
    assert peer.response(stream).status == 14
    assert peer.has(ConnectionTerminated)[0].error_code == 0
    assert peer.machine.connection.finished
    assert peer.machine.feed(b"anything") == b""


def test_a_peer_that_leaves_is_let_go_when_its_calls_are_done():
    peer = H2Peer()
    stream = peer.request("/test.Test/Echo", b"x")
    peer.machine.feed(b"\0\0\x08\x07\0\0\0\0\0" + bytes(8))
    assert not peer.machine.connection.finished
    peer.client.end_stream(stream)
    peer.exchange()
    assert peer.machine.connection.finished
