"""Settings of which requests are read and which responses are observed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from extproc.config.accepted import HEADER, NAME, PREFIXES
from extproc.schema import check


class UnknownLength(StrEnum):
    """Handling of a request whose headers do not give its body's length."""

    READ = "read"
    DEFAULT_POOL = "default_pool"


@dataclass(frozen=True, slots=True)
class RequestsConfig:
    """Requests whose body is read."""

    unknown_length: UnknownLength = UnknownLength.READ
    """Handling of a body without `content-length` (chunked, or HTTP/2). `read` requests
    it from Envoy, which answers 413 if it exceeds `request_body_buffer_limit`.
    `default_pool` sends every such request to the default pool unread."""
    path_prefixes: tuple[str, ...] | None = field(default=None, metadata=PREFIXES)
    """Prefixes allowed before an API's path, with or without its `/v1`; `""` is the
    empty prefix. Unset: any prefix, as in `/team/v1/chat/completions`."""
    responses_pool: str | None = field(default=None, metadata=NAME)
    """Pool whose vLLM stores responses (`VLLM_ENABLE_RESPONSES_API_STORE`): it receives
    all of `/v1/responses` except requests with `store: false`. Unset: the largest pool
    receives requests with `store: true` or `background: true`, and those that continue
    a stored response."""
    retry_cut_answers: bool = False
    """Let Envoy retry an answer on the largest pool if a smaller pool's window
    truncated it although the client's limit allowed more. Streams are not retried,
    since the client has already received them. A retry costs the time and tokens of the
    truncated answer, for at most `output.truncation_risk` of the answers."""


@dataclass(frozen=True, slots=True)
class CategoryConfig:
    """Source of a request's category hint."""

    header: str = field(default="x-llm-category", metadata=HEADER)
    """Request header with the hint; unknown categories are ignored."""
    hints: tuple[str, ...] = ()
    """Categories to accept in addition to the built-in ones."""


@dataclass(frozen=True, slots=True)
class FeedbackConfig:
    """Responses observed for their token usage."""

    sample: float | Literal["auto", "all"] = field(
        default="auto",
        metadata=check(
            "auto, all, or a share between 0 and 1",
            lambda value: isinstance(value, str) or 0 <= value <= 1,
        ),
    )
    """`auto` observes the first 200 responses of a model and 20 of each of its
    categories, then a sparse sample that grows near a pool's limit and when errors
    grow."""
    access_log: bool = False
    """Learn from Envoy's access log (envoy/access_log.yaml). It covers every response,
    and no response body is read unless `sample` is `all` or a share."""
    inject_usage: bool = False
    """Request usage in sampled streams if the client does not; the extra chunk is
    removed from the response."""
