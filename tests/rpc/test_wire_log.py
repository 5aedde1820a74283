"""Readable lines for the bytes on the wire, and the machine's own reports."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.rpc.frames import Frame
from extproc.rpc.wire_log import FrameReader, WireLog

from .frame_bytes import (
    BLOCK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER,
    MORE,
    OPEN,
    PADDED,
    PING,
    RST,
    SETTINGS,
    START,
    UPDATE,
    frame,
    setting,
)
from .peers import Machine, framed

LINES = [
    (frame(DATA, END_STREAM | PADDED, 1, b"\1secret\0"), "DATA stream=1 size=8 END_STREAM|PADDED"),
    (frame(HEADER, END_HEADERS, 3, BLOCK), f"HEADERS stream=3 size={len(BLOCK)} END_HEADERS"),
    (frame(MORE, 0, 3), "CONTINUATION stream=3 size=0"),
    (frame(RST, 0, 5, struct.pack(">I", 8)), "RST_STREAM stream=5 size=4 CANCEL"),
    (frame(RST, 0, 5, struct.pack(">I", 99)), "RST_STREAM stream=5 size=4 error 0x63"),
    (setting(4, 65_535), "SETTINGS stream=0 size=6 INITIAL_WINDOW_SIZE=65535"),
    (setting(0x99, 1), "SETTINGS stream=0 size=6 0x99=1"),
    (frame(SETTINGS, 1, 0), "SETTINGS stream=0 size=0 ACK"),
    (frame(PING, 1, 0, b"secret!!"), "PING stream=0 size=8 ACK"),
    (frame(GOAWAY, 0, 0, struct.pack(">II", 7, 11) + b"secret"), "GOAWAY stream=0 size=14 last_stream=7 ENHANCE_YOUR_CALM"),
    (frame(UPDATE, 0, 0x80000001, struct.pack(">I", 10)), "WINDOW_UPDATE stream=1 size=4 increment=10"),
    (frame(0x42, 255, 0, b"secret"), "type 0x42 stream=0 size=6"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "line"), LINES, ids=[line for _, line in LINES])
def test_a_frame_is_one_line_without_what_it_carries(sent: bytes, line: str) -> None:
    (found,) = FrameReader().read(sent)

    assert str(found) == line


@given(st.lists(st.sampled_from(LINES)), st.lists(st.integers(1, 40)))
def test_frames_are_found_however_they_are_cut(
    sent: list[tuple[bytes, str]], sizes: list[int]
) -> None:
    whole, reader, found = b"".join(data for data, _ in sent), FrameReader(), []
    for size in sizes:
        found += [str(each) for each in reader.read(whole[:size])]
        whole = whole[size:]

    found += [str(each) for each in reader.read(whole)]

    assert found == [line for _, line in sent]


@given(st.binary(max_size=200))
def test_any_bytes_are_read(data: bytes) -> None:
    for found in FrameReader().read(data):
        assert "\n" not in str(found)


@pytest.mark.parametrize("kind", [RST, SETTINGS, UPDATE, GOAWAY])
def test_a_frame_of_a_wrong_size_is_shown_without_details(kind: int) -> None:
    assert str(Frame(kind, 0, 0, 3, b"abc")).endswith("size=3")


def test_both_directions_are_logged_in_order() -> None:
    lines: list[str] = []
    machine = Machine(log=lines.append)
    machine.connection.take()
    del lines[:]

    sent = START + OPEN + frame(DATA, END_STREAM, 1, framed(b"secret"))
    for at in range(0, len(sent), 7):
        machine.feed(sent[at : at + 7])

    assert lines == [
        "< SETTINGS stream=0 size=0",
        "> SETTINGS stream=0 size=0 ACK",
        f"< HEADERS stream=1 size={len(BLOCK)} END_HEADERS",
        "< DATA stream=1 size=11 END_STREAM",
        "> HEADERS stream=1 size=32 END_HEADERS",
        "> DATA stream=1 size=11",
        "> HEADERS stream=1 size=15 END_STREAM|END_HEADERS",
    ]


def test_a_log_of_a_write_is_what_was_written() -> None:
    lines: list[str] = []
    log = WireLog(lines.append)

    log.sent(b"")
    log.sent(frame(PING, 0, 0, bytes(8)))

    assert lines == ["> PING stream=0 size=8"]


def test_a_connection_describes_its_state() -> None:
    machine = Machine()
    assert "new" in repr(machine.connection)

    machine.feed(START + OPEN + frame(DATA, 0, 1, framed(b"secret")[:7]))

    described = repr(machine.connection)
    assert "1 streams to 1" in described
    assert "introduced" in described
    assert "2 bytes held" in described
    (stream,) = machine.connection._streams.values()
    assert repr(stream).startswith(
        "<Stream 1, unanswered, 2 bytes of a message received"
    )

    machine.feed(frame(PING, 0, 1, bytes(8)))

    described = repr(machine.connection)
    assert "PING on a stream" in described
    assert "closed" in described
    assert "secret" not in described
