"""A ``Process`` stream, with the messages of an exchange and their replies in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from extproc.exchange.body_parser import BodyParser
from extproc.exchange.deciding import Decider
from extproc.exchange.events import (
    Decided,
    Event,
    NotRouted,
    Observation,
    Release,
    Reply,
    Step,
)
from extproc.exchange.machine import Exchange
from extproc.exchange.transitions import ProtocolError
from extproc.routing.router import Decision
from extproc.rpc.call import Replies, RpcError, Send, StatusCode
from extproc.server.observe.metrics import Metrics
from extproc.server.services.codec import PHASES, UnknownMessageError, decode, encode
from extproc.server.services.cooperative import TimeSlices
from extproc.server.services.in_flight import InFlight
from extproc.server.services.requested_bodies import Lost, RequestedBodies
from extproc.server.services.watchers import Tracer

MAX_HELD_MESSAGES = 16
"""Maximum number of messages that a stream may queue while its body is parsed. Envoy
sends at most one or two messages in this time, since it starts the next phase only
after the reply to the previous phase."""


class Host(Protocol):
    """The part of the service that a stream uses."""

    metrics: Metrics
    in_flight: InFlight
    requested_bodies: RequestedBodies
    slices: TimeSlices | None
    clock: Callable[[], float]
    tracer: Tracer | None

    def decided(self, decision: Decision) -> None:
        """Notify all watchers of a decision; never raises."""

    def trace(
        self, decided: Decided, metadata: Mapping[str, str], opened_s: float
    ) -> None:
        """Record the span of a decision; never raises."""

    def learn_later(self, observation: Observation) -> None:
        """Learn from a response after pending replies are sent; never raises."""

    def fault(self, error: Exception) -> None:
        """Count and log an internal error."""

    def protocol_error(self, error: Exception) -> None:
        """Count and log an invalid or unexpected message from Envoy."""


class ExtProcStream:
    """A ``Process`` stream.

    Args:
        service: the service that opened the stream.
        decider: decides the stream's request.
        metadata: headers of the gRPC stream.
        send: callback for replies that are not ready when ``receive`` returns.
    """

    __slots__ = (
        "_exchange",
        "_half_closed",
        "_headers_read",
        "_held",
        "_metadata",
        "_opened_s",
        "_send",
        "_service",
    )

    def __init__(
        self,
        service: Host,
        decider: Decider,
        metadata: Mapping[str, str],
        send: Send,
    ) -> None:
        self._service = service
        self._exchange = Exchange(decider)
        self._headers_read = decider.settings.headers_read
        self._metadata = metadata
        self._send = send
        self._opened_s = service.clock()
        self._held: list[tuple[bytes, float]] | None = None
        """Messages that wait for a body to be parsed, with their arrival times; None if
        no body is being parsed."""
        self._half_closed = False

    def __repr__(self) -> str:
        held = "" if self._held is None else f", {len(self._held)} messages queued"
        closed = ", half-closed" if self._half_closed else ""
        return f"<ExtProcStream {self._exchange!r}{held}{closed}>"

    def receive(self, message: bytes) -> Replies:
        """Return the replies to one message.

        Raises:
            RpcError: the stream has failed and ending it with OK would lose body bytes,
                or the peer sent too many messages at once.
        """
        service = self._service
        received_s = service.clock()
        service.requested_bodies.ended(self)
        if self._held is None:
            return self._receive(message, received_s)
        if len(self._held) == MAX_HELD_MESSAGES:
            raise RpcError(StatusCode.RESOURCE_EXHAUSTED, "too many messages at once")
        self._held.append((message, received_s))
        return (), False

    def _receive(self, message: bytes, received_s: float) -> Replies:
        try:
            event = decode(message, self._headers_read)
            step = self._exchange.receive(event)
            if isinstance(step, Step):
                return self._answer(event, step, received_s)
            if self._service.slices is None:
                return self._answer(event, self._exchange.resume(), received_s)
        except Exception as error:
            return self._end(error)
        self._held = []
        resume = partial(self._resume, event, received_s)
        self._service.slices.add(partial(self._parse, step), resume)
        return (), False

    def _parse(self, parser: BodyParser) -> bool:
        return self._held is not None and parser.step()

    def _resume(self, event: Event, received_s: float) -> None:
        """Answer the event whose body was parsed, and then the queued messages."""
        if self._held is None:
            return  # the stream was closed meanwhile
        held, self._held = self._held, None
        try:
            replies, end = self._resumed(event, received_s)
            self._send(replies, end)
            for place, (message, came_s) in enumerate(held, 1):
                if end:
                    return
                replies, end = self._receive(message, came_s)
                if self._held is not None:  # another body is being parsed
                    self._held += held[place:]
                    return
                self._send(replies, end)
        except RpcError as error:
            self._send((), error)
            return
        if self._half_closed and not end:
            self._send((), True)

    def _resumed(self, event: Event, received_s: float) -> Replies:
        try:
            return self._answer(event, self._exchange.resume(), received_s)
        except Exception as error:
            return self._end(error)

    def _answer(self, event: Event, step: Step, received_s: float) -> Replies:
        """Report the results of a step of the exchange, and encode its reply."""
        service, decided = self._service, step.decided
        if step.fault is not None:
            service.fault(step.fault)
        if decided is not None:
            service.decided(decided.decision)
            if service.tracer is not None:
                service.trace(decided, self._metadata, self._opened_s)
            key = self._exchange if decided.follows_response else decided.decision_token
            if key:  # the end of the request will be reported
                service.in_flight.began(key, decided.decision.pool.name)
        else:
            self._watch_body(step)
            if step.not_routed is not None:
                service.metrics.not_routed.add(step.not_routed)
        if step.observation is not None:
            service.learn_later(step.observation)
        try:
            messages = encode(event, step.reply)
        except Exception as error:
            if not self._exchange.owes_bodies:
                raise
            service.fault(error)
            messages = encode(event, _without_decision(step.reply))
        metrics = service.metrics
        metrics.message_seconds.add(service.clock() - received_s, PHASES[type(event)])
        return messages, step.end

    def _watch_body(self, step: Step) -> None:
        """Start the timeout of a requested body, or count the body if it is lost."""
        if self._exchange.awaits_body:
            self._service.requested_bodies.began(self)
        elif step.refused:
            self._service.requested_bodies.lost(Lost.REFUSED)

    def _end(self, error: Exception) -> Replies:
        """End the stream after an error.

        Raises:
            RpcError: ending the stream with OK would lose body bytes.
        """
        if isinstance(error, ProtocolError | UnknownMessageError):
            self._service.protocol_error(error)
        else:
            self._service.fault(error)
        if self._exchange.owes_bodies:
            # In full duplex, the status OK means that the body is complete, so the
            # backend would receive a truncated request, or the client would receive a
            # truncated response.
            raise RpcError(
                StatusCode.INTERNAL,
                "internal error: a full-duplex stream would lose data",
            ) from None
        # After the status OK, Envoy continues without the router. After an error
        # status, the client would receive a 500 if failure_mode_allow is off.
        return (), True

    def half_closed(self) -> Replies:
        """End the stream after Envoy's half-close, once its body is answered."""
        self._half_closed = True
        if self._held is None and self._exchange.awaits_body:
            self._lose_body(Lost.ENDED)
        return (), self._held is None

    def body_is_late(self) -> None:
        """End the stream without a decision, since the body did not arrive in time."""
        self._lose_body(Lost.TIMEOUT)
        self._service.metrics.not_routed.add(NotRouted.BODY_LATE)
        self._send((), True)

    def _lose_body(self, how: Lost) -> None:
        self._exchange.lose_body()
        self._service.requested_bodies.lost(how)

    def closed(self, cancelled: bool) -> None:
        """Count the final state of the stream, whichever side ended the stream."""
        service = self._service
        service.in_flight.ended(self._exchange)
        service.requested_bodies.ended(self)
        self._held = None
        metrics = service.metrics
        metrics.streams_inflight -= 1
        metrics.ended.add(self._exchange.state.value)


def _without_decision(reply: Reply) -> Reply:
    """Return a reply that contains only the body, so that the body is not lost."""
    if isinstance(reply, Release):
        return Release(None, reply.body, reply.end_of_stream, reply.trailers)
    return reply
