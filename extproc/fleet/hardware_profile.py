"""The profile of a measured instance: output of ``extproc profile``, input of ``plan``.

A profile contains the range of the measurements, two checks against loads that were not
used for the fit, and a verdict on the checks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from extproc.fleet.instance import Instance
from extproc.fleet.job import Job
from extproc.fleet.profile_fit import ProfileError
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.steptime import Linear


class Outcome(msgspec.Struct, frozen=True):
    """The measured or predicted latencies of all requests of a load, in seconds.

    TTFT is measured at the client. A request's TPOT is the time from its first token to
    its last, divided by the number of tokens after the first.
    """

    requests_per_s: float
    mean_ttft_s: float
    p50_ttft_s: float | None = None
    p90_ttft_s: float | None = None
    p50_tpot_s: float | None = None
    p90_tpot_s: float | None = None


class Check(msgspec.Struct, frozen=True):
    """A load that was not used for the fit, with its measured and predicted latencies.

    Attributes:
        load: offered rate divided by the predicted capacity.
        throughput_error, mean_ttft_error: predicted value divided by the measured one,
            minus 1.
    """

    requests: int
    load: float
    measured: Outcome
    predicted: Outcome
    throughput_error: float
    mean_ttft_error: float
    preemptions_measured: int
    preemptions_predicted: int

    def errors(self) -> dict[str, float]:
        """Return the relative error of the prediction for each measured figure."""
        pairs = {
            name: (getattr(self.measured, name), getattr(self.predicted, name))
            for name in Outcome.__struct_fields__
        }
        return {
            name: theirs / ours - 1
            for name, (ours, theirs) in pairs.items()
            if ours and theirs is not None
        }


class Measured(msgspec.Struct, frozen=True):
    """The range of a profile's measurements, and the checks of its predictions."""

    fit_error: float
    """Mean relative error of the fit on its own samples."""
    decode_samples: int = 0
    prefill_samples: int = 0
    seed: int = 0
    max_batch: int | None = None
    """Maximum number of sequences that decoded together."""
    max_context_tokens: int | None = None
    """Longest context of one sequence."""
    max_prompt_tokens: int | None = None
    """Longest prompt without concurrent requests."""
    check: Check | None = None
    """Check at a load above the capacity, so that requests queue."""
    ordinary_check: Check | None = None
    """Check at a load of 60 % of the capacity."""


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The measurements of one instance.

    Attributes:
        request_s: time that the client measures for a request in addition to its steps.
        max_num_seqs, max_num_batched_tokens: values of the server's flags, which the
            server does not publish.
        usd_per_gpu_hour: the operator's price; None if not given.
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
    measured: Measured
    usd_per_gpu_hour: float | None = None

    def to_document(self) -> dict[str, object]:
        """Return the profile as a JSON document."""
        return {"profile": 1, **msgspec.to_builtins(self)}

    @classmethod
    def from_document(cls, document: object) -> "Profile":
        """Parse a JSON document written by this release or an earlier one.

        Raises:
            ProfileError: the document is not a profile, or a key is missing or has the
                wrong type.
        """
        if not isinstance(document, dict) or document.get("profile") != 1:
            raise ProfileError(
                "profile: missing; expected 1, as `extproc profile` writes it"
            )
        fields = {key: value for key, value in document.items() if key != "profile"}
        fields["measured"] = _without_older_check(fields.get("measured"))
        try:
            profile = msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            raise ProfileError(str(error)) from error
        if profile.num_blocks < 2 or profile.block_size < 1:
            raise ProfileError(
                f"num_blocks: {profile.num_blocks}, block_size: {profile.block_size}; "
                "expected at least 2 and 1"
            )
        if profile.step_time.base_s <= 0:
            raise ProfileError(
                f"step_time.base_s: {profile.step_time.base_s:g}; expected > 0"
            )
        return profile


def _without_older_check(measured: object) -> object:
    """Return ``measured`` without an earlier release's check, which has no ``load``."""
    if not isinstance(measured, dict):
        return measured
    check = measured.get("check")
    if isinstance(check, dict) and "load" not in check:
        return {key: value for key, value in measured.items() if key != "check"}
    return measured


#: Maximum error in the checks of a good profile, and of a usable profile.
_USABLE_ERROR = 0.25


def verdict(profile: Profile) -> str:
    """Return one line that judges a profile by its checks.

    The verdict uses the throughput at the load above capacity and the medians at the
    ordinary load. In a queue, a small error in throughput becomes a large error in
    means and tails.
    """
    errors: list[float] = []
    if profile.measured.check:
        errors.append(profile.measured.check.throughput_error)
    if profile.measured.ordinary_check:
        found = profile.measured.ordinary_check.errors()
        errors += [found[name] for name in _JUDGED if name in found]
    if not errors:
        return "not checked"
    worst = max(map(abs, errors))
    if worst > _USABLE_ERROR:
        return (
            f"off by {worst:.0%}: the machine or the server was busy with something "
            "else; measure again before using this profile"
        )
    return f"good to {5 * math.ceil(20 * worst)} %"


_JUDGED = ("requests_per_s", "p50_ttft_s", "p50_tpot_s")


def warnings(
    profile: Profile,
    *,
    max_model_len: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    usd_per_gpu_hour: float | None = None,
) -> tuple[str, ...]:
    """Return warnings about limits of a plan that exceed the range of its profile.

    Args:
        max_model_len: the longest window planned, in tokens.
        max_num_seqs, max_num_batched_tokens: maximum values over all pools.
        usd_per_gpu_hour: the operator's price, if given in place of the profile's.
    """
    measured = profile.measured
    planned = (
        ("max_model_len", max_model_len, profile.max_model_len, "the server's is"),
        ("max_num_seqs", max_num_seqs, profile.max_num_seqs, "the server's is"),
        (
            "max_num_batched_tokens",
            max_num_batched_tokens,
            profile.max_num_batched_tokens,
            "the server's is",
        ),
        ("max_num_seqs", max_num_seqs, measured.max_batch, "batches measured up to"),
        (
            "max_model_len",
            max_model_len,
            measured.max_context_tokens,
            "contexts of decoding measured up to",
        ),
        (
            "max_num_batched_tokens",
            max_num_batched_tokens,
            measured.max_prompt_tokens,
            "prompts of one step measured up to",
        ),
    )
    found = [
        f"{name}: {value:,}; {limit_is} {limit:,}: beyond it times are extrapolated"
        for name, value, limit, limit_is in planned
        if limit is not None and value > limit
    ]
    judged = verdict(profile)
    if judged.startswith("off"):
        found.append(f"check: {judged}")
    if usd_per_gpu_hour is None and profile.usd_per_gpu_hour is None:
        found.append("usd_per_gpu_hour: no price given; dollars are left out")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Sent:
    """A request of the load used to check a profile."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


def predict(profile: Profile, load: Sequence[Sent]) -> tuple[Outcome, int]:
    """Simulate the load on the profiled instance; return outcome and preemptions."""
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
    span_s = max(job.finish_s for job in jobs) - load[0].at_s + profile.request_s
    return (
        outcome(
            span_s,
            [job.first_token_s - job.arrival_s + profile.request_s for job in jobs],
            [
                (job.finish_s - job.first_token_s) / (job.output_tokens - 1)
                for job in jobs
                if job.output_tokens > 1
            ],
        ),
        instance.num_preemptions,
    )


def outcome(
    span_s: float, ttfts_s: Sequence[float], tpots_s: Sequence[float]
) -> Outcome:
    """Summarize requests that took ``span_s`` from the first send to the last token."""

    def quantile(values: Sequence[float], q: float) -> float | None:
        return float(np.quantile(values, q)) if len(values) else None

    return Outcome(
        len(ttfts_s) / span_s,
        float(np.mean(ttfts_s)),
        quantile(ttfts_s, 0.5),
        quantile(ttfts_s, 0.9),
        quantile(tpots_s, 0.5),
        quantile(tpots_s, 0.9),
    )


def compare(
    load: float,
    measured: Outcome,
    preemptions_measured: int,
    predicted: Outcome,
    preemptions_predicted: int,
    requests: int,
) -> Check:
    """Return a check that compares two outcomes."""
    return Check(
        requests,
        load,
        measured,
        predicted,
        predicted.requests_per_s / measured.requests_per_s - 1,
        predicted.mean_ttft_s / measured.mean_ttft_s - 1,
        preemptions_measured,
        preemptions_predicted,
    )
