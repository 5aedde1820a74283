"""Settings shared by all exchanges, and the headers that they read."""

from __future__ import annotations

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
"""The headers that an exchange reads in addition to the category header."""

TRACE_HEADERS = ("traceparent", "tracestate")
"""The headers of the W3C's Trace Context."""


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """Settings shared by all exchanges."""

    max_body_bytes: int = MAX_BODY_BYTES
    """Size limit in bytes; larger bodies are not read. It must not exceed Envoy's
    buffer limit, otherwise a larger request hangs in Envoy."""
    paths: PathTable = ANY_PREFIX
    """The request paths that are routed."""
    reads_unknown_length: bool = True
    """Whether to request a body even if the headers do not state its length."""
    responses_pool: str | None = None
    """The pool of stored responses. None selects the default pool; a request that does
    not set ``store`` then counts as not stored."""
    category_header: str = "x-llm-category"
    model_header: str = ""
    """Request header with the model name, which takes precedence over the body; empty
    if unused."""
    inject_usage: bool = False
    """Whether to request usage on behalf of clients that stream without requesting
    it."""
    shadow: bool = False
    """Whether to keep every request's route; the router still decides and learns."""
    decision_tokens: bool = False
    """Whether to attach each decision for the access log, unless its response is
    observed in the stream, so that nothing is learned twice."""
    traced: bool = False
    """Whether to also read the request's W3C trace context."""
    headers_read: dict[bytes, str] = field(init=False)
    """Names of the headers to read, by their bytes on the wire."""

    def __post_init__(self) -> None:
        traced = TRACE_HEADERS if self.traced else ()
        model = (self.model_header,) if self.model_header else ()
        names = (*HEADERS_READ, self.category_header, *model, *traced)
        object.__setattr__(self, "headers_read", {n.encode(): n for n in names})
