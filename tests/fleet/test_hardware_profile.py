"""The fit of a profile, and its document format."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from extproc.fleet.hardware_profile import (
    Check,
    Measured,
    Profile,
    Sent,
    compare,
    outcome,
    predict,
    verdict,
    warnings,
)
from extproc.fleet.profile_fit import (
    DecodeSample,
    PrefillSample,
    ProfileError,
    fit,
    relative_error,
)
from extproc.fleet.steptime import Linear

TRUE = Linear(base_s=5e-3, seq_s=2e-4, token_s=3e-5, context_s=2e-8, pair_s=1e-9)


def decode(step: Linear) -> list[DecodeSample]:
    return [
        DecodeSample(n, n * c, step.fixed_s(0, n) + step.context_s * n * c)
        for n in (1, 4, 16, 64)
        for c in (50, 500, 3000)
    ]


def prefill(step: Linear, request_s: float) -> list[PrefillSample]:
    return [
        PrefillSample(p, request_s + step.fixed_s(p, 0) + step.pair_s * p * (p + 1) / 2)
        for p in (64, 256, 1024, 2048, 4096)
    ]


def test_the_fit_finds_the_plane_that_made_its_samples() -> None:
    found, request_s = fit(decode(TRUE), prefill(TRUE, 0.004))
    assert request_s == pytest.approx(0.004, rel=1e-3)
    for name in ("base_s", "seq_s", "token_s", "context_s", "pair_s"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-3)
    assert relative_error(found, request_s, decode(TRUE), prefill(TRUE, 0.004)) < 1e-6


@given(st.lists(st.floats(0.5, 2.0), min_size=17, max_size=17))
def test_no_coefficient_is_negative_whatever_the_noise(noise: list[float]) -> None:
    noisy_decode = [
        DecodeSample(s.seqs, s.context_tokens, s.step_s * factor)
        for s, factor in zip(decode(TRUE), noise[:12], strict=True)
    ]
    noisy_prefill = [
        PrefillSample(s.prompt_tokens, s.ttft_s * factor)
        for s, factor in zip(prefill(TRUE, 0.004), noise[12:], strict=True)
    ]
    found, request_s = fit(noisy_decode, noisy_prefill)
    assert found.base_s > 0
    assert min(found.seq_s, found.token_s, found.context_s, found.pair_s) >= 0
    assert request_s >= 0


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(
        ProfileError, match="2 decode and 5 prefill samples; expected 3"
    ):
        fit(decode(TRUE)[:2], prefill(TRUE, 0))


def a_profile() -> Profile:
    measured = Measured(
        0.0, 9, 6, 42, max_batch=8, max_context_tokens=512, max_prompt_tokens=480
    )
    return Profile("m", TRUE, 0.004, 500, 16, 4096, 8, 512, 1, measured)


def test_a_profile_survives_json() -> None:
    document = json.loads(json.dumps(a_profile().to_document()))
    assert Profile.from_document(document) == a_profile()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"profile": 2}, "profile: missing; expected 1"),
        ({"num_blocks": 1}, "num_blocks: 1, block_size: 16; expected at least 2 and 1"),
        (
            {"step_time": {"base_s": 0, "seq_s": 0}},
            r"step_time.base_s: 0; expected > 0",
        ),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_is_no_profile_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        Profile.from_document(a_profile().to_document() | change)
    with pytest.raises(ProfileError):
        Profile.from_document([])


def test_a_prediction_is_the_simulated_instance_plus_the_requests_own_time() -> None:
    outcome, preemptions = predict(a_profile(), [Sent(0.0, 100, 3)])
    prefill_s = TRUE.fixed_s(100, 0) + TRUE.pair_s * 100 * 101 / 2
    assert outcome.mean_ttft_s == pytest.approx(prefill_s + 0.004)
    assert preemptions == 0


def test_profiles_of_an_earlier_release_are_read() -> None:
    document = a_profile().to_document()
    del document["usd_per_gpu_hour"]
    document["measured"] = {
        "fit_error": 0.05,
        "decode_samples": 9,
        "prefill_samples": 6,
        "seed": 42,
        "check": {"requests": 60, "throughput_error": 0.08},
    }
    profile = Profile.from_document(document)
    assert profile.measured.max_batch is None
    assert profile.measured.check is None
    assert verdict(profile) == "not checked"


def a_check(load: float, error: float) -> Check:
    measured = outcome(10.0, [0.1, 0.2, 0.3], [0.01, 0.02])
    predicted = outcome(
        10.0 / (1 + error), [0.1 * (1 + error)] * 3, [0.015 * (1 + error)] * 2
    )
    if load < 1:
        predicted = outcome(10.0, [0.2 * (1 + error)] * 3, [0.015 * (1 + error)] * 2)
    return compare(load, measured, 0, predicted, 0, 3)


@pytest.mark.parametrize(
    ("ordinary", "overload", "said"),
    [
        (0.01, 0.02, "good to 5 %"),
        (0.08, 0.02, "good to 10 %"),
        (-0.08, -0.19, "good to 20 %"),
        (0.02, 0.42, "off by 42%: the machine or the server was busy"),
        (-0.31, 0.02, "off by 31%: the machine or the server was busy"),
    ],
)
def test_the_verdict_is_that_of_the_worse_check(
    ordinary: float, overload: float, said: str
) -> None:
    profile = a_profile()
    measured = replace(
        profile.measured,
        ordinary_check=a_check(0.6, ordinary),
        check=a_check(1.5, overload),
    )
    judged = replace(profile, measured=measured)
    assert verdict(judged).startswith(said)
    assert Profile.from_document(judged.to_document()) == judged
    found = warnings(
        judged,
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=480,
        usd_per_gpu_hour=2.0,
    )
    assert [text.startswith("check: off") for text in found] == (
        [True] if said.startswith("off") else []
    )


def test_nothing_is_warned_of_within_what_was_measured() -> None:
    profile = replace(a_profile(), usd_per_gpu_hour=2.0)
    assert not warnings(
        profile, max_model_len=512, max_num_seqs=8, max_num_batched_tokens=480
    )


def test_a_plan_beyond_what_was_measured_is_warned_of() -> None:
    found = warnings(
        a_profile(), max_model_len=65_536, max_num_seqs=256, max_num_batched_tokens=2048
    )
    assert found == (
        "max_model_len: 65,536; the server's is 4,096: beyond it times are extrapolated",
        "max_num_seqs: 256; the server's is 8: beyond it times are extrapolated",
        "max_num_batched_tokens: 2,048; the server's is 512: beyond it times are "
        "extrapolated",
        "max_num_seqs: 256; batches measured up to 8: beyond it times are extrapolated",
        "max_model_len: 65,536; contexts of decoding measured up to 512: beyond it times "
        "are extrapolated",
        "max_num_batched_tokens: 2,048; prompts of one step measured up to 480: beyond "
        "it times are extrapolated",
        "usd_per_gpu_hour: no price given; dollars are left out",
    )
