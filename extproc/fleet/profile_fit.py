"""The fit of a plane to the decode and prefill samples of a measured server.

A step that decodes n sequences with c tokens of context in total takes ``base + seq n +
context c``. Without other requests, the first token after a prompt of p tokens takes
``request + base + token p + pair p (p + 1) / 2``, where ``request`` is the time for
HTTP and queues per request. Coefficients are constrained to be non-negative, since
noise would otherwise make small coefficients negative.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from extproc.fleet.steptime import Linear


class ProfileError(ValueError):
    """An unusable profile; the message has the key and the reason."""


@dataclass(frozen=True, slots=True)
class DecodeSample:
    """Mean duration of a step with ``seqs`` decoding sequences."""

    seqs: int
    context_tokens: float
    """Number of context tokens of all sequences together."""
    step_s: float


@dataclass(frozen=True, slots=True)
class PrefillSample:
    """Time to the first token of a prompt without concurrent requests."""

    prompt_tokens: int
    ttft_s: float


def fit(
    decode: Sequence[DecodeSample], prefill: Sequence[PrefillSample]
) -> tuple[Linear, float]:
    """Fit the plane and the time per request.

    The method is least squares of relative errors, with coefficients of at least 0.

    Raises:
        ProfileError: there are too few samples to determine the coefficients.
    """
    if len(decode) < 3 or len(prefill) < 3:
        raise ProfileError(
            f"{len(decode)} decode and {len(prefill)} prefill samples; expected 3 each"
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


def _non_negative(
    rows: npt.NDArray[np.float64], times: npt.NDArray[np.float64]
) -> list[float]:
    """Solve least squares by the active-set method, dropping negative coefficients."""
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
    """Return the mean relative error of the fit on samples."""
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
