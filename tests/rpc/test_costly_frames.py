"""Frames that cause much work: how much one frame may cause, and work in short turns."""

import struct
from unittest import mock

import pytest
from h2.errors import ErrorCodes

from extproc.rpc.limits import Limits

from .frame_bytes import (
    ACK,
    BLOCK,
    DATA,
    GOAWAY,
    HEADER,
    OPEN,
    PADDED,
    PING,
    PREFACE,
    SETTINGS,
    START,
    UPDATE,
    frame,
    frames_in,
)
from .peers import Machine, framed


def settings_of(*windows: int) -> bytes:
    return frame(
        SETTINGS, 0, 0, b"".join(struct.pack(">HI", 4, window) for window in windows)
    )


@pytest.mark.parametrize("before", [PREFACE, START], ids=["first", "later"])
def test_settings_of_many_entries_are_refused_at_the_head(before):
    machine = Machine()
    machine.feed(before)
    sent = frames_in(machine.feed(settings_of(*[65_535] * 33)[:9]))
    assert sent[-1].code == ErrorCodes.ENHANCE_YOUR_CALM
    machine = Machine()
    machine.feed(before)
    (allowed,) = frames_in(machine.feed(settings_of(*[65_535] * 32)))
    assert (allowed.kind, allowed.flags) == (SETTINGS, ACK)


def test_the_last_of_many_windows_counts_and_streams_are_visited_once(monkeypatch):
    machine = Machine()
    machine.feed(START + OPEN)
    resized = mock.Mock(wraps=machine.connection._calls.out.resize_windows)
    monkeypatch.setattr(machine.connection._calls.out, "resize_windows", resized)
    machine.feed(settings_of(*[1, 2**31 - 1] * 15, 70_000))
    (stream,) = machine.connection._streams.values()
    assert stream.window == 70_000
    assert resized.call_count == 1
    assert frames_in(machine.feed(settings_of(2**31, 1)))[-1].code == (
        ErrorCodes.FLOW_CONTROL_ERROR
    ), "each value has to be one that is allowed"


def test_a_window_update_visits_only_streams_that_it_can_send_for(monkeypatch):
    burst = 50
    machine = Machine(Limits(control_burst=burst))
    machine.feed(START)
    answers = 40
    for n in range(answers):
        stream = 2 * n + 1
        asked = frame(HEADER, 4, stream, BLOCK) + frame(
            DATA, 0, stream, framed(bytes(3_000))
        )
        machine.feed(asked)
    visited = mock.Mock(wraps=machine.connection._calls.out._flush)
    monkeypatch.setattr(machine.connection._calls.out, "_flush", visited)
    for _ in range(burst // 2):
        (sent,) = frames_in(machine.feed(frame(UPDATE, 0, 0, bytes(3) + b"\1")))
        assert len(sent.payload) == 1
    assert visited.call_count <= burst
    flood = machine.feed(frame(UPDATE, 0, 0, bytes(3) + b"\1") * burst)
    assert frames_in(flood)[-1].code == ErrorCodes.ENHANCE_YOUR_CALM


PINGS = frame(PING, 0, 0, bytes(8)) * 200
REQUESTS = b"".join(frame(HEADER, 5, 2 * n + 1, BLOCK) for n in range(200))
MESSAGES = OPEN + frame(DATA, 0, 1, framed(*[b""] * 200))
MIXED = OPEN + frame(DATA, PADDED, 1, b"\1" + framed(*[b"x"] * 90) + b"\0") * 2


@pytest.mark.parametrize("sent", [PINGS, REQUESTS, MESSAGES, MIXED])
def test_a_long_read_is_worked_through_in_short_turns(sent):
    whole, turns = Machine(), Machine()
    expected = whole.feed(START + sent)
    turns.feed(START)
    assert not turns.connection.behind
    answers, count = [], 0
    turns.connection.receive(sent, turns.now, lambda: False)
    while turns.connection.behind:
        count += 1
        answers.append(turns.connection.take())
        assert len(frames_in(answers[-1])) <= 4 * 20
        turns.connection.receive(b"", turns.now, lambda: False)
    answers.append(turns.connection.take())
    assert count >= 2
    assert expected.endswith(b"".join(answers))
    assert [c.received for c in turns.calls] == [c.received for c in whole.calls]


def test_what_waits_for_a_turn_is_worked_through_before_the_end():
    machine = Machine()
    machine.feed(START)
    ends = frame(GOAWAY, 0, 0, bytes(8)) + PINGS + OPEN
    machine.connection.receive(ends, machine.now, lambda: False)
    assert machine.connection.behind
    assert not machine.connection.finished
    machine.feed(b"")
    assert len(machine.calls) == 1
