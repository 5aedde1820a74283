"""The interface of request handlers, and handlers for requests that are not read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from extproc.exchange.body_parser import BodyParser
from extproc.exchange.events import (
    Continue,
    Echo,
    RequestBody,
    RequestTrailers,
    Step,
)
from extproc.exchange.transitions import Progress

Rest = RequestBody | RequestTrailers
"""The messages after a request's headers."""


class Unread(NamedTuple):
    """A complete body that takes long to parse."""

    event: Rest
    """The event that completed the body."""
    parser: BodyParser
    conclude: Callable[[], Step]
    """Replies to the event; parses the rest of the body first."""


class RequestSide(ABC):
    """Replies to the events of one request.

    Args:
        progress: the exchange's state; nothing else determines the replies.
    """

    __slots__ = ("_progress",)

    echoes = False
    """Whether the body must be returned, because Envoy keeps no copy."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @abstractmethod
    def headers(self) -> Step:
        """Reply to the headers."""

    @abstractmethod
    def body(self, event: RequestBody) -> Step | Unread:
        """Reply to a part of the body, or return the body to be parsed first."""

    @abstractmethod
    def trailers(self, event: RequestTrailers) -> Step | Unread:
        """Reply to the trailers, or return the body to be parsed first."""

    def lost(self) -> None:
        """Record that the requested body will not arrive."""
        raise AssertionError("no body was requested")

    @abstractmethod
    def give_up(self, event: Rest) -> Step:
        """Reply to an event that caused an internal error, in full duplex."""


class UnreadRequest(RequestSide):
    """A request whose body is not read.

    Besides ``progress``, its state is the reply to the headers.
    """

    __slots__ = ("_answer",)

    def __init__(self, progress: Progress, answer: Step) -> None:
        super().__init__(progress)
        self._answer = answer

    def headers(self) -> Step:
        self._progress.settle()
        return self._answer

    def body(self, event: RequestBody) -> Step:
        return Step(Continue())

    def trailers(self, event: RequestTrailers) -> Step:
        return Step(Continue(), end=self._progress.may_end)

    def give_up(self, event: Rest) -> Step:
        return Step(Continue())


class EchoedRequest(UnreadRequest):
    """A request whose body is not read, in full duplex."""

    __slots__ = ()
    echoes = True

    def body(self, event: RequestBody) -> Step:
        over = event.end_of_stream and self._progress.may_end
        return Step(Echo(bytes(event.body), event.end_of_stream), end=over)

    def give_up(self, event: Rest) -> Step:
        return echo(event)


def echo(event: Rest) -> Step:
    """Return a part of the request unchanged."""
    if isinstance(event, RequestTrailers):
        return Step(Continue())
    return Step(Echo(bytes(event.body), event.end_of_stream))
