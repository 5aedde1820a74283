"""One decision and its outcome as a line of JSON, without any client text.

``replay`` evaluates such lines at any threshold; ``plan`` and ``simulate`` use their
``time`` and ``usage`` as a workload.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import astuple

from extproc.exchange.events import Observation, Serving
from extproc.routing.decision import Count, DecisionFields, Outcome, decision_fields
from extproc.routing.policy import Pool

_NOT_SERVED = msgspec.UNSET


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: Count | None
    completion_tokens: Count | None


class _Decided(DecisionFields, frozen=True, kw_only=True):
    """A decision's fields, and the limits of its pool at the time."""

    max_model_len: Count
    threshold_tokens: Count


class ObservationLine(msgspec.Struct, frozen=True):
    """One line of a recording."""

    time: float
    """Time of the outcome, in seconds since the epoch."""
    status: int
    usage: _Usage
    truncated: bool
    attempts: int
    decision: _Decided
    cluster: str | msgspec.UnsetType = _NOT_SERVED
    """The cluster that responded; absent if the access log did not report it."""
    first_byte_s: float | msgspec.UnsetType | None = _NOT_SERVED

    @property
    def observation(self) -> Observation:
        """The observation that was written, without a model name."""
        decided = self.decision
        pool = Pool(
            decided.pool,
            decided.max_model_len,
            decided.threshold_tokens,
            decided.base_model,
        )
        outcome = Outcome(
            self.status,
            self.usage.prompt_tokens,
            self.usage.completion_tokens,
            self.truncated,
            self.attempts,
        )
        serving = None
        if not isinstance(self.cluster, msgspec.UnsetType):
            first_byte_s = self.first_byte_s
            if isinstance(first_byte_s, msgspec.UnsetType):
                first_byte_s = None
            serving = Serving(self.cluster, first_byte_s)
        return Observation(decided.decision(pool), outcome, serving)


_decode = msgspec.json.Decoder(ObservationLine, strict=False).decode


def write_line(observation: Observation, time_s: float) -> bytes:
    """Return an observation as a line, including the line feed.

    Args:
        observation: a decision and its outcome.
        time_s: time of the outcome, in seconds since the epoch.
    """
    decision, outcome = observation.decision, observation.outcome
    serving = observation.serving
    line = ObservationLine(
        time=round(time_s, 3),
        status=outcome.status,
        usage=_Usage(outcome.prompt_tokens, outcome.completion_tokens),
        truncated=outcome.truncated,
        attempts=outcome.attempts,
        decision=_Decided(
            *astuple(decision_fields(decision)),
            max_model_len=decision.pool.max_model_len,
            threshold_tokens=decision.pool.threshold_tokens,
        ),
    )
    if serving is not None:
        first_byte_s = serving.first_byte_s
        line = msgspec.structs.replace(
            line,
            cluster=serving.cluster,
            first_byte_s=None if first_byte_s is None else round(first_byte_s, 6),
        )
    return msgspec.json.encode(line) + b"\n"


def read_line(line: bytes) -> ObservationLine:
    """Parse a line that ``write_line`` wrote.

    Raises:
        ValueError: an invalid line; the message names the key and the expected value.
    """
    try:
        return _decode(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
