"""Decide and Observe: decisions and learning for gateways without ext_proc.

``protos/tokenbudget/v1/router.proto`` is the contract. Transports pass its messages to
``Api``: unary gRPC through ``WithApi``, JSON over HTTP in ``admin``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TypeVar

from google.protobuf.message import DecodeError

from extproc.exchange.body_parser import BodyParser
from extproc.exchange.decision_token import read_decision_token, write_decision_token
from extproc.exchange.events import NotRouted, Observation
from extproc.exchange.openai import DEFAULT_PATH
from extproc.routing.decision import Decision, Outcome, decision_fields
from extproc.routing.models import as_base
from extproc.routing.policy import Reason
from extproc.routing.request import MAX_MODEL_CHARS, Prompt, Request
from extproc.rpc.call import (
    Call,
    Replies,
    RpcError,
    Send,
    Service,
    StatusCode,
    internal_error,
)
from extproc.server.services.cooperative import TimeSlices
from extproc.server.services.ext_proc import ExtProcService
from extproc.wire import router_pb2 as pb

DECIDE = "/tokenbudget.v1.Router/Decide"
OBSERVE = "/tokenbudget.v1.Router/Observe"

MAX_TEXT_BYTES = 64 << 20
MAX_SAMPLE_BYTES = 64 << 10
_UINT32 = (1 << 32) - 1


_UNKNOWN_MODEL = pb.DecideResponse(pool="", reason=NotRouted.UNKNOWN_MODEL)
"""Response without a pool, so that the gateway's own default route applies."""


class InvalidArgumentError(Exception):
    """The caller's request is invalid; the message names the expected value."""


class Api:
    """Handles the messages of the API.

    Args:
        service: service that decides and learns. Its metrics include the decisions of
            the API.
        max_body_bytes: largest body in bytes after content-decoding.
    """

    def __init__(self, service: ExtProcService, max_body_bytes: int) -> None:
        self._service = service
        self._max_body_bytes = max_body_bytes

    def begin_parsing(self, question: pb.DecideRequest) -> BodyParser:
        """Start parsing the request's body in steps."""
        paths = self._service.in_force.now.settings.paths
        target = paths.find(question.path or DEFAULT_PATH)
        return BodyParser(
            target, question.body, question.content_encoding, self._max_body_bytes
        )

    def decide(
        self, question: pb.DecideRequest, reading: BodyParser | None = None
    ) -> pb.DecideResponse:
        """Choose a pool for a request.

        Args:
            question: the request message.
            reading: parser of the request's body; None to parse the body in one step.

        Raises:
            InvalidArgumentError: the features contradict each other.
        """
        return self._answer(self._decide(question, reading))

    def decide_unread(
        self, question: pb.DecideRequest, body_bytes: int
    ) -> pb.DecideResponse:
        """Choose a pool for a request whose body was too large for ``question``."""
        return self._answer(self._unread(question, Reason.TOO_LARGE, body_bytes))

    def _answer(self, decision: Decision | None) -> pb.DecideResponse:
        if decision is None:
            self._service.metrics.not_routed.add(NotRouted.UNKNOWN_MODEL)
            return _UNKNOWN_MODEL
        self._service.decided(decision)
        decision_token = (
            b"" if decision.reason.failed_open else write_decision_token(decision)
        )
        if decision_token:
            self._service.in_flight.began(decision_token, decision.pool.name)
        fields = decision_fields(decision)
        return pb.DecideResponse(
            model=fields.base_model,
            pool=fields.pool,
            reason=fields.reason,
            category=fields.category,
            prompt_tokens=min(fields.prompt_tokens, _UINT32),
            bound_tokens=min(fields.bound_tokens, _UINT32),
            output_tokens=min(fields.output_tokens, _UINT32),
            budget_tokens=min(fields.budget_tokens, _UINT32),
            decision=decision_token,
        )

    def _decide(
        self, question: pb.DecideRequest, reading: BodyParser | None
    ) -> Decision | None:
        """Decide a request; return None if its model is not configured."""
        now = self._service.in_force.now
        decider, paths = now.decider, now.settings.paths
        if paths.is_stored_response(question.path):
            keeper = decider.find_keeper(question.model)
            return None if keeper is None else decider.stored(keeper)
        if question.HasField("features"):
            request: Request | Reason = _request_of(question.features)
        else:
            request = (reading or self.begin_parsing(question)).finish()
        if isinstance(request, Reason):
            return self._unread(question, request, len(question.body))
        router = decider.find_named(question.model, request.model)
        if router is None:
            return None
        target = paths.find(question.path or DEFAULT_PATH)
        if target is not None and decider.asks_to_keep(
            router, target.endpoint, request
        ):
            return decider.stored(router, len(question.body))
        request = as_base(request, now.watch.base_names())
        return router.route(request, question.category_hint or None, now.loads())

    def _unread(
        self, question: pb.DecideRequest, reason: Reason, body_bytes: int
    ) -> Decision | None:
        """Decide a request without its body; None if its model is not configured."""
        now = self._service.in_force.now
        target = now.settings.paths.find(question.path or DEFAULT_PATH)
        by_path = "" if target is None else target.model
        router = now.decider.find_named(question.model, by_path)
        if router is None:
            return None
        endpoint = None if target is None else target.endpoint
        return now.decider.unread(router, endpoint, reason, body_bytes)

    def observe(self, request: pb.ObserveRequest) -> pb.ObserveResponse:
        """Learn from one response.

        Raises:
            InvalidArgumentError: the decision was made under another configuration.
        """
        router = self._service.router
        self._service.in_flight.ended(request.decision)
        decision = read_decision_token(request.decision, router)
        if decision is None:
            raise InvalidArgumentError(
                "decision: expected a value returned by Decide under the same pools"
            )
        outcome = Outcome(
            status=request.status,
            prompt_tokens=request.prompt_tokens or None,
            completion_tokens=request.completion_tokens or None,
            truncated=request.truncated,
            attempts=max(1, request.attempts),
        )
        lesson = self._service.learn(Observation(decision, outcome))
        return pb.ObserveResponse(
            skipped=lesson.skipped or "", misroute=lesson.misroute or ""
        )


def _request_of(features: pb.Features) -> Request:
    sample, size = features.text_sample, features.text_bytes
    if size > MAX_TEXT_BYTES:
        raise InvalidArgumentError(
            f"text_bytes: {size}; expected at most {MAX_TEXT_BYTES}"
        )
    if len(sample) > MAX_SAMPLE_BYTES:
        raise InvalidArgumentError(
            f"text_sample: {len(sample)} bytes; expected at most {MAX_SAMPLE_BYTES}"
        )
    if bool(sample) != bool(size) or len(sample) > size:
        raise InvalidArgumentError(
            "text_sample: expected a part of the text, with text_bytes its full size"
        )
    if size and features.prompt_tokens:
        raise InvalidArgumentError("prompt_tokens: expected only without text")
    prompt = Prompt(
        # Repeat the sample to obtain a text of the given size with the sample's
        # features.
        text=(sample * (size // max(1, len(sample)) + 1))[:size],
        messages=features.messages or 1,
        images=features.images,
        audios=features.audios,
        files=features.files,
        token_ids=features.prompt_tokens,
    )
    return Request(
        prompt,
        body_bytes=size,
        model=features.model[:MAX_MODEL_CHARS],
        max_tokens=features.max_tokens or None,
    )


class WithApi:
    """Combines a service with the API as unary gRPC.

    Args:
        service: handles all other methods.
        api: handles Decide and Observe.
        slices: runs the parsing steps of several bodies in turn; None to parse each
            body in one step.
    """

    def __init__(
        self, service: Service, api: Api, slices: TimeSlices | None = None
    ) -> None:
        self._service = service
        self._api = api
        self._slices = slices

    def open(self, path: str, headers: Mapping[str, str], send: Send) -> Call | None:
        """Start a call of either service."""
        if path == DECIDE:
            return _Deciding(self._api, self._slices, send)
        if path == OBSERVE:
            return _Observing(self._api)
        return self._service.open(path, headers, send)


class _Observing:
    """A call of ``Observe``, with one response to learn from."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def receive(self, message: bytes) -> Replies:
        request = _parse(pb.ObserveRequest, message)
        try:
            answer = self._api.observe(request)
        except InvalidArgumentError as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, str(error)) from None
        return (answer.SerializeToString(),), True

    def half_closed(self) -> Replies:
        raise RpcError(StatusCode.INVALID_ARGUMENT, "no request message")

    def closed(self, cancelled: bool) -> None:
        pass


class _Deciding:
    """A call of ``Decide``, whose body may take long to parse."""

    def __init__(self, api: Api, slices: TimeSlices | None, send: Send) -> None:
        self._api = api
        self._slices = slices
        self._send = send
        self._reading: BodyParser | None = None
        """Parser that runs in steps; None before the start and after the call has
        ended."""

    def receive(self, message: bytes) -> Replies:
        if self._reading is not None:
            raise RpcError(StatusCode.INVALID_ARGUMENT, "more than one request message")
        question = _parse(pb.DecideRequest, message)
        reading = self._api.begin_parsing(question)
        if self._slices is None or not reading.may_take_long:
            return (self._answer(question, reading),), True
        self._reading = reading
        self._slices.add(self._step, partial(self._answer_late, question, reading))
        return (), False

    def half_closed(self) -> Replies:
        if self._reading is None:
            raise RpcError(StatusCode.INVALID_ARGUMENT, "no request message")
        return (), False

    def closed(self, cancelled: bool) -> None:
        self._reading = None

    def _step(self) -> bool:
        return self._reading is not None and self._reading.step()

    def _answer_late(self, question: pb.DecideRequest, reading: BodyParser) -> None:
        if self._reading is None:
            return
        try:
            self._send((self._answer(question, reading),), True)
        except RpcError as error:
            self._send((), error)
        except Exception:
            self._send((), internal_error())
            raise

    def _answer(self, question: pb.DecideRequest, reading: BodyParser) -> bytes:
        try:
            return self._api.decide(question, reading).SerializeToString()
        except InvalidArgumentError as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, str(error)) from None


_Message = TypeVar("_Message", pb.DecideRequest, pb.ObserveRequest)


def _parse(kind: type[_Message], message: bytes) -> _Message:
    try:
        return kind.FromString(message)
    except DecodeError:
        name = kind.DESCRIPTOR.name
        raise RpcError(StatusCode.INVALID_ARGUMENT, f"not a {name}") from None
