"""A measured instance: what ``extproc profile`` writes and ``plan`` takes.

Step time is fitted as a plane over what was measured at the client: a step that decodes
n sequences of c tokens of context in all takes ``base + seq n + context c``, and the
first token of a lone prompt of p tokens takes ``request + base + token p + pair
p (p + 1) / 2``, the first term being what HTTP and queues cost once a request. No
coefficient may be negative, which measurement noise would otherwise make of the small
ones.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from extproc.fleet.instance import Instance, Job
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.steptime import Linear


class ProfileError(ValueError):
    """A profile that cannot be used: which key, and why."""


@dataclass(frozen=True, slots=True)
class DecodeSample:
    """Mean time of a step while ``seqs`` sequences decode."""

    seqs: int
    context_tokens: float
    """Of all sequences together."""
    step_s: float


@dataclass(frozen=True, slots=True)
class PrefillSample:
    """Time to the first token of a lone prompt."""

    prompt_tokens: int
    ttft_s: float


@dataclass(frozen=True, slots=True)
class Profile:
    """One instance as measured.

    Attributes:
        request_s: what a request takes beside its steps, at the client.
        max_num_seqs, max_num_batched_tokens: as the server was started; it does not
            tell.
        measured: of what, when and how well the fit reproduces its own samples.
    """

    model: str
    step_time: Linear
    request_s: float
    num_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpus: int
    measured: dict[str, Any]

    def to_document(self) -> dict[str, Any]:
        """As JSON."""
        return {"profile": 1, **asdict(self)}

    @classmethod
    def from_document(cls, document: Any) -> "Profile":
        """From JSON.

        Raises:
            ProfileError: not a profile, or a key is missing or of the wrong kind.
        """
        if not isinstance(document, dict) or document.get("profile") != 1:
            raise ProfileError("profile: expected 1, as `extproc profile` writes it")
        fields = {key: value for key, value in document.items() if key != "profile"}
        try:
            step_time = Linear(**fields.pop("step_time"))
            profile = cls(step_time=step_time, **fields)
        except (KeyError, TypeError) as error:
            raise ProfileError(str(error)) from error
        if profile.num_blocks < 2 or profile.block_size < 1:
            raise ProfileError(
                f"num_blocks: {profile.num_blocks}, block_size: {profile.block_size}, "
                "expected at least 2 and 1"
            )
        if step_time.base_s <= 0:
            raise ProfileError(f"step_time.base_s: {step_time.base_s}, expected > 0")
        return profile


def fit(
    decode: Sequence[DecodeSample], prefill: Sequence[PrefillSample]
) -> tuple[Linear, float]:
    """Fit the plane, and the time of a request beside it.

    Least squares of relative errors, coefficients at least 0.

    Raises:
        ProfileError: too few samples to tell the terms apart.
    """
    if len(decode) < 3 or len(prefill) < 3:
        raise ProfileError(
            f"{len(decode)} decode and {len(prefill)} prefill samples, expected 3 each"
        )
    rows = [[1.0, s.seqs, 0.0, s.context_tokens, 0.0, 0.0] for s in decode]
    rows += [[1.0, 0.0, s.prompt_tokens, 0.0, _pairs(s), 1.0] for s in prefill]
    times = [s.step_s for s in decode] + [s.ttft_s for s in prefill]
    base, seq, token, context, pair, request = _non_negative(
        np.array(rows), np.array(times)
    )
    return Linear(max(base, 1e-6), seq, token, context, pair), request


def _pairs(sample: PrefillSample) -> float:
    return sample.prompt_tokens * (sample.prompt_tokens + 1) / 2


def _non_negative(rows: Any, times: Any) -> list[float]:
    """Least squares with the active-set method: drop what comes out negative."""
    weighted = rows / times[:, None]
    scale = np.abs(weighted).max(axis=0)
    scale[scale == 0] = 1.0
    kept = list(range(weighted.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(
            weighted[:, kept] / scale[kept], np.ones(len(times)), rcond=None
        )
        if (found >= 0).all():
            break
        kept.pop(int(np.argmin(found)))
    result = np.zeros(weighted.shape[1])
    result[kept] = found / scale[kept]
    return [float(value) for value in result]


def relative_error(
    step_time: Linear,
    request_s: float,
    decode: Sequence[DecodeSample],
    prefill: Sequence[PrefillSample],
) -> float:
    """Mean relative error of the fit on samples."""
    errors = [
        abs(
            step_time.fixed_s(0, s.seqs)
            + step_time.context_s * s.context_tokens
            - s.step_s
        )
        / s.step_s
        for s in decode
    ]
    errors += [
        abs(
            request_s
            + step_time.fixed_s(s.prompt_tokens, 0)
            + step_time.pair_s * _pairs(s)
            - s.ttft_s
        )
        / s.ttft_s
        for s in prefill
    ]
    return float(np.mean(errors))


@dataclass(frozen=True, slots=True)
class Sent:
    """A request of the load that a profile is checked against."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a load came to, measured or predicted."""

    requests_per_s: float
    mean_ttft_s: float


def predict(profile: Profile, load: Sequence[Sent]) -> tuple[Outcome, int]:
    """Simulate the load on the profiled instance; its preemptions too."""
    limits = SchedulerLimits(
        profile.max_num_seqs,
        profile.max_num_batched_tokens,
        profile.max_model_len,
        profile.num_blocks,
        profile.block_size,
    )
    instance = Instance(limits, profile.step_time)
    for sent in load:
        instance.advance(sent.at_s)
        instance.add(Job(sent.at_s, sent.prompt_tokens, sent.output_tokens))
    instance.advance(math.inf)
    jobs = instance.finished
    ttfts = [job.first_token_s - job.arrival_s + profile.request_s for job in jobs]
    span_s = max(job.finish_s for job in jobs) - load[0].at_s + profile.request_s
    return (
        Outcome(len(jobs) / span_s, float(np.mean(ttfts))),
        instance.num_preemptions,
    )
