"""Settings of which requests are read, and which responses are learned from."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from extproc.config.accepted import HEADER, NAME, PREFIXES
from extproc.schema import check


class UnknownLength(StrEnum):
    """What happens to a request whose headers do not give its body's length."""

    READ = "read"
    DEFAULT_POOL = "default_pool"


@dataclass(frozen=True, slots=True)
class RequestsConfig:
    """Which requests are read."""

    unknown_length: UnknownLength = UnknownLength.READ
    """A body without `content-length` (chunked, or HTTP/2): `read` asks Envoy for it,
    which answers 413 if it is above `request_body_buffer_limit`. `default_pool` sends
    it there unread, at any length."""
    path_prefixes: tuple[str, ...] | None = field(default=None, metadata=PREFIXES)
    """What stands before the path of an API, with or without its `/v1`; `""` is
    nothing. Unset: any prefix, as in `/team/v1/chat/completions`."""
    responses_pool: str | None = field(default=None, metadata=NAME)
    """The pool whose vLLM keeps responses (`VLLM_ENABLE_RESPONSES_API_STORE`): takes
    all of `/v1/responses` but what says `store: false`. Unset: the largest pool takes
    what says `store: true`, `background: true` or goes on from a kept response."""
    retry_cut_answers: bool = False
    """Let Envoy ask the largest pool again for an answer that a smaller pool's window
    cut though its client allowed more. Streams are not: they have reached the client.
    Each costs what the cut answer did, in time and tokens: at the most
    `output.truncation_risk` of the answers."""


@dataclass(frozen=True, slots=True)
class CategoryConfig:
    """Where a request's category may be hinted."""

    header: str = field(default="x-llm-category", metadata=HEADER)
    """Request header with a hint; values outside the known categories are ignored."""
    hints: tuple[str, ...] = ()
    """Categories accepted beside the built-in ones."""


@dataclass(frozen=True, slots=True)
class FeedbackConfig:
    """Which responses are looked at for their usage."""

    sample: float | Literal["auto", "all"] = field(
        default="auto",
        metadata=check(
            "auto, all, or a share between 0 and 1",
            lambda value: isinstance(value, str) or 0 <= value <= 1,
        ),
    )
    """`auto`: the first 200 responses of a model, and 20 of each of its categories,
    then a thin sample that thickens near a pool's limit and when errors grow."""
    access_log: bool = False
    """Learn from Envoy's access log (envoy/access_log.yaml): of every response, and
    none is looked at as it passes, unless `sample` is `all` or a share."""
    inject_usage: bool = False
    """Ask for usage where a sampled stream's client did not; the extra chunk is taken
    out on the way back."""
