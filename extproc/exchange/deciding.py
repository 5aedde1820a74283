"""From a request's headers and body to its decision, and what depends on that."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from extproc.exchange.body_parser import BodyParser
from extproc.exchange.decision_token import write_decision_token
from extproc.exchange.events import Decided, RequestHead
from extproc.exchange.openai import RESPONSES, ask_for_usage
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.policy import PoolLoad, Reason
from extproc.routing.request import Request
from extproc.routing.router import Decision, Router

Body = bytes | bytearray | memoryview


class Decider:
    """Decides about requests; shared by all exchanges of one configuration.

    Args:
        router: makes the decisions.
        settings: shared by all exchanges.
        wants_feedback: whether to observe the response, asked once after each decision
            that can be learned from.
        loads: gives the known load of the pools.
    """

    __slots__ = (
        "_loads",
        "_responses_pool",
        "_router",
        "_wants_feedback",
        "settings",
    )

    def __init__(
        self,
        router: Router,
        settings: ExchangeSettings,
        wants_feedback: Callable[[Decision], bool],
        loads: Callable[[], Mapping[str, PoolLoad] | None] = lambda: None,
    ) -> None:
        self.settings = settings
        self._router = router
        self._wants_feedback = wants_feedback
        self._loads = loads
        self._responses_pool = router.policy.pool(settings.responses_pool or "")

    def parser(self, head: RequestHead, body: Body) -> BodyParser:
        """Return the parser of a request's whole body."""
        return BodyParser(
            head.target,
            bytes(body) if isinstance(body, bytearray) else body,
            head.headers.get("content-encoding", ""),
            self.settings.max_body_bytes,
        )

    def decide(
        self, head: RequestHead, parser: BodyParser, body: Body, *, replaceable: bool
    ) -> Decided:
        """Decide about a request whose whole body is here.

        Args:
            head: its headers.
            parser: of its body; read to the end here.
            body: as received.
            replaceable: whether Envoy would take another body in its place.

        Raises:
            Exception: an internal error.
        """
        request = parser.finish()
        if isinstance(request, Reason):
            return self.fail_open(head, request, len(body))
        if self._is_kept(head, request):
            return self.keep(head, len(body))
        hint = head.headers.get(self.settings.category_header)
        decision = self._router.route(request, hint, self._loads(), approximate=True)
        settings = self.settings
        may_inject = (
            settings.inject_usage and replaceable and _may_inject(head, request)
        )
        if may_inject:
            decision = replace(decision, usage_not_requested=False)
        if self._wants_feedback(decision):
            decision = self._router.with_bound(decision)
            asking = ask_for_usage(bytes(body)) if may_inject else None
            return Decided(decision, head, True, asking)
        if settings.decision_tokens:
            decision = self._router.with_bound(decision)
            token = write_decision_token(decision)
            return Decided(decision, head, False, None, token)
        decision = replace(decision, features=None)  # 8 kB that nobody will read
        return Decided(decision, head)

    def keep(self, head: RequestHead, body_bytes: int = 0) -> Decided:
        """Decide about a response that a server keeps: always for the same pool.

        Its server alone has it, so neither its size nor the load may move it.
        """
        pool = self._responses_pool or self._router.policy.default
        return self._decided(Decision(pool, Reason.STORED, body_bytes=body_bytes), head)

    def _is_kept(self, head: RequestHead, request: Request) -> bool:
        if head.target.endpoint is not RESPONSES:
            return False
        if request.stored is None:  # the API's default is to keep it, vLLM's is not
            return self._responses_pool is not None
        return request.stored

    def fail_open(self, head: RequestHead, reason: Reason, body_bytes: int) -> Decided:
        """Decide about a request whose body is not read."""
        if self._responses_pool and head.target.endpoint is RESPONSES:
            decision = Decision(self._responses_pool, reason, body_bytes=body_bytes)
        else:
            decision = self._router.fail_open(reason, body_bytes, self._loads())
        return self._decided(decision, head)

    def after_fault(self, head: RequestHead, body_bytes: int) -> Decided:
        """Decide after an internal error; the pools' load is not asked for again."""
        return self._decided(self._router.fail_open(Reason.FAULT, body_bytes), head)

    def last_resort(self, head: RequestHead, body_bytes: int) -> Decided:
        """Decide if not even the router can be asked."""
        default = self._router.policy.default
        decision = Decision(default, Reason.FAULT, body_bytes=body_bytes)
        return Decided(decision, head)

    def _decided(self, decision: Decision, head: RequestHead) -> Decided:
        """Return a decision that teaches nothing."""
        tokens = self.settings.decision_tokens
        token = write_decision_token(decision) if tokens else b""
        return Decided(decision, head, decision_token=token)


def _may_inject(head: RequestHead, request: Request) -> bool:
    """Return whether a request can be made to ask for usage."""
    return (
        request.stream
        and not request.asks_usage
        and not head.headers.get("content-encoding")
        and head.target.endpoint.stream_options
    )
