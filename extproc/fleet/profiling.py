"""A measured instance: what ``extproc profile`` writes and ``plan`` takes.

Step time is fitted as a plane over what was measured at the client: a step that decodes
n sequences of c tokens of context in all takes ``base + seq n + context c``, and a
prompt of p tokens adds ``token p``. No coefficient may be negative, which measurement
noise would otherwise make of the small ones.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

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
        max_num_seqs: None where the server does not say.
        measured: of what, when and how well the fit reproduces its own samples.
    """

    model: str
    step_time: Linear
    num_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
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


def fit(decode: Sequence[DecodeSample], prefill: Sequence[PrefillSample]) -> Linear:
    """Fit the plane by least squares of relative errors, coefficients at least 0.

    Raises:
        ProfileError: too few samples to tell the terms apart.
    """
    if len(decode) < 3 or len(prefill) < 2:
        raise ProfileError(
            f"{len(decode)} decode and {len(prefill)} prefill samples, expected 3 and 2"
        )
    rows = [[1.0, s.seqs, 0.0, s.context_tokens, 0.0] for s in decode]
    rows += [
        # The step that samples the first token reads its own prompt: pairs.
        [1.0, 0.0, s.prompt_tokens, 0.0, s.prompt_tokens * (s.prompt_tokens + 1) / 2]
        for s in prefill
    ]
    times = [s.step_s for s in decode] + [s.ttft_s for s in prefill]
    base, seq, token, context, pair = _non_negative(np.array(rows), np.array(times))
    return Linear(max(base, 1e-6), seq, token, context, pair)


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
    decode: Sequence[DecodeSample],
    prefill: Sequence[PrefillSample],
) -> float:
    """Mean relative error of the plane on samples."""
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
            step_time.fixed_s(s.prompt_tokens, 0)
            + step_time.pair_s * s.prompt_tokens * (s.prompt_tokens + 1) / 2
            - s.ttft_s
        )
        / s.ttft_s
        for s in prefill
    ]
    return float(np.mean(errors))
