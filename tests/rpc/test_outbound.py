"""Output respects the peer's windows and frame size; h2 is the peer."""

from h2.events import WindowUpdated
from h2.settings import SettingCodes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from extproc.rpc.limits import Limits

from .peers import H2Peer, framed

KIB = 1024


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
    data = framed(body)
    stream = peer.request("/test.Test/Silent")
    at = 0
    while at < len(data):
        room = min(peer.client.local_flow_control_window(stream), 10_000)
        assert room > 0, "the server must return credit before the window is used up"
        peer.client.send_data(stream, data[at : at + room])
        at += room
        peer.exchange()
    assert peer.machine.calls[0].received == [body]
    updates = [event.stream_id for event in peer.has(WindowUpdated)]
    # Each update returns at least half a window, and the peer's windows start at 64
    # KiB.
    assert updates.count(stream) <= len(data) / (32 * KIB)
    assert 10 < updates.count(0) <= len(data) / (64 * KIB) + 1


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
    """h2 raises an error on any violation; no data may be lost, mixed up or reordered."""
    peer = H2Peer(
        Limits(control_burst=100_000),  # a window of 10 bytes requires many updates
        acknowledge=acknowledge,
        settings={SettingCodes.INITIAL_WINDOW_SIZE: window},
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
                data = framed(message)
                sent[stream].append(message)
                for at in range(0, len(data), 16_384):
                    peer.client.send_data(stream, data[at : at + 16_384])
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
