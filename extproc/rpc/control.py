"""Frames that concern the whole connection, and limits on floods of frames.

References are to RFC 9113.
"""

from typing import Final

from extproc.rpc import frames as f
from extproc.rpc.calls import Calls
from extproc.rpc.frames import ConnectionFault, ErrorCode, Frame
from extproc.rpc.limits import CONTROL_FRAMES_PER_WORK, Budget, Limits
from extproc.rpc.stream import Stream

_DRAIN_PING: Final = b"draining"


class Control:
    """Handles the frames that do not belong to a request.

    Attributes:
        now: time of the socket read in progress.
        large_frames: number of received DATA frames with at least ``MIN_WORK_BYTES``.
            Together with the messages received and the frames released by a
            WINDOW_UPDATE, these frames are the work for which the peer may send control
            frames.
        introduced: whether the peer's SETTINGS have been received.
        leaving: whether either side has announced that no new stream will follow.
        refusing: whether new streams are refused because our last GOAWAY excludes them.
    """

    def __init__(self, calls: Calls, limits: Limits) -> None:
        self.now = 0.0
        self.large_frames = 0
        self.introduced = False
        self.leaving = False
        self.refusing = False
        self._calls = calls
        self._out = calls.out
        self._limits = limits
        self._draining = False
        # Number of DATA bytes received for which no WINDOW_UPDATE was sent yet.
        self._owed = 0
        self._owed_limit = limits.connection_window_bytes // 2
        self._stream_owed_limit = limits.stream_window_bytes // 2
        self._budget = Budget(
            limits.control_burst, limits.control_per_s, CONTROL_FRAMES_PER_WORK
        )
        self._resets = Budget(limits.reset_burst, limits.resets_per_s, 1)

    def __repr__(self) -> str:
        words = {
            "introduced": self.introduced,
            "draining": self._draining,
            "refusing": self.refusing,
            "leaving": self.leaving,
        }
        return " ".join(word for word, holds in words.items() if holds) or "new"

    def send(self, frame: bytes) -> None:
        """Queue a frame for sending."""
        self._out.unsent.append(frame)

    def introduce(self) -> None:
        """Send our SETTINGS and enlarge the connection's window."""
        limits = self._limits
        self.send(
            f.settings(
                {
                    f.MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
                    f.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                    f.MAX_FRAME_SIZE: limits.max_frame_bytes,
                    f.MAX_HEADER_LIST_SIZE: limits.max_header_list_bytes,
                }
            )
        )
        more = limits.connection_window_bytes - f.DEFAULT_WINDOW_BYTES
        if more:
            self.send(f.window_update(0, more))

    def drain(self) -> None:
        """Ask the peer to open no more streams; open streams continue (6.8).

        The first GOAWAY excludes no stream, since requests may be in flight; the final
        GOAWAY follows once the peer has answered the PING that was sent with the first
        GOAWAY.
        """
        if self._draining:
            return
        self._draining = True
        self.send(f.goaway(f.MAX_STREAM_ID, ErrorCode.NO_ERROR))
        self.send(f.frame(f.PING, 0, 0, _DRAIN_PING))
        self._calls.drain()

    def spend(self) -> None:
        """Spend one token of the budget for frames without content.

        Raises:
            ConnectionFault: the budget is spent.
        """
        work = self.large_frames + self._calls.delivered + self._out.delayed_frames
        if not self._budget.spend(self.now, work):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames")

    def spend_reset(self) -> None:
        """Spend one token of the budget for resets that the peer causes.

        Raises:
            ConnectionFault: the budget is spent.
        """
        if not self._resets.spend(self.now, self._out.answered):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many resets")

    def blame(self, stream: Stream, code: ErrorCode) -> None:
        """Reset a stream on which the peer broke a protocol rule.

        Raises:
            ConnectionFault: the peer has broken too many rules.
        """
        self.spend_reset()
        self._calls.reset(stream, code)

    def owe(self, stream: Stream | None, size: int) -> None:
        """Count received DATA (with padding, 6.9.1); send credit in large pieces."""
        self._owed += size
        if self._owed >= self._owed_limit:
            if self._owed > self._limits.connection_window_bytes:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "window exceeded")
            self.send(f.window_update(0, self._owed))
            self._owed = 0
        if stream is not None:
            stream.owed += size
            if stream.owed >= self._stream_owed_limit:
                if stream.owed > self._limits.stream_window_bytes:
                    raise ConnectionFault(
                        ErrorCode.FLOW_CONTROL_ERROR, "window exceeded"
                    )
                self.send(f.window_update(stream.id, stream.owed))
                stream.owed = 0

    def window_update(self, frame: Frame) -> None:
        """Handle a WINDOW_UPDATE frame."""
        stream_id = frame.stream_id
        increment = f.U32.unpack(frame.payload)[0] & f.MAX_STREAM_ID
        self.spend()
        if not stream_id:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "window update of 0")
            self._out.credit(None, increment)
            return
        stream = self._calls.streams.get(stream_id)
        if stream is None:
            if self._calls.is_idle(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "update of idle stream")
        elif not increment:
            self.blame(stream, ErrorCode.PROTOCOL_ERROR)
        elif stream.window + increment > f.MAX_WINDOW_BYTES:
            self.blame(stream, ErrorCode.FLOW_CONTROL_ERROR)
        else:
            self._out.credit(stream, increment)

    def settings(self, frame: Frame) -> None:
        """Handle a SETTINGS frame."""
        if frame.stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if frame.flags & f.ACK:
            if not self.introduced:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no SETTINGS yet")
            self.spend()
            return
        window = None
        for name, value in f.SETTING.iter_unpack(frame.payload):
            _check_setting(name, value)
            if name == f.INITIAL_WINDOW_SIZE:
                window = value
            elif name == f.MAX_FRAME_SIZE:
                self._out.max_frame_bytes = value
        if window is not None:  # once per frame: a resize visits all streams
            self._out.resize_windows(self._calls.streams.values(), window)
        if self.introduced:
            self.spend()
        self.introduced = True
        self.send(f.frame(f.SETTINGS, f.ACK, 0))
        self._out.flush()

    def ping(self, frame: Frame) -> None:
        """Handle a PING frame; the ACK of our own PING completes a drain."""
        if frame.stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        self.spend()
        if not frame.flags & f.ACK:
            self.send(f.frame(f.PING, f.ACK, 0, frame.payload))
        elif self._draining and frame.payload == _DRAIN_PING:
            self._finish_drain()

    def goaway(self, frame: Frame) -> None:
        """Handle a GOAWAY frame."""
        if frame.stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if frame.size < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY too short")
        self.spend()
        self.leaving = True

    def priority(self, frame: Frame) -> None:
        """Handle a PRIORITY frame, which has no effect (5.3.2)."""
        if not frame.stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self.spend()

    def push_promise(self, frame: Frame) -> None:
        """Refuse a PUSH_PROMISE frame: only servers push (8.4)."""
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE received")

    def _finish_drain(self) -> None:
        """Send the final GOAWAY after the peer has seen the first; refuse streams."""
        if not self.refusing:
            self.refusing = self.leaving = True
            self.send(f.goaway(self._calls.last_id, ErrorCode.NO_ERROR))


def _check_setting(name: int, value: int) -> None:
    """Raise ConnectionFault if a setting's value is not allowed (6.5.2)."""
    if name == f.INITIAL_WINDOW_SIZE and value > f.MAX_WINDOW_BYTES:
        raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "window too large")
    if name == f.MAX_FRAME_SIZE and not (
        f.MIN_MAX_FRAME_BYTES <= value <= f.MAX_MAX_FRAME_BYTES
    ):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "bad MAX_FRAME_SIZE")
    if name == f.ENABLE_PUSH and value > 1:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "bad ENABLE_PUSH")
