"""Valid and invalid HTTP/2 frames, built and parsed by hand."""

import struct
from dataclasses import dataclass

from hpack import Encoder
from hyperframe.frame import Frame

from .peers import HEADERS

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADER, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, UPDATE, MORE = range(10)
ACK = END_STREAM = 1
END_HEADERS, PADDED, PRIORITIZED = 4, 8, 32


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(
        ">BBI", kind, flags, stream
    ) + payload  # fmt: skip


def setting(name: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", name, value))


def request_block(**changes: str | None) -> bytes:
    """Return a header block that uses no dynamic table entries."""
    fields = {**HEADERS, **{n.replace("_", "-"): v for n, v in changes.items()}}
    encoder = Encoder()
    encoder.header_table_size = 0
    block = encoder.encode([(n, v) for n, v in fields.items() if v is not None])
    return block.removeprefix(b"\x20")


BLOCK = request_block()
START = PREFACE + frame(SETTINGS, 0, 0)
OPEN = frame(HEADER, END_HEADERS, 1, BLOCK)
ANSWERED = frame(HEADER, END_HEADERS, 1, request_block(**{":path": "/test.Test/Once"}))


@dataclass(frozen=True)
class Sent:
    """A frame that the machine under test sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int | None:
        """The error code of a RST_STREAM or GOAWAY frame; None for other frames."""
        if self.kind == RST:
            return int.from_bytes(self.payload, "big")
        if self.kind == GOAWAY:
            return int.from_bytes(self.payload[4:8], "big")
        return None


def frames_in(data: bytes) -> list[Sent]:
    """Parse frames, and check with hyperframe that they are valid."""
    found, view = [], memoryview(data)
    while view:
        parsed, size = Frame.parse_frame_header(view[:9], strict=True)
        assert len(view) >= 9 + size
        parsed.parse_body(view[9 : 9 + size])
        stream = int.from_bytes(view[5:9], "big")
        found.append(Sent(view[3], view[4], stream, bytes(view[9 : 9 + size])))
        view = view[9 + size :]
    return found
