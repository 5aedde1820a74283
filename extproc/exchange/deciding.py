"""Decide about a request from its headers and body."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from extproc.exchange.body_parser import BodyParser
from extproc.exchange.decision_token import write_decision_token
from extproc.exchange.events import Decided, NotRouted, RequestHead
from extproc.exchange.gateway_limit import GatewayLimit
from extproc.exchange.openai import RESPONSES, Endpoint, ask_for_usage
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.models import NO_NAMES, AnyRouter, as_base
from extproc.routing.policy import Pool, PoolLoad, Reason
from extproc.routing.request import Request
from extproc.routing.router import Decision, Router

Body = bytes | bytearray | memoryview


class Decider:
    """Decides about requests; shared by all exchanges of one configuration.

    Args:
        router: makes the decisions.
        settings: shared by all exchanges.
        wants_feedback: returns whether to observe the response; called once for each
            decision whose response could be learned from.
        loads: returns the current load of each pool whose load is known.
        served: maps each model name that a server lists to the server's pool.
        bases: maps each such name to the server's base model.
        gateway_limit: the gateway's limit for bodies; None if unknown.
    """

    __slots__ = (
        "_bases",
        "_loads",
        "_responses_pool",
        "_router",
        "_served",
        "_wants_feedback",
        "gateway_limit",
        "settings",
    )

    def __init__(
        self,
        router: AnyRouter,
        settings: ExchangeSettings,
        wants_feedback: Callable[[Decision], bool],
        loads: Callable[[], Mapping[str, PoolLoad] | None] = lambda: None,
        served: Callable[[], Mapping[str, str]] = lambda: NO_NAMES,
        bases: Callable[[], Mapping[str, str]] = lambda: NO_NAMES,
        gateway_limit: GatewayLimit | None = None,
    ) -> None:
        self.settings = settings
        self.gateway_limit = gateway_limit or GatewayLimit(settings.max_body_bytes)
        self._router = router
        self._served = served
        self._bases = bases
        self._wants_feedback = wants_feedback
        self._loads = loads
        self._responses_pool = router.pool(settings.responses_pool or "")

    def parser(self, head: RequestHead, body: Body) -> BodyParser:
        """Return a parser for a complete request body."""
        return BodyParser(
            head.target,
            bytes(body) if isinstance(body, bytearray) else body,
            head.headers.get("content-encoding", ""),
            self.settings.max_body_bytes,
        )

    def decide(
        self, head: RequestHead, parser: BodyParser, body: Body, *, replaceable: bool
    ) -> Decided | NotRouted:
        """Decide about a request whose body is complete.

        Args:
            head: the request's headers.
            parser: the parser of the body; it is run to the end here.
            body: as received.
            replaceable: whether Envoy accepts a replacement for the body.

        Raises:
            Exception: an internal error.
        """
        request = parser.finish()
        if isinstance(request, Reason):
            return self.fail_open(head, request, len(body))
        router = self.find(head.headers, request.model)
        if router is None:
            return NotRouted.UNKNOWN_MODEL
        if self.asks_to_keep(router, head.target.endpoint, request):
            return self._decided(self.stored(router, len(body)), head)
        hint = head.headers.get(self.settings.category_header)
        request = as_base(request, self._bases())
        decision = router.route(request, hint, self._loads(), approximate=True)
        settings = self.settings
        may_inject = (
            settings.inject_usage and replaceable and _may_inject(head, request)
        )
        if may_inject:
            decision = replace(decision, usage_not_requested=False)
        if self._wants_feedback(decision):
            decision = router.with_bound(decision)
            body_with_usage = ask_for_usage(bytes(body)) if may_inject else None
            return Decided(decision, head, True, body_with_usage)
        if settings.decision_tokens:
            decision = router.with_bound(decision)
            token = write_decision_token(decision)
            return Decided(decision, head, False, None, token)
        return Decided(decision, head)

    def find(self, headers: Mapping[str, str], name: str) -> Router | None:
        """Return the router of the requested model, or None.

        Args:
            headers: the request's headers; the model header takes precedence.
            name: the model in the body, or in the path if the body was not read.
        """
        header = self.settings.model_header
        return self.find_named(headers.get(header, "") if header else "", name)

    def find_named(self, named: str, requested: str) -> Router | None:
        """Return the router of a model by name, or None.

        Args:
            named: the name from an upstream parser; takes precedence if the model is
                known. May be empty.
            requested: the name in the request itself.
        """
        router, served = self._router, self._served
        if isinstance(router, Router):
            return router
        found = router.find_known(named, served()) if named else None
        return found or router.find(requested, served())

    def keep(self, head: RequestHead) -> Decided | NotRouted:
        """Decide about a request that refers to a stored response."""
        header = self.settings.model_header
        router = self.find_keeper(head.headers.get(header, "") if header else "")
        if router is None:
            return NotRouted.UNKNOWN_MODEL
        return self._decided(self.stored(router), head)

    def find_keeper(self, named: str = "") -> Router | None:
        """Return the router of the model that stored a response.

        The response's identifier does not contain the model. The model is the one that
        an upstream parser names, otherwise the model of ``responses_pool``, otherwise
        the model for unknown names.
        """
        if isinstance(self._router, Router):
            return self._router
        found = self._router.find_known(named, self._served()) if named else None
        if found is None and self._responses_pool is not None:
            found = self._router.of_pool(self._responses_pool)
        return found or self._router.find("")

    def stored(self, router: Router, body_bytes: int = 0) -> Decision:
        """Send a request for a stored response to the pool that stores responses.

        Only that pool's server has the response, so the request's size and the load
        must not change the pool.
        """
        pool = self._pool_of_responses(router) or router.policy.default
        return Decision(pool, Reason.STORED, model=router.model, body_bytes=body_bytes)

    def _pool_of_responses(self, router: Router) -> Pool | None:
        """Return ``responses_pool`` if that pool belongs to the model, else None."""
        pool = self._responses_pool
        return None if pool is None else router.pool(pool.name)

    def asks_to_keep(
        self, router: Router, endpoint: Endpoint, request: Request
    ) -> bool:
        """Return whether the server stores the response, or reads a stored one."""
        if endpoint is not RESPONSES:
            return False
        if request.stored is None:  # OpenAI's API stores by default, vLLM does not
            return self._pool_of_responses(router) is not None
        return request.stored

    def fail_open(
        self, head: RequestHead, reason: Reason, body_bytes: int
    ) -> Decided | NotRouted:
        """Decide about a request whose body is not read.

        If several models are configured, the request is routed if its headers or path
        name a model, or if there is a model for unknown names.
        """
        router = self.find(head.headers, head.target.model)
        if router is None:
            return NotRouted.UNKNOWN_MODEL
        decision = self.unread(router, head.target.endpoint, reason, body_bytes)
        return self._decided(decision, head)

    def unread(
        self,
        router: Router,
        endpoint: Endpoint | None,
        reason: Reason,
        body_bytes: int,
    ) -> Decision:
        """Decide for one model about a request whose body is not read."""
        pool = self._pool_of_responses(router)
        if pool is None or endpoint is not RESPONSES:
            return router.fail_open(reason, body_bytes, self._loads())
        return Decision(pool, reason, model=router.model, body_bytes=body_bytes)

    def after_fault(self, head: RequestHead, body_bytes: int) -> Decided | NotRouted:
        """Decide after an internal error, without reading the pools' load again."""
        router = self.find(head.headers, head.target.model)
        if router is None:
            return NotRouted.UNKNOWN_MODEL
        return self._decided(router.fail_open(Reason.FAULT, body_bytes), head)

    def last_resort(self, head: RequestHead, body_bytes: int) -> Decided:
        """Return a decision if even the router fails; it is used only for counting."""
        default = self._router.routers[0].policy.default
        decision = Decision(default, Reason.FAULT, body_bytes=body_bytes)
        return Decided(decision, head)

    def _decided(self, decision: Decision, head: RequestHead) -> Decided:
        """Return a decision from which nothing is learned."""
        tokens = self.settings.decision_tokens
        token = write_decision_token(decision) if tokens else b""
        return Decided(decision, head, decision_token=token)


def _may_inject(head: RequestHead, request: Request) -> bool:
    """Return whether ``include_usage`` can be added to the request."""
    return (
        request.stream
        and not request.asks_usage
        and not head.headers.get("content-encoding")
        and head.target.endpoint.stream_options
    )
