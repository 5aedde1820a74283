"""One gRPC stream as the transports show it to the application.

The seam is synchronous: a transport hands a :class:`Call` whole request
messages and sends what it returns.  Nothing here awaits, so one read of a socket
can be answered with one write.  What is not ready at once (a health watch, a body
parsed on a thread) goes out later through :class:`Send`.

All of it runs on one thread, the event loop's.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

Replies = tuple[Sequence[bytes], bool]
"""Serialized reply messages in order, and whether the stream ends (OK) after them."""


class StatusCode(enum.IntEnum):
    """The gRPC status codes in use (grpc/doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
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
    """Return the error that ends a stream whose method no service knows."""
    return RpcError(StatusCode.UNIMPLEMENTED, f"unknown method {path}")


def internal_error() -> RpcError:
    """Return the error that ends a stream after an exception that is not one."""
    return RpcError(StatusCode.INTERNAL, "internal error")


class Send(Protocol):
    """Sends replies on one stream outside of :meth:`Call.receive`.

    Call from the event loop's thread.  Messages keep their order; after the stream
    has ended, by either side, the call is without effect.
    """

    def __call__(self, messages: Sequence[bytes], end: bool | RpcError = False) -> None:
        """Send.

        Args:
            messages: serialized, in order.
            end: whether the stream ends after them: OK, or with an error.
        """


class Call(Protocol):
    """One stream of one RPC.

    Any method may raise: :class:`RpcError` ends the stream with its status, anything
    else with INTERNAL (and one line in the log).  Other streams are not affected.
    """

    def receive(self, message: bytes) -> Replies:
        """Answer one request message."""
        ...

    def half_closed(self) -> Replies:
        """Answer the end of the request; ``((), True)`` where nothing is due."""
        ...

    def closed(self, cancelled: bool) -> None:
        """Release what the stream held: called exactly once, whatever ended it.

        Args:
            cancelled: the peer or the network ended it (reset, deadline, connection
                lost), or an error did; false after an end with OK.
        """
        ...


@runtime_checkable
class Drainable(Protocol):
    """A :class:`Call` that would outlive a drain unless it is notified."""

    def drain(self) -> Replies:
        """Answer that the server stops soon; ``((), True)`` ends the stream at once."""
        ...


class Service(Protocol):
    """What a transport serves."""

    def open(self, path: str, headers: Mapping[str, str], send: Send) -> Call | None:
        """Start a call; ``None`` where the method is not known (UNIMPLEMENTED).

        Args:
            path: ``/package.Service/Method``.
            headers: the request's headers, names in lower case, no pseudo headers; of a
                repeated one the values joined with ``,``.  Read-only: calls may share
                the mapping.
            send: for what is not ready when the call is asked.
        """
        ...
