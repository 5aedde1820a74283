"""Explains a request by computing every number of its decision from its bytes."""

from __future__ import annotations

from msgspec.structs import replace

from extproc.exchange.body_parser import BodyParser
from extproc.exchange.events import NotRouted
from extproc.exchange.openai import DEFAULT_PATH
from extproc.routing.explanation import (
    Explanation,
    FailedOpenExplanation,
    NotRoutedExplanation,
    RequestSize,
    explain,
    explain_failure,
)
from extproc.routing.models import as_base
from extproc.routing.policy import Reason
from extproc.server.in_force import InForce

AnyExplanation = Explanation | FailedOpenExplanation | NotRoutedExplanation


class Explainer:
    """Explains what a router would decide, without side effects.

    An explained request is not counted, logged or stored, and the router does not learn
    from it.

    Args:
        in_force: holder of the router.
    """

    def __init__(self, in_force: InForce) -> None:
        self._in_force = in_force

    def begin_parsing(
        self, body: bytes, path: str = DEFAULT_PATH, encoding: str = ""
    ) -> BodyParser:
        """Start parsing a request in steps, for use with ``explain``."""
        settings = self._in_force.now.settings
        target = settings.paths.find(path)
        return BodyParser(target, body, encoding, settings.max_body_bytes)

    def explain(
        self,
        body: bytes,
        path: str = DEFAULT_PATH,
        hint: str | None = None,
        encoding: str = "",
        reading: BodyParser | None = None,
        model_header: str = "",
    ) -> AnyExplanation:
        """Explain a request, parsed as in an exchange.

        Args:
            body: the request body as on the wire.
            path: the request's path.
            hint: category in the request's hint header.
            encoding: the request's ``content-encoding``.
            reading: parser of the same body; None to parse the body in one step.
            model_header: value of the request's model header, if such a header is
                configured.
        """
        now = self._in_force.now
        paths, decider = now.settings.paths, now.decider
        named = model_header if now.settings.model_header else ""
        reading = reading or self.begin_parsing(body, path, encoding)
        request = reading.finish()
        target = paths.find(path)
        endpoint = None if target is None else target.endpoint
        asked = "" if isinstance(request, Reason) else request.model
        if not asked and target is not None:
            asked = target.model
        by_identifier = paths.is_stored_response(path)
        if by_identifier:
            router = decider.find_keeper(named)
        else:
            router = decider.find_named(named, asked)
        explanation: AnyExplanation
        if router is None:
            explanation = NotRoutedExplanation(
                request=RequestSize(len(body)),
                not_routed=NotRouted.UNKNOWN_MODEL,
                asked=asked,
                models=[each.model for each in now.router.routers],
            )
        elif by_identifier:
            explanation = explain_failure(router, decider.stored(router, len(body)))
        elif isinstance(request, Reason):
            decision = decider.unread(router, endpoint, request, len(body))
            explanation = explain_failure(router, decision, reading.detail)
        elif endpoint is not None and decider.asks_to_keep(router, endpoint, request):
            explanation = explain_failure(router, decider.stored(router, len(body)))
        else:
            request = as_base(request, now.watch.base_names())
            explanation = explain(router, request, hint, now.loads())
        routed = by_identifier or target is not None
        return replace(explanation, path=path, routed=routed)
