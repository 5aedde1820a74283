"""Settings of the estimate: tokens of the prompt, of media and of the answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from extproc.config.accepted import NOT_NEGATIVE, POSITIVE
from extproc.schema import check


class EstimatorName(StrEnum):
    """Names of the estimators."""

    TEXT = "text"
    EMA_TEXT = "ema-text"
    EMA = "ema"
    BYTES_OVER_FOUR = "bytes/4"
    SEMANTIC_ROUTER = "semantic-router"


@dataclass(frozen=True, slots=True)
class EstimatorConfig:
    """Estimator of prompt tokens."""

    name: EstimatorName = EstimatorName.TEXT
    """`text` learns from text features, with a bound at the stated risk. `ema-text` is
    a ratio of decoded text, and `ema` the papers' ratio of bytes. `bytes/4` and
    `semantic-router` are for comparison."""
    beta: float = field(
        default=0.95, metadata=check("between 0 and 1", lambda value: 0 < value < 1)
    )
    """`ema`: weight of the old ratio when a new sample arrives."""
    gamma: float = field(default=1.0, metadata=NOT_NEGATIVE)
    """`ema`: standard deviations subtracted from the ratio, for safety."""
    models: int = field(
        default=64, metadata=check("from 1 to 10000", lambda value: 1 <= value <= 10000)
    )
    """Without `models`: maximum number of model names that are learned separately.
    Further names are learned together, as `other`, until a name has been idle for
    20,000 responses. With `models`, each configured model is learned separately."""


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """Output tokens reserved for a request."""

    default_tokens: int = field(default=512, metadata=POSITIVE)
    """Tokens reserved if the client sets no limit, until answers have been observed."""
    quantile: float = field(
        default=0.95, metadata=check("between 0 and 1", lambda value: 0 < value < 1)
    )
    """Share of answers without a limit that the learned reservation covers."""
    ceiling_tokens: int = field(default=4096, metadata=POSITIVE)
    """Maximum of the learned reservation; at least `default_tokens`."""
    truncation_risk: float = field(
        default=0.005,
        metadata=check("at least 0 and below 0.5", lambda value: 0 <= value < 0.5),
    )
    """Share of answers that may exceed their reservation although the client's limit
    allows them; in a smaller pool the window may truncate these. 0: reserve the full
    limit that each client declares."""


@dataclass(frozen=True, slots=True)
class ConversationsConfig:
    """Memory of prompt counts, from which later turns of a conversation start."""

    entries: int = field(default=65_536, metadata=NOT_NEGATIVE)
    """Prompts to remember, 16 bytes each, shared by all workers; the oldest are
    dropped. 0 disables it. It needs every response to be observed: set
    `feedback.access_log`, or `feedback.sample: all`."""


@dataclass(frozen=True, slots=True)
class RiskConfig:
    """Risk of choosing a pool that is too small."""

    under_estimate_rate: float = field(
        default=0.01,
        metadata=check("above 0 and below 0.5", lambda value: 0 < value < 0.5),
    )
    """Share of requests whose prompt may exceed the bound used for routing."""
    every_estimator: bool = False
    """Apply this rate to every estimator, not only to `text`. Otherwise the other
    estimators use their point estimate as the bound, as published."""


@dataclass(frozen=True, slots=True)
class MediaConfig:
    """Prompt tokens assumed for media of unknown size, until answers are observed."""

    image_tokens: int = field(default=1024, metadata=NOT_NEGATIVE)
    audio_tokens: int = field(default=1500, metadata=NOT_NEGATIVE)
    file_tokens: int = field(default=2048, metadata=NOT_NEGATIVE)
