"""What answers a request's events, and the requests that pass without being read."""

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
"""What comes after a request's headers."""


class Unread(NamedTuple):
    """A whole body that takes long to read."""

    event: Rest
    """The event that ended it."""
    parser: BodyParser
    conclude: Callable[[], Step]
    """Answers the event; reads what is left of the body."""


class RequestSide(ABC):
    """Answers the events of one request.

    Args:
        progress: the exchange's; the only state that decides what is answered.
    """

    __slots__ = ("_progress",)

    echoes = False
    """Whether Envoy keeps no copy of the body."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @abstractmethod
    def headers(self) -> Step:
        """Answer the headers."""

    @abstractmethod
    def body(self, event: RequestBody) -> Step | Unread:
        """Answer a part of the body, or have the body read first."""

    @abstractmethod
    def trailers(self, event: RequestTrailers) -> Step | Unread:
        """Answer the trailers, or have the body read first."""

    def lost(self) -> None:
        """Take note that the body that was requested will not come."""
        raise AssertionError("no body was requested")

    @abstractmethod
    def give_up(self, event: Rest) -> Step:
        """Answer an event that led to an internal error, in full duplex."""


class UnreadRequest(RequestSide):
    """A request whose headers are all that is looked at.

    Beside ``progress``, it holds the answer to them.
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
    """The same in full duplex: the body is to be echoed."""

    __slots__ = ()
    echoes = True

    def body(self, event: RequestBody) -> Step:
        over = event.end_of_stream and self._progress.may_end
        return Step(Echo(bytes(event.body), event.end_of_stream), end=over)

    def give_up(self, event: Rest) -> Step:
        return echo(event)


def echo(event: Rest) -> Step:
    """Send a part of a request on as it came."""
    if isinstance(event, RequestTrailers):
        return Step(Continue())
    return Step(Echo(bytes(event.body), event.end_of_stream))
