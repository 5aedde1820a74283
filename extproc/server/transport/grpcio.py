"""The grpc.aio transport: serves calls with gRPC's own library."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import grpc

from extproc.address import Address
from extproc.rpc.call import (
    Call,
    Drainable,
    Replies,
    RpcError,
    Service,
    internal_error,
    unknown_method,
)
from extproc.rpc.limits import Limits
from extproc.server.logs import log_failure

logger = logging.getLogger(__name__)


class GrpcioServer:
    """Serves a service on one address.

    Args:
        service: opens the calls.
        address: address to listen on; port 0 means any free port.
        limits: limits on one connection. This transport uses only the limits on the
            sizes of messages and of metadata. A stream that exceeds a limit ends with
            RESOURCE_EXHAUSTED.
        credentials: TLS credentials; None for plain text.
    """

    def __init__(
        self,
        service: Service,
        address: Address,
        *,
        limits: Limits | None = None,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._service = service
        self._address = address
        self._credentials = credentials
        self._calls: set[_OpenCall] = set()
        self.port = 0
        """The bound port; 0 for a Unix socket."""
        limits = limits or Limits()
        self._server = grpc.aio.server(
            options=[
                (
                    "grpc.max_receive_message_length",
                    limits.max_message_bytes,
                ),
                # gRPC accepts all metadata up to the first limit and none above the
                # second limit. Between the two limits, gRPC refuses metadata at random.
                ("grpc.max_metadata_size", limits.max_header_list_bytes),
                ("grpc.absolute_max_metadata_size", 4 * limits.max_header_list_bytes),
                # Envoy's keepalive may ping every second even if the connection is
                # idle. By default gRPC would treat these pings as an attack and close
                # the connection.
                ("grpc.http2.min_ping_interval_without_data_ms", 100),
                ("grpc.http2.max_ping_strikes", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.so_reuseport", 0),
            ]
        )
        self._server.add_generic_rpc_handlers((_AnyMethod(self),))

    async def start(self) -> None:
        """Listen and serve.

        Raises:
            OSError: the address cannot be bound.
        """
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(str(self._address))
            else:
                port = self._server.add_secure_port(
                    str(self._address), self._credentials
                )
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._address}") from error
        await self._server.start()
        self.port = 0 if self._address.is_unix else port

    async def drain(self, timeout_s: float) -> None:
        """Refuse new streams, wait for open streams until the timeout, then stop."""
        for call in tuple(self._calls):
            await call.drain()
        # Before gRPC cancels them, which a call may read as the end of its client.
        timer = asyncio.get_running_loop().call_later(timeout_s, self._cancel_open)
        await self._server.stop(timeout_s)
        timer.cancel()

    def _cancel_open(self) -> None:
        for call in tuple(self._calls):
            call.cancel()

    async def serve_stream(self, path: str, context: Any) -> RpcError | None:
        """Run one stream; return the error that ends the stream, or None."""
        stream = _OpenCall(context)
        headers = {
            key: value
            for key, value in context.invocation_metadata() or ()
            if isinstance(value, str)
        }
        try:
            call = self._service.open(path, headers, stream.send)
        except Exception as error:  # the application may raise any exception
            return _ending(f"open {path}", error)
        if call is None:
            return unknown_method(path)
        stream.call = call
        self._calls.add(stream)
        cancelled = True
        try:
            ending = await stream.run()
            cancelled = ending is not None
            return ending
        finally:  # gRPC cancels the handler if the client disconnects
            self._calls.discard(stream)
            # Break the reference cycle between call and ``send``, so that the memory of
            # both is freed at once.
            stream.call = None
            try:
                call.closed(cancelled)
            except Exception as error:  # the application may raise any exception
                log_failure("closed", error)


def _ending(where: str, error: BaseException) -> RpcError:
    """Return the error that ends a stream after its call raised an exception."""
    if not isinstance(error, RpcError):
        log_failure(where, error)
        error = internal_error()
    # Drop the traceback, whose frames keep the call alive.
    return error.with_traceback(None)


_CODES = {code.value[0]: code for code in grpc.StatusCode}


class _AnyMethod(grpc.GenericRpcHandler):  # type: ignore[misc,unused-ignore]
    """Passes every method to the service."""

    def __init__(self, server: GrpcioServer) -> None:
        self._server = server

    def service(self, handler_call_details: Any) -> Any:
        path = handler_call_details.method

        async def behaviour(_: object, context: Any) -> None:
            error = await self._server.serve_stream(path, context)
            if error is not None:
                await context.abort(_CODES[error.status.value], error.message)

        # Without (de)serializers, messages are bytes in both directions.
        return grpc.stream_stream_rpc_method_handler(behaviour)


_RESET_S = 0.1
"""Time in which gRPC cancels the handler of a message that exceeded the size limit."""


class _OpenCall:
    """A stream with its pending replies and its end.

    The handler does not read, because gRPC cancels the handler when the client resets
    the stream, and a cancelled read leaks memory (96 bytes in versions 1.71 to 1.85). A
    separate task reads instead, and its pending read ends by itself after a reset.
    """

    def __init__(self, context: Any) -> None:
        self.call: Call | None = None
        self._context = context
        self._late: deque[bytes] = deque()
        self._flushing: asyncio.Task[None] | None = None
        self._over: asyncio.Future[RpcError | None]
        self._over = asyncio.get_running_loop().create_future()

    async def run(self) -> RpcError | None:
        """Answer each message until either side or an error ends the stream."""
        answering = asyncio.ensure_future(self._answer())
        answering.add_done_callback(self._settle)
        return await self._over

    async def _answer(self) -> bool:
        """Answer messages until a half-close; return whether the stream is over."""
        is_first = True
        while True:
            message = await self._context.read()
            if message is grpc.aio.EOF:
                # gRPC also reports a reset as the end of the client's messages, and
                # cancels the handler shortly after. Only a stream without a message
                # can wait for that: a unary call waits for its status.
                await asyncio.wait([self._over], timeout=_RESET_S if is_first else 0)
            is_first = False
            if self._over.done():
                return True
            replies, end = self._ask(message)
            for reply in replies:
                await self._context.write(reply)
            if end or message is grpc.aio.EOF:
                return end

    def _ask(self, message: Any) -> Replies:
        # A separate method, because a traceback in gRPC may keep the frame alive.
        if self.call is None:
            return (), True
        if message is grpc.aio.EOF:
            return self.call.half_closed()
        return self.call.receive(message)

    def _settle(self, answering: asyncio.Task[bool]) -> None:
        if answering.cancelled():
            self._over.cancel()
            return
        error = answering.exception()
        if self._over.done():
            return
        if error is not None:
            self._end(_ending("receive", error))
        elif answering.result():
            self._end(True)

    def send(self, messages: Sequence[bytes], end: bool | RpcError = False) -> None:
        """Send replies that answer no message; no effect once the stream is over."""
        if self._over.done():
            return
        self._late.extend(messages)
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.ensure_future(self._flush())
        if end:
            self._flushing.add_done_callback(lambda _: self._end(end))

    def _end(self, how: bool | RpcError) -> None:
        if self._over.done():
            return
        # Drop the traceback, whose frames keep this object alive.
        error = how.with_traceback(None) if isinstance(how, RpcError) else None
        self._over.set_result(error)

    async def _flush(self) -> None:
        try:
            while self._late:
                await self._context.write(self._late.popleft())
        except Exception:  # gRPC raises various errors if the client is gone
            self._late.clear()
            logger.debug("late_reply_lost")

    def cancel(self) -> None:
        """End the stream as if its client had reset it."""
        self._over.cancel()

    async def drain(self) -> None:
        """Notify a drainable call of the shutdown, which may end the stream."""
        if isinstance(self.call, Drainable):
            replies, end = self.call.drain()
            self.send(replies, end)
