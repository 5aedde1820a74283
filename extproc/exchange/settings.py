"""What all exchanges share, and the headers that they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from extproc.exchange.body_parser import MAX_BODY_BYTES
from extproc.exchange.paths import ANY_PREFIX, PathTable

HEADERS_READ = (
    ":method",
    ":path",
    ":status",
    "content-encoding",
    "content-length",
    "content-type",
    "x-envoy-attempt-count",
)
"""The headers that an exchange reads, beside the category header."""

TRACE_HEADERS = ("traceparent", "tracestate")
"""The headers of the W3C's Trace Context."""


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """What all exchanges share."""

    max_body_bytes: int = MAX_BODY_BYTES
    """Bodies above this are not read. Must not exceed Envoy's buffer limit, or the
    request hangs there."""
    paths: PathTable = ANY_PREFIX
    """The request paths that are routed."""
    reads_unknown_length: bool = True
    """Ask for a body whose length the headers do not give."""
    responses_pool: str | None = None
    """The pool of the responses that a server keeps. None: the default pool, and a
    request that does not say whether it is to be kept is taken not to be."""
    category_header: str = "x-llm-category"
    model_header: str = ""
    """Request header that names the model, before the body does; empty: none."""
    inject_usage: bool = False
    """Ask for usage in the place of a stream's client that did not."""
    shadow: bool = False
    """Decide and learn, but leave every request on the route that it has."""
    decision_tokens: bool = False
    """Hand each decision out, to come back in the access log; except for those whose
    response is observed here, as nothing is to be learned twice."""
    traced: bool = False
    """Read the request's W3C trace context, too."""
    headers_read: Mapping[bytes, str] = field(init=False)
    """Names of the headers that an exchange reads, by their bytes on the wire."""

    def __post_init__(self) -> None:
        traced = TRACE_HEADERS if self.traced else ()
        model = (self.model_header,) if self.model_header else ()
        names = (*HEADERS_READ, self.category_header, *model, *traced)
        object.__setattr__(self, "headers_read", {n.encode(): n for n in names})
