"""The interface between the transports and the application: one gRPC stream.

The interface is synchronous: a transport passes each complete request message to a
:class:`Call` and sends the replies it returns.  No method awaits, so a transport can
answer one socket read with one write.  Replies that are not ready at once (of a health
watch, or to a body that is still being parsed) are sent later through :class:`Send`.
All methods run on the event loop's thread.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

Replies = tuple[Sequence[bytes], bool]
"""Serialized reply messages in order, and whether the stream ends with OK after
them."""


class StatusCode(enum.IntEnum):
    """gRPC status codes in use (grpc/doc/statuscodes.md)."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class RpcError(Exception):
    """Raised by a :class:`Call` to end its stream with a status other than OK."""

    def __init__(self, status: StatusCode, message: str) -> None:
        super().__init__(f"{status.name}: {message}")
        self.status = status
        self.message = message


def unknown_method(path: str) -> RpcError:
    """Return the error that ends a stream if no service has its method."""
    return RpcError(StatusCode.UNIMPLEMENTED, f"unknown method {path}")


def internal_error() -> RpcError:
    """Return the error that ends a stream after an unexpected exception."""
    return RpcError(StatusCode.INTERNAL, "internal error")


class Send(Protocol):
    """Callback that sends replies on one stream outside of :meth:`Call.receive`.

    Call it from the event loop's thread.  Messages keep their order. Calls after either
    side has ended the stream have no effect.
    """

    def __call__(self, messages: Sequence[bytes], end: bool | RpcError = False) -> None:
        """Send messages and optionally end the stream.

        Args:
            messages: serialized messages, in order.
            end: true to end the stream with OK after the messages, or an error to end
                it with that status.
        """


class Call(Protocol):
    """One stream of one RPC.

    Any method may raise an exception. :class:`RpcError` ends the stream with the
    error's status, and any other exception ends it with INTERNAL and is logged in one
    line.  Other streams are not affected.
    """

    def receive(self, message: bytes) -> Replies:
        """Return the replies to one request message."""
        ...

    def half_closed(self) -> Replies:
        """Return the replies once the request has ended; ``((), True)`` if none."""
        ...

    def closed(self, cancelled: bool) -> None:
        """Release the stream's resources; called exactly once, however the stream ends.

        Args:
            cancelled: true if the stream was ended by the peer, by the network (reset,
                deadline, lost connection) or by an error; false if it ended with OK.
        """
        ...


@runtime_checkable
class Drainable(Protocol):
    """A :class:`Call` that does not end by itself when the server drains."""

    def drain(self) -> Replies:
        """Return the last replies before shutdown; ``((), True)`` ends the stream."""
        ...


class Service(Protocol):
    """The application that a transport serves."""

    def open(self, path: str, headers: Mapping[str, str], send: Send) -> Call | None:
        """Start a call; ``None`` if the method is unknown (UNIMPLEMENTED).

        Args:
            path: ``/package.Service/Method``.
            headers: request headers with lower-case names, without pseudo headers; the
                values of a repeated header are joined with ``,``.  Read-only: calls may
                share the mapping.
            send: callback for replies that are not ready when a method of the call
                returns.
        """
        ...
