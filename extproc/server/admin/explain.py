"""Explaining a request to whoever asks: from its bytes to every number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from extproc.exchange.body_parser import BodyParser
from extproc.exchange.openai import DEFAULT_PATH, find_endpoint
from extproc.routing.explanation import explain, explain_failure
from extproc.routing.policy import PoolLoad, Reason
from extproc.routing.router import Router


class Explainer:
    """Explains what a router would decide, without deciding anything.

    Nothing is learned, counted, logged or kept.

    Args:
        router: the one that routes.
        max_body_bytes: of a body after content-decoding.
        loads: what is known of the pools' load.
    """

    def __init__(
        self,
        router: Router,
        max_body_bytes: int,
        loads: Callable[[], Mapping[str, PoolLoad] | None] = lambda: None,
    ) -> None:
        self._router = router
        self._max_body_bytes = max_body_bytes
        self._loads = loads

    def begin_parsing(
        self, body: bytes, path: str = DEFAULT_PATH, encoding: str = ""
    ) -> BodyParser:
        """Begin to read a request, which may take long; see ``explain``."""
        return BodyParser(path, body, encoding, self._max_body_bytes)

    def explain(
        self,
        body: bytes,
        path: str = DEFAULT_PATH,
        hint: str | None = None,
        encoding: str = "",
        reading: BodyParser | None = None,
    ) -> dict[str, Any]:
        """Explain one request, as the live exchange would have read it.

        Args:
            body: as on the wire.
            path: the request's path.
            hint: the category that its hint header named.
            encoding: its ``content-encoding``.
            reading: of the same; None: it is read here, in one go.
        """
        told: dict[str, Any] = {"path": path, "routed": find_endpoint(path) is not None}
        reading = reading or self.begin_parsing(body, path, encoding)
        request = reading.finish()
        if isinstance(request, Reason):
            return told | explain_failure(self._router, request, len(body))
        return told | explain(self._router, request, hint, self._loads())
