"""Settings of the estimate: tokens of the prompt, of media and of the answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from extproc.config.accepted import NOT_NEGATIVE, POSITIVE
from extproc.schema import check


class EstimatorName(StrEnum):
    """Which estimator routes."""

    TEXT = "text"
    EMA_TEXT = "ema-text"
    EMA = "ema"
    BYTES_OVER_FOUR = "bytes/4"
    SEMANTIC_ROUTER = "semantic-router"


@dataclass(frozen=True, slots=True)
class EstimatorConfig:
    """What estimates prompt tokens."""

    name: EstimatorName = EstimatorName.TEXT
    """`text` learns from text features, with a bound at the stated risk; `ema-text` is
    a ratio of decoded text, `ema` the papers' own, `bytes/4` and `semantic-router` are
    there to compare with."""
    beta: float = field(
        default=0.95, metadata=check("between 0 and 1", lambda value: 0 < value < 1)
    )
    """`ema`: weight of the old ratio against a new sample."""
    gamma: float = field(default=1.0, metadata=NOT_NEGATIVE)
    """`ema`: deviations taken off the ratio, for safety."""
    models: int = field(
        default=64, metadata=check("from 1 to 10000", lambda value: 1 <= value <= 10000)
    )
    """Without `models`: names of models that are learned apart. Requests for the others
    are learned as one, `other`, until a name has been idle for 20,000 responses. With
    `models`, each of them is learned apart."""


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """How much output a request is allowed for."""

    default_tokens: int = field(default=512, metadata=POSITIVE)
    """Where the client set no limit, until answers have been seen."""
    quantile: float = field(
        default=0.95, metadata=check("between 0 and 1", lambda value: 0 < value < 1)
    )
    """Share of the answers to such requests that the learned allowance covers."""
    ceiling_tokens: int = field(default=4096, metadata=POSITIVE)
    """The most that is learned; at least `default_tokens`."""
    truncation_risk: float = field(
        default=0.005,
        metadata=check("at least 0 and below 0.5", lambda value: 0 <= value < 0.5),
    )
    """Share of the answers that may exceed what is reserved for them under a limit that
    the client declared; the window of a smaller pool may cut these, though their client
    allowed more. 0: reserve all that clients declare."""


@dataclass(frozen=True, slots=True)
class ConversationsConfig:
    """Memory of conversations: a later turn starts from the count of the one before."""

    entries: int = field(default=65_536, metadata=NOT_NEGATIVE)
    """Prompts whose counts are remembered, 8 bytes each, by all workers together; the
    oldest are forgotten. 0: none. It takes every response to be observed: with
    `feedback.access_log` or `feedback.sample: all`."""


@dataclass(frozen=True, slots=True)
class RiskConfig:
    """How sure to be before a smaller pool is chosen."""

    under_estimate_rate: float = field(
        default=0.01,
        metadata=check("above 0 and below 0.5", lambda value: 0 < value < 0.5),
    )
    """Share of the requests whose prompt may exceed the bound that routing uses."""
    every_estimator: bool = False
    """Hold that rate with every estimator, not with `text` only: the others' point
    estimates are otherwise their bounds, as published."""


@dataclass(frozen=True, slots=True)
class MediaConfig:
    """Prompt tokens expected of parts of unknown size, before a model has answered."""

    image_tokens: int = field(default=1024, metadata=NOT_NEGATIVE)
    audio_tokens: int = field(default=1500, metadata=NOT_NEGATIVE)
    file_tokens: int = field(default=2048, metadata=NOT_NEGATIVE)
