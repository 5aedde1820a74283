import pytest
from msgspec.structs import replace

from extproc.exchange.feedback import (
    CATEGORY_SAMPLES,
    MODEL_SAMPLES,
    NEAR_WEIGHT,
    SETTLED_RATE,
    SILENT_LOOKS,
    FeedbackSampler,
)
from extproc.routing.features import measure
from extproc.routing.policy import Pool, Reason
from extproc.routing.request import Prompt
from extproc.routing.router import Decision

POOL = Pool("short", 8192, 8192)
TEXT = Decision(
    POOL,
    Reason.WITHIN_THRESHOLD,
    category="prose",
    model="m",
    bound_tokens=1000,
    features=measure(Prompt(b"some words"), 100),
)
FLOOR = 0.01


def settled(category: str = "prose", *, error: float = 0.05) -> FeedbackSampler:
    """Return a sampler that has learned enough about model m and one of its categories."""
    sampler = FeedbackSampler(FLOOR, limits={"": [8192]})
    for _ in range(MODEL_SAMPLES):
        sampler.observed(replace(TEXT, category=category), error)
    return sampler


def looks(sampler: FeedbackSampler, decision: Decision, asked: int = 10_000) -> int:
    return sum(sampler.wants(decision) for _ in range(asked))


def test_every_response_until_a_model_has_settled() -> None:
    sampler = FeedbackSampler(FLOOR)
    for _ in range(MODEL_SAMPLES):
        assert sampler.rate(TEXT) == 1.0
        sampler.observed(TEXT, 0.05)

    assert sampler.rate(TEXT) == SETTLED_RATE
    assert sampler.rate(replace(TEXT, model="another")) == 1.0


def test_every_response_of_a_category_until_it_was_seen() -> None:
    sampler = settled()
    code = replace(TEXT, category="code")
    for _ in range(CATEGORY_SAMPLES):
        assert sampler.rate(code) == 1.0
        sampler.observed(code, 0.05)

    assert sampler.rate(code) < SETTLED_RATE


def test_the_share_falls_to_the_floor_as_samples_add_up() -> None:
    sampler = settled()
    for _ in range(10 * MODEL_SAMPLES):
        sampler.observed(TEXT, 0.05)

    assert sampler.rate(TEXT) == FLOOR


def test_grown_errors_make_a_model_uncertain_again() -> None:
    """The errors grow as if another model were deployed under the same name."""
    sampler = settled(error=0.05)
    while sampler.rate(TEXT) < 1.0:
        sampler.observed(TEXT, 0.3)

    for _ in range(MODEL_SAMPLES):
        assert sampler.rate(TEXT) == 1.0
        sampler.observed(TEXT, 0.05)
    assert sampler.rate(TEXT) == SETTLED_RATE


def test_one_wild_count_is_no_drift() -> None:
    sampler = settled(error=0.05)
    sampler.observed(TEXT, 0.5)

    assert sampler.rate(TEXT) <= SETTLED_RATE


@pytest.mark.parametrize("adaptive", [True, False])
def test_what_cannot_be_learned_from_is_not_sampled_densely(adaptive: bool) -> None:
    sampler = FeedbackSampler(FLOOR, adaptive=adaptive)

    assert sampler.rate(replace(TEXT, features=None)) == FLOOR


def test_streams_without_usage_are_not_looked_at_for_ever() -> None:
    """Every chunk of such a stream would pass through the router."""
    sampler = FeedbackSampler(0.0)

    assert looks(sampler, replace(TEXT, usage_not_requested=True)) == SILENT_LOOKS


def test_a_backend_that_sends_usage_unasked_is_listened_to() -> None:
    sampler = FeedbackSampler(FLOOR)
    sampler.observed(replace(TEXT, usage_not_requested=True), 0.05)

    assert looks(sampler, replace(TEXT, usage_not_requested=True), 100) == 100


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.2, 0.5, 1.0])
def test_a_fixed_share_is_kept(share: float) -> None:
    sampler = FeedbackSampler(share, adaptive=False)

    assert looks(sampler, TEXT) == pytest.approx(10_000 * share, abs=5)


def test_choices_are_spread_evenly() -> None:
    sampler = FeedbackSampler(0.1, adaptive=False)

    for _ in range(50):
        assert looks(sampler, TEXT, 100) in range(8, 13)


def test_no_periodic_traffic_escapes_the_sample() -> None:
    for period in range(2, 30):
        sampler = FeedbackSampler(0.1, adaptive=False)
        seen = [sampler.wants(TEXT) for _ in range(4000)]
        for phase in range(period):
            assert any(seen[phase::period]), (period, phase)


@pytest.mark.parametrize(
    ("budget", "near"),
    [(6143, False), (6144, True), (8192, True), (10240, True), (10241, False)],
)
@pytest.mark.parametrize("pool", [POOL, Pool("long", 65536, 65536)], ids=str)
def test_budgets_near_a_threshold_weigh_more(
    budget: int, near: bool, pool: Pool
) -> None:
    """Budgets on both sides of the threshold weigh more, for requests in either pool."""
    rate = settled().rate(replace(TEXT, bound_tokens=budget, pool=pool))

    assert rate == SETTLED_RATE * (NEAR_WEIGHT if near else 1)


def test_memory_is_bounded_whatever_models_clients_invent() -> None:
    sampler = FeedbackSampler(FLOOR)
    for number in range(5000):
        sampler.observed(replace(TEXT, model=f"model-{number}"), 0.05)

    assert sampler.rate(replace(TEXT, model="model-0")) == 1.0
    assert len(sampler.history.models) == len(sampler.history.categories) == 1024
