"""The streams of one connection and the application's calls on them.

A stream ends in two steps: :attr:`Stream.ended` is set when the call's answer is
complete, and the stream is removed when both sides have closed it. Between the two
steps the stream *lingers*: the peer may still send on it, and still counts it as a
concurrent stream.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from extproc.rpc import frames as f
from extproc.rpc.call import (
    Drainable,
    Replies,
    RpcError,
    Service,
    StatusCode,
    internal_error,
    unknown_method,
)
from extproc.rpc.frames import ErrorCode
from extproc.rpc.headers import CallHeaders
from extproc.rpc.limits import Held, Limits
from extproc.rpc.outbound import Outbound
from extproc.rpc.responses import OK_TRAILERS, trailers, trailers_only
from extproc.rpc.stream import Incoming, Stream


class Calls:
    """Opens calls, passes messages to them and sends their replies.

    Args:
        report: receives each exception that a call raised, and the place where it
            happened.
        wake: called when a call has sent replies with its ``send``.
        held: byte count of the incomplete messages of all connections.

    Attributes:
        streams: streams by identifier, until both sides have closed them.
        out: the connection's sending half.
        last_id: highest stream identifier that the peer has used.
        delivered: number of messages passed to calls.
    """

    def __init__(
        self,
        service: Service,
        limits: Limits,
        report: Callable[[str, Exception], None],
        wake: Callable[[], None],
        held: Held,
    ) -> None:
        self.streams: dict[int, Stream] = {}
        self.out = Outbound(self._final_sent)
        self.last_id = 0
        self.delivered = 0
        self._service = service
        self._limits = limits
        self._report = report
        self._wake = wake
        self._lingering: OrderedDict[int, Stream] = OrderedDict()
        self._reset_ids: OrderedDict[int, None] = OrderedDict()
        self._deadlines: list[tuple[float, int]] = []
        self._held = held
        self._held_bytes = 0
        # The time at which each incomplete message last grew, oldest first.
        self._grown: OrderedDict[int, float] = OrderedDict()

    def __repr__(self) -> str:
        return (
            f"{len(self.streams)} streams to {self.last_id}, "
            f"{len(self._lingering)} lingering, {self._held_bytes} bytes held, "
            f"{self.out.queued_bytes} bytes queued"
        )

    @property
    def unanswered(self) -> int:
        """Number of streams whose answer is incomplete or not fully sent."""
        return len(self.streams) - len(self._lingering)

    @property
    def next_deadline(self) -> float | None:
        """Time at which :meth:`expire` next has work to do, or ``None`` if never."""
        deadlines = self._deadlines
        while deadlines and not self._is_due(deadlines[0][1]):
            heapq.heappop(deadlines)
        soonest = deadlines[0][0] if deadlines else None
        if not self._grown:
            return soonest
        stalled = next(iter(self._grown.values())) + self._limits.message_s
        return stalled if soonest is None else min(soonest, stalled)

    def is_idle(self, stream_id: int) -> bool:
        """Whether the peer never opened the stream; true for 0 and even identifiers."""
        return stream_id > self.last_id or not stream_id & 1

    def is_lingering(self, stream_id: int) -> bool:
        """Whether a stream has been answered but the peer has not closed it yet."""
        return stream_id in self._lingering

    def was_reset(self, stream_id: int) -> bool:
        """Whether this side reset the stream recently; the peer may still use it."""
        return stream_id in self._reset_ids

    # ---- the peer's frames --------------------------------------------------------

    def open(self, stream_id: int, head: CallHeaders, ends: bool, now: float) -> None:
        """Start a call."""
        stream = self.streams[stream_id] = Stream(stream_id, self.out.stream_window)
        stream.remote_closed = ends
        stream.content_left = head.content_length
        try:
            call = self._service.open(
                head.path, head.headers, partial(self._send, stream)
            )
        except Exception as error:  # the application may raise any exception
            self._failed(stream, f"open {head.path}", error)
            return
        if call is None:
            unknown = unknown_method(head.path)
            self._end(stream, trailers_only(unknown.status, unknown.message))
            return
        stream.call = call
        if stream.ended:  # ``send`` ended it before ``stream.call`` was set
            self._release(stream, cancelled=False)
            return
        if head.timeout_s is not None:
            self._set_deadline(stream_id, now + head.timeout_s)
        if ends:
            self.remote_end(stream)

    def refuse(self, stream_id: int, response: bytes, ends: bool) -> None:
        """Answer a request with a header block, without opening a call."""
        stream = self.streams[stream_id] = Stream(stream_id, self.out.stream_window)
        stream.remote_closed = ends
        self._end(stream, response)

    def deliver(self, stream: Stream, message: bytes) -> bool:
        """Pass a message to the call; return whether the call accepts more."""
        self.delivered += 1
        call = stream.call
        if call is None:
            return False
        try:
            replies, ends = call.receive(message)
        except Exception as error:  # the application may raise any exception
            self._failed(stream, "receive", error)
            return False
        self._reply(stream, replies, ends)
        return not stream.ended

    def feed(self, stream: Stream, data: memoryview, now: float) -> int:
        """Assemble messages from a piece of DATA; return the bytes consumed."""
        if stream.ended:
            return len(data)
        incoming = stream.incoming
        if incoming is None:
            incoming = stream.incoming = Incoming()
        self._hold(-incoming.held_bytes)
        taken = len(data)
        try:
            taken = incoming.feed(
                data, self._limits.max_message_bytes, partial(self.deliver, stream)
            )
        except RpcError as error:
            self._refuse(stream, error.status, error.message)
        if stream.content_left is not None:
            stream.content_left -= taken
        if stream.ended:  # ended between two messages, so no bytes are held
            return taken
        self._hold(incoming.held_bytes)
        if incoming.between_messages:
            stream.incoming = None
            self._grown.pop(stream.id, None)
            return taken
        self._grown[stream.id] = now
        self._grown.move_to_end(stream.id)
        if (
            self._held_bytes > self._limits.max_buffered_bytes
            or self._held.held_bytes > self._held.limit_bytes
        ):
            self._refuse(
                stream, StatusCode.RESOURCE_EXHAUSTED, "too many incomplete messages"
            )
        return taken

    def remote_end(self, stream: Stream) -> None:
        """Handle the peer's END_STREAM."""
        stream.remote_closed = True
        if stream.ended:
            if self.is_lingering(stream.id):
                self.forget(stream)
        elif stream.content_left:
            self.reset(stream, ErrorCode.PROTOCOL_ERROR)
        elif stream.incoming is not None:
            self._refuse(stream, StatusCode.INTERNAL, "stream ended inside a message")
        elif stream.call is not None:
            self._answer(stream, stream.call.half_closed, "half_closed")

    # ---- closing streams ----------------------------------------------------------

    def reject(self, stream_id: int, code: ErrorCode) -> None:
        """Reset a stream whose :class:`Stream` object is missing or was removed."""
        self.out.unsent.append(f.rst_stream(stream_id, code))
        self._reset_ids[stream_id] = None
        if len(self._reset_ids) > 2 * self._limits.max_concurrent_streams:
            self._reset_ids.popitem(last=False)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Reset a stream."""
        self.forget(stream)
        self.reject(stream.id, code)

    def forget(self, stream: Stream) -> None:
        """Remove a stream that both sides have closed or that one side has reset."""
        del self.streams[stream.id]
        self._lingering.pop(stream.id, None)
        self.out.drop(stream)
        if not stream.ended:
            stream.ended = True
            self._release(stream, cancelled=True)

    def forget_all(self) -> None:
        """Remove all streams because the connection is gone."""
        for stream in list(self.streams.values()):
            self.forget(stream)

    def expire(self, now: float) -> None:
        """End calls past their ``grpc-timeout`` and streams with a stalled message."""
        while self._grown:
            stream_id, grown = next(iter(self._grown.items()))
            if grown + self._limits.message_s > now:
                break
            self._refuse(
                self.streams[stream_id],
                StatusCode.DEADLINE_EXCEEDED,
                "incomplete message",
            )
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            _, stream_id = heapq.heappop(deadlines)
            if self._is_due(stream_id):
                self._refuse(
                    self.streams[stream_id],
                    StatusCode.DEADLINE_EXCEEDED,
                    "deadline exceeded",
                )

    def drain(self) -> None:
        """Notify each :class:`Drainable` call that the server is about to stop."""
        for stream in list(self.streams.values()):
            if isinstance(stream.call, Drainable):
                self._answer(stream, stream.call.drain, "drain")

    def abort(self, reason: str) -> None:
        """End open calls with UNAVAILABLE, and reset the lingering streams."""
        for stream in list(self.streams.values()):
            self._refuse(stream, StatusCode.UNAVAILABLE, reason)
        for stream in list(self._lingering.values()):
            self.reset(stream, ErrorCode.NO_ERROR)

    # ---- replies ------------------------------------------------------------------

    def _reply(self, stream: Stream, replies: Sequence[bytes], ends: bool) -> None:
        if stream.ended:
            return
        if replies or ends:
            self.out.reply(stream, replies)
        if ends:
            self._end(stream, OK_TRAILERS)
        if self.out.queued_bytes > self._limits.max_queued_bytes and stream.queue:
            self.reset(stream, ErrorCode.ENHANCE_YOUR_CALM)

    def _answer(self, stream: Stream, ask: Callable[[], Replies], where: str) -> None:
        try:
            replies, ends = ask()
        except Exception as error:  # the application may raise any exception
            self._failed(stream, where, error)
        else:
            self._reply(stream, replies, ends)

    def _send(
        self, stream: Stream, messages: Sequence[bytes], end: bool | RpcError = False
    ) -> None:
        """Send the replies that a call passes to its ``send``."""
        if stream.ended:
            return
        self._reply(stream, messages, end is True)
        if isinstance(end, RpcError):
            self._refuse(stream, end.status, end.message)
        self._wake()

    def _failed(self, stream: Stream, where: str, error: Exception) -> None:
        if not isinstance(error, RpcError):
            self._report(where, error)
            error = internal_error()
        self._refuse(stream, error.status, error.message)

    def _refuse(self, stream: Stream, status: StatusCode, message: str) -> None:
        """End a stream with a status other than OK, and drop its queued replies."""
        if not stream.ended:
            self.out.drop(stream)
            block = trailers if stream.answered else trailers_only
            self._end(stream, block(status, message))

    def _end(self, stream: Stream, block: bytes) -> None:
        stream.ended = True
        ok = block is OK_TRAILERS
        self._release(stream, cancelled=not ok)
        self.out.finish(stream, block)

    def _final_sent(self, stream: Stream) -> None:
        """Remove the stream if the peer has closed its side, else let it linger.

        If too many streams linger, the oldest is reset, so that a peer that never
        closes its side does not run out of streams.
        """
        if stream.remote_closed:
            self.forget(stream)
            return
        self._lingering[stream.id] = stream
        if len(self._lingering) > self._limits.max_lingering_streams:
            self.reset(next(iter(self._lingering.values())), ErrorCode.NO_ERROR)

    def _release(self, stream: Stream, cancelled: bool) -> None:
        """Close a call and release its held bytes; repeating this has no effect."""
        if stream.incoming is not None:
            self._hold(-stream.incoming.held_bytes)
            stream.incoming = None
            self._grown.pop(stream.id, None)
        call = stream.call
        if call is not None:
            stream.call = None
            try:
                call.closed(cancelled)
            except Exception as error:  # the application may raise any exception
                self._report("closed", error)

    def _hold(self, change_bytes: int) -> None:
        self._held_bytes += change_bytes
        self._held.held_bytes += change_bytes

    def _set_deadline(self, stream_id: int, when: float) -> None:
        deadlines = self._deadlines
        if len(deadlines) > 2 * len(self.streams) + 64:  # most streams have ended
            deadlines[:] = [each for each in deadlines if self._is_due(each[1])]
            heapq.heapify(deadlines)
        heapq.heappush(deadlines, (when, stream_id))

    def _is_due(self, stream_id: int) -> bool:
        stream = self.streams.get(stream_id)
        return stream is not None and not stream.ended
