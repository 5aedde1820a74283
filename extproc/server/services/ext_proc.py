"""The ext_proc service without a transport: serialized messages in and out.

Synchronous on purpose: nothing here awaits, so a transport answers each read with
one write, and the estimator needs no lock.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from extproc.exchange.body_parser import BodyParser
from extproc.exchange.events import (
    Event,
    Observation,
    Release,
    Reply,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    Route,
)
from extproc.exchange.machine import Exchange, ExchangeSettings
from extproc.exchange.transitions import ProtocolError
from extproc.routing.policy import Loads, PoolLoad
from extproc.routing.router import Decision, Lesson, Router
from extproc.rpc.call import Call, Replies, RpcError, Send, StatusCode
from extproc.server.in_force import InForce
from extproc.server.observe.metrics import Metrics
from extproc.server.services.codec import UnknownMessageError, decode, encode
from extproc.server.services.cooperative import TimeSlices
from extproc.server.services.health import EXT_PROC
from extproc.server.services.in_flight import InFlight

logger = logging.getLogger(__name__)

PROCESS = f"/{EXT_PROC}/Process"

MAX_HELD_MESSAGES = 16
"""That may wait while a body is read: Envoy sends one or two more, as it waits for the
answer to each phase before the next."""

_PHASES: dict[type[Event], str] = {
    RequestHeaders: "request_headers",
    RequestBody: "request_body",
    RequestTrailers: "request_trailers",
    ResponseHeaders: "response_headers",
    ResponseBody: "response_body",
    ResponseTrailers: "response_trailers",
}


class Watcher(Protocol):
    """Told what happens, one exchange at a time; the metrics are one."""

    def decided(self, decision: Decision) -> None:
        """Take note of a decision, before its reply is sent: no time to lose."""

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Take note of a response, and of what it taught."""


class NewExchange(Protocol):
    """Makes the exchange of a stream, given the call's metadata and what it needs."""

    def __call__(
        self,
        metadata: Mapping[str, str],
        router: Router,
        settings: ExchangeSettings,
        wants_feedback: Callable[[Decision], bool],
        loads: Loads,
        /,
    ) -> Exchange: ...


def plain_exchange(
    metadata: Mapping[str, str],
    router: Router,
    settings: ExchangeSettings,
    wants_feedback: Callable[[Decision], bool],
    loads: Loads,
) -> Exchange:
    """Make an exchange that does nothing beside its work."""
    return Exchange(router, settings, wants_feedback, loads)


class ExtProcService:
    """Answers ``Process`` streams.

    Args:
        in_force: the configuration that new streams begin with; open ones end with
            what they began with.
        metrics: told every fact.
        watchers: told the decisions and observations beside the metrics.
        new_exchange: makes a stream's exchange; another than the plain one traces.
        flights: the requests whose end will be told.
        defer: runs a call once the reply is on its way; the event loop's
            ``call_soon``. Learning waits there.
        turns: where large bodies are read; None: at once, as all others.
        clock: seconds, for the time that answers take.
    """

    def __init__(
        self,
        in_force: InForce,
        metrics: Metrics,
        *,
        watchers: Sequence[Watcher] = (),
        new_exchange: NewExchange = plain_exchange,
        defer: Callable[[Callable[[], None]], object] = lambda call: call(),
        in_flight: InFlight | None = None,
        slices: TimeSlices | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.in_force = in_force
        self.metrics = metrics
        self.in_flight = InFlight(lambda pool: None) if in_flight is None else in_flight
        self._watchers: Sequence[Watcher] = (metrics, *watchers)
        self._new_exchange = new_exchange
        self._plain = new_exchange is plain_exchange  # another may read any header
        self._defer = defer
        self.slices = slices
        self.clock = clock
        self.opened = 0
        """Streams begun, ever."""
        self._faults_logged: set[str] = set()

    def open(self, path: str, headers: Mapping[str, str], send: Send) -> Call | None:
        """Begin one ``Process`` stream; any other method is not ours."""
        if path != PROCESS:
            return None
        now = self.in_force.now
        exchange = self._new_exchange(
            headers, now.router, now.settings, now.sampler.wants, now.loads
        )
        self.opened += 1
        self.metrics.streams_inflight += 1
        return ExtProcStream(self, exchange, send)

    def step(
        self, exchange: Exchange, message: bytes | Event, received_s: float
    ) -> Replies:
        """Answer one message of an exchange.

        Args:
            exchange: whose it is.
            message: as it came, or decoded.
            received_s: when it came, by ``clock``.

        Raises:
            RpcError: it cannot go on, and what is not echoed would be lost.
        """
        try:
            return self._step(exchange, message, received_s)
        except (ProtocolError, UnknownMessageError) as error:
            self.metrics.protocol_errors.add()
            logger.warning("protocol_error", extra={"fields": {"error": str(error)}})
        except Exception as error:
            self._fault(error)
        if exchange.owes_bodies:
            # In full duplex a clean end means that the rest of the body is empty: the
            # backend would get half a request, or the client half an answer.
            raise RpcError(StatusCode.INTERNAL, "cannot go on")
        # Ending the stream cleanly lets Envoy go on without us; an error status would
        # be a 500 for the client where failure_mode_allow is off.
        return (), True

    def _step(
        self, exchange: Exchange, message: bytes | Event, received_s: float
    ) -> Replies:
        wanted = self.in_force.now.settings.headers_read if self._plain else None
        event = decode(message, wanted) if isinstance(message, bytes) else message
        undecided = exchange.decision is None
        step = exchange.receive(event)
        if exchange.fault is not None:
            self._fault(exchange.fault)
            exchange.fault = None
        if undecided and exchange.decision is not None:
            self.decided(exchange.decision)
            self._depart(exchange, exchange.decision, step.reply)
        if step.observation is not None:
            self.learn_later(step.observation)
        try:
            messages = encode(event, step.reply)
        except Exception as error:
            if not exchange.owes_bodies:
                raise
            self._fault(error)
            messages = encode(event, _without_decision(step.reply))
        self.metrics.message_seconds.add(
            self.clock() - received_s, _PHASES[type(event)]
        )
        return messages, step.end

    def _depart(self, exchange: Exchange, decision: Decision, reply: Reply) -> None:
        """Remember a request if we shall be told of its end."""
        pool = decision.pool.name
        if exchange.follows_response:
            self.in_flight.began(exchange, pool)
        elif isinstance(reply, Route | Release) and reply.decision_token:
            self.in_flight.began(reply.decision_token, pool)

    def decided(self, decision: Decision) -> None:
        """Tell all who watch of a decision; never raises."""
        try:
            for watcher in self._watchers:
                watcher.decided(decision)
        except Exception as error:  # the decision is still to be sent
            self._fault(error)

    def learn_later(self, observation: Observation) -> None:
        """Learn from a response once nobody waits for a reply; never raises."""
        self._defer(partial(self._learn, observation))

    def _fault(self, error: Exception) -> None:
        """Count an error of our own; log the first of each place.

        Its text is left out: it may quote a body.
        """
        self.metrics.faults.add()
        frames = traceback.extract_tb(error.__traceback__)
        at = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        if at not in self._faults_logged:
            self._faults_logged.add(at)
            fields = {"error": type(error).__name__, "at": at}
            logger.error("fault", extra={"fields": fields})

    def _learn(self, observation: Observation) -> None:
        try:
            self.learn(observation)
        except Exception as error:
            self._fault(error)

    @property
    def router(self) -> Router:
        """The router in force."""
        return self.in_force.now.router

    @property
    def loads(self) -> Mapping[str, PoolLoad]:
        """What is known of the pools' load."""
        return self.in_force.now.loads()

    def learn(self, observation: Observation) -> Lesson:
        """Learn from a response, and tell all who watch what came of it."""
        now = self.in_force.now
        lesson = now.router.learn(observation.decision, observation.outcome)
        if lesson.error_ratio is not None:
            now.sampler.observed(observation.decision, lesson.error_ratio)
        for watcher in self._watchers:
            watcher.observed(observation, lesson)
        return lesson


def _without_decision(reply: Reply) -> Reply:
    """What must not be lost of a reply that could not be written: the body."""
    if isinstance(reply, Release):
        return Release(None, reply.body, reply.end_of_stream, reply.trailers)
    return reply


class ExtProcStream:
    """One ``Process`` stream."""

    __slots__ = ("_exchange", "_half_closed", "_held", "_send", "_service")

    def __init__(self, service: ExtProcService, exchange: Exchange, send: Send) -> None:
        self._service = service
        self._exchange = exchange
        self._send = send
        self._held: list[tuple[bytes | Event, float]] | None = None
        """Messages that wait until a body is read, its own first, and when they came;
        None: none do."""
        self._half_closed = False

    def receive(self, message: bytes) -> Replies:
        """Answer one message."""
        received_s = self._service.clock()
        if self._held is not None:
            if len(self._held) == MAX_HELD_MESSAGES:
                raise RpcError(
                    StatusCode.RESOURCE_EXHAUSTED, "too many messages at once"
                )
            self._held.append((message, received_s))
            return (), False
        if self._exchange.may_take_long(len(message)):
            return self._receive_large(message, received_s)
        return self._service.step(self._exchange, message, received_s)

    def _receive_large(self, message: bytes, received_s: float) -> Replies:
        """Answer a message that may take long, at once or in turns."""
        slices, decoded = self._service.slices, _decoded(message)
        if slices is not None and not isinstance(decoded, bytes):
            reading = self._exchange.begin_parsing(decoded)
            if reading is not None:
                self._held = [(decoded, received_s)]
                slices.add(partial(self._read, reading), self._answer)
                return (), False
        return self._service.step(self._exchange, decoded, received_s)

    def _read(self, reading: BodyParser) -> bool:
        return self._held is not None and reading.step()

    def _answer(self) -> None:
        held, self._held = self._held or [], None
        for message, received_s in held:
            try:
                replies, ends = self._service.step(self._exchange, message, received_s)
            except RpcError as error:
                self._send((), error)
                return
            self._send(replies, ends)
            if ends:
                return
        if self._half_closed:
            self._send((), True)

    def half_closed(self) -> Replies:
        """Envoy sends no more: so are we done."""
        self._half_closed = True
        return (), self._held is None

    def closed(self, cancelled: bool) -> None:
        """Count the state in which the stream ended, whoever ended it."""
        self._service.in_flight.ended(self._exchange)
        self._held = None
        metrics = self._service.metrics
        metrics.streams_inflight -= 1
        metrics.ended.add(self._exchange.state.value)


def _decoded(message: bytes) -> bytes | Event:
    """Decode a message, or leave it for ``ExtProcService.step`` to find out why not."""
    try:
        return decode(message)
    except UnknownMessageError:
        return message
