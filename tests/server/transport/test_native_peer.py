"""One connection whose transport and event loop are controlled by the test."""

import logging
from unittest import mock

from extproc.address import Address
from extproc.server.transport import native
from extproc.server.transport.native import (
    IDLE_S,
    INTRODUCTION_S,
    LINGER_S,
    STALL_S,
    NativeServer,
    _Peer,
)

from ...rpc.peers import TestService, framed
from ..native_server import INTRODUCTION, raw_request

PING = b"\0\0\x08\6\0\0\0\0\0" + bytes(8)


class FakeLoop:
    """An event loop whose timers are fired by the test."""

    def __init__(self):
        self.now = 0.0
        self.timers = []
        self.soon = []

    def time(self):
        return self.now

    def call_later(self, delay, callback):
        return self.call_at(self.now + delay, callback)

    def call_at(self, when, callback):
        timer = FakeTimer(when, callback)
        self.timers.append(timer)
        return timer

    def call_soon(self, callback):
        self.soon.append(callback)

    def turn(self):
        """Run the callbacks that are now scheduled, but not those that they schedule."""
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()

    def pass_time(self, seconds):
        self.now += seconds
        for timer in [timer for timer in self.timers if timer.due <= self.now]:
            self.timers.remove(timer)
            if not timer.cancelled:
                timer.callback()


class FakeTimer:
    def __init__(self, when, callback):
        self.due, self.callback, self.cancelled = when, callback, False

    def when(self):
        return self.due

    def cancel(self):
        self.cancelled = True


class FakeTransport:
    def __init__(self):
        self.did = []
        self.written = b""

    def __getattr__(self, name):
        return lambda *_: self.did.append(name)

    def write(self, data):
        self.written += data

    def get_extra_info(self, name):
        return None


class FakePeer:
    def __init__(self):
        self.monitor = mock.Mock()
        self.server = NativeServer(
            TestService(), Address.parse("127.0.0.1:0"), monitor=self.monitor
        )
        self.loop, self.transport = FakeLoop(), FakeTransport()
        self.peer = _Peer(self.server, self.loop)
        self.peer.connection_made(self.transport)

    def feed(self, data: bytes) -> bytes:
        self.transport.written = b""
        self.peer.get_buffer(-1)[: len(data)] = data
        self.peer.buffer_updated(len(data))
        return self.transport.written

    def introduce(self):
        self.feed(INTRODUCTION)


def test_a_peer_that_does_not_introduce_itself_is_cut_off():
    fake = FakePeer()
    fake.feed(b"PRI * HTTP/2.0\r\n")
    fake.loop.pass_time(INTRODUCTION_S - 1)
    assert fake.transport.did == []
    fake.loop.pass_time(1)
    assert fake.transport.did == ["abort"]
    patient = FakePeer()
    patient.introduce()
    patient.loop.pass_time(10 * INTRODUCTION_S)
    assert patient.transport.did == []


def test_a_peer_that_does_not_read_is_not_read_from_and_then_cut_off():
    fake = FakePeer()
    fake.introduce()
    fake.peer.pause_writing()
    fake.peer.resume_writing()
    assert fake.transport.did == ["pause_reading", "resume_reading"]
    fake.loop.pass_time(2 * STALL_S)
    fake.peer.pause_writing()
    fake.loop.pass_time(STALL_S - 1)
    assert fake.transport.did[2:] == ["pause_reading"]
    fake.loop.pass_time(1)
    assert fake.transport.did[3:] == ["abort"]


def test_a_socket_that_is_never_empty_is_read_once_a_turn():
    fake = FakePeer()
    fake.introduce()
    fake.feed(b"\0\0\0\x63\0\0\0\0\0")
    assert fake.transport.did == []
    room = len(fake.peer.get_buffer(-1)) - 9
    fake.feed(room.to_bytes(3, "big") + b"\x63\0\0\0\0\0" + bytes(room))
    assert fake.transport.did == ["pause_reading"]
    fake.loop.turn()
    assert fake.transport.did == ["pause_reading", "resume_reading"]


def test_a_read_of_much_work_takes_several_turns(monkeypatch):
    monkeypatch.setattr(native, "TURN_S", -1.0)
    fake = FakePeer()
    fake.introduce()
    fake.feed(PING * 100)
    assert fake.transport.did == ["pause_reading"]
    turns = 0
    while fake.loop.soon:
        turns += 1
        fake.loop.turn()
    assert turns >= 5
    assert fake.transport.did == ["pause_reading"] * turns + ["resume_reading"]


def test_a_peer_that_does_not_read_gets_no_turn(monkeypatch):
    monkeypatch.setattr(native, "TURN_S", -1.0)
    fake = FakePeer()
    fake.introduce()
    fake.feed(PING * 100)
    fake.peer.pause_writing()
    fake.transport.written = b""
    fake.loop.turn()
    assert not fake.loop.soon
    assert fake.transport.written == b""
    fake.peer.resume_writing()
    while fake.loop.soon:
        fake.loop.turn()
    assert fake.transport.written.count(PING[:4]) >= 50
    assert fake.transport.did[-1] == "resume_reading"


def test_a_connection_that_is_gone_takes_no_turn(monkeypatch):
    monkeypatch.setattr(native, "TURN_S", -1.0)
    fake = FakePeer()
    fake.introduce()
    fake.feed(PING * 100)
    fake.peer.connection_lost(None)
    fake.loop.turn()
    assert not fake.loop.soon


def test_after_a_fault_the_peer_is_given_time_to_read_why():
    fake = FakePeer()
    fake.introduce()
    assert b"\7" in fake.feed(b"\0\0\x08\6\0\0\0\0\1" + bytes(8))
    assert fake.feed(b"still sending") == b""
    assert fake.transport.did == []
    fake.loop.pass_time(LINGER_S)
    assert fake.transport.did == ["close"]
    fake.loop.pass_time(STALL_S)
    assert fake.transport.did == ["close", "abort"], "it does not read"
    fake.peer.connection_lost(None)
    assert not fake.server.peers
    assert fake.monitor.mock_calls == [
        mock.call.faulted("protocol_error", "PING on a stream")
    ]


def test_a_connection_without_a_stream_is_let_go():
    fake = FakePeer()
    fake.introduce()
    fake.feed(raw_request("Wait", 1))
    fake.transport.written = b""
    fake.loop.pass_time(INTRODUCTION_S)
    for _ in range(5):
        fake.loop.pass_time(IDLE_S)
    assert fake.transport.written == b"", "it has a stream"
    fake.feed(b"\0\0\4\3\0\0\0\0\1\0\0\0\x08")
    fake.loop.pass_time(IDLE_S)
    assert b"draining" in fake.transport.written
    assert fake.transport.did == []
    fake.loop.pass_time(IDLE_S)
    fake.loop.pass_time(LINGER_S)
    assert fake.transport.did == ["close"], "it was asked to go, and did not"


def test_frames_are_logged_on_connections_that_begin_while_they_are_wanted(caplog):
    before = FakePeer()
    caplog.set_level(logging.DEBUG, "extproc.frames")
    fake = FakePeer()
    before.introduce()
    fake.introduce()
    assert [record.fields["wire"] for record in caplog.records] == [
        "> SETTINGS stream=0 size=24 MAX_CONCURRENT_STREAMS=1024"
        " INITIAL_WINDOW_SIZE=16777216 MAX_FRAME_SIZE=1048576"
        " MAX_HEADER_LIST_SIZE=16384",
        "> WINDOW_UPDATE stream=0 size=4 increment=67043329",
        "< SETTINGS stream=0 size=0",
        "> SETTINGS stream=0 size=0 ACK",
    ]


def test_one_read_is_answered_with_one_write(monkeypatch):
    monkeypatch.setattr(native, "TURN_S", 60.0)
    fake = FakePeer()
    writes = []
    fake.transport.write = writes.append
    data = INTRODUCTION
    for n in (1, 3, 5):
        data += raw_request("Echo", n)
        data += b"\0\0\6\0\1\0\0\0" + bytes((n,)) + framed(b"x")
    fake.feed(data)
    assert len(writes) == 1
    assert writes[0].count(b"grpc-status\x010") == 3


def timeout(text: bytes) -> bytes:
    """Return the encoded header ``grpc-timeout``."""
    return b"\0\x0cgrpc-timeout" + bytes((len(text),)) + text


DEADLINE_EXCEEDED = b"grpc-status\x014"


def test_each_call_ends_at_its_own_deadline():
    fake = FakePeer()
    fake.introduce()
    for number, seconds in ((1, b"30S"), (3, b"10S"), (5, b"20S")):
        fake.feed(raw_request("Wait", number, timeout(seconds)))
    for _ in range(3):
        fake.transport.written = b""
        fake.loop.pass_time(9)
        assert DEADLINE_EXCEEDED not in fake.transport.written
        fake.loop.pass_time(1)
        assert fake.transport.written.count(DEADLINE_EXCEEDED) == 1


def test_a_connection_that_is_gone_waits_for_nothing():
    fake = FakePeer()
    fake.introduce()
    fake.feed(raw_request("Wait", 1, timeout(b"30S")))
    fake.peer.pause_writing()
    fake.peer.connection_lost(None)
    assert all(timer.cancelled for timer in fake.loop.timers)
    assert fake.loop.timers
