import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from extproc.routing.allowance import OutputAllowance
from extproc.routing.bound import Bounded, Turn
from extproc.routing.category import Category
from extproc.routing.declared_allowance import DeclaredAllowance
from extproc.routing.estimate import Estimate
from extproc.routing.features import Features
from extproc.routing.policy import Policy, Pool, PoolLoad, Reason
from extproc.routing.ratio import TextEma, TextRatios
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Prompt, Request
from extproc.routing.risk import NoMargin
from extproc.routing.router import (
    UNKNOWN_CATEGORY,
    Decision,
    Lesson,
    MediaTokens,
    Misroute,
    Outcome,
    Router,
    Skipped,
)

SHORT, LONG = Pool("short", 1000, 800), Pool("long", 8000, 8000)


class Fixed(Bounded):
    """Returns the same estimate for every prompt, and records the samples it learns."""

    def __init__(self, point: int = 100, bound: int = 120) -> None:
        super().__init__(TextEstimator(), NoMargin())
        self.answer = Estimate(point, bound)
        self.taught: list[tuple[str, str, int]] = []

    def estimate(self, model: str, category: str, features: Features) -> Estimate:
        return self.answer

    def observe(
        self,
        model: str,
        category: str,
        features: Features,
        prompt_tokens: int,
        turn: Turn | None = None,
    ) -> None:
        self.taught.append((model, category, prompt_tokens))


def router(estimator: Fixed | None = None, hints: tuple[str, ...] = ()) -> Router:
    return Router(
        Policy([SHORT, LONG]),
        estimator or Fixed(),
        TextRatios(),
        OutputAllowance(default_tokens=50),
        media_tokens=MediaTokens(image=10, audio=200, file=3000),
        hints=hints,
    )


def request(text: str = "Hello", **more: object) -> Request:
    return Request(Prompt(text.encode()), body_bytes=99, model="m", **more)  # type: ignore[arg-type]


# Decisions.


def test_a_decision_says_every_number_of_why() -> None:
    decision = router().route(request(max_tokens=30))

    assert decision.features is not None
    assert decision == Decision(
        pool=SHORT,
        reason=Reason.WITHIN_THRESHOLD,
        category=Category.PROSE,
        model="m",
        body_bytes=99,
        prompt_tokens=100,
        bound_tokens=120,
        output_tokens=30,
        declared=True,
        limit_tokens=30,
        features=decision.features,
    )
    assert decision.budget_tokens == 130
    assert decision.bound_budget_tokens == 150


@pytest.mark.parametrize(("output", "pool"), [(680, SHORT), (681, LONG)])
def test_the_bound_decides_and_not_the_point(output: int, pool: Pool) -> None:
    assert router().route(request(max_tokens=output)).pool == pool


def test_without_a_limit_the_default_is_allowed_for() -> None:
    decision = router().route(request())

    assert decision.output_tokens == 50
    assert not decision.declared


def test_embeddings_need_no_output() -> None:
    decision = router().route(request(generates=False, max_tokens=700))

    assert decision.output_tokens == 0
    assert decision.declared


def test_media_start_with_their_constants_and_teach_apart_from_text() -> None:
    prompt = Prompt(b"Look", images=2, audios=1, files=1)
    estimator = Fixed()
    routes = router(estimator)

    decision = routes.route(Request(prompt, 99))

    assert decision.prompt_tokens == 100 + 2 * 10 + 200 + 3000
    assert decision.media_tokens == 3220
    assert decision.bound_tokens > 120 + 3220
    assert decision.features is None

    image = Request(Prompt(b"Look", images=1), 99)
    for _ in range(20):
        lesson = routes.learn(routes.route(image), Outcome(200, 100 + 900, 20))
    assert lesson.skipped is None
    assert routes.route(image).media_tokens == pytest.approx(900, rel=0.05)
    assert estimator.taught == []


def test_token_ids_are_exact_and_not_learned() -> None:
    decision = router().route(Request(Prompt(b"", token_ids=77), 500))

    assert (decision.prompt_tokens, decision.bound_tokens) == (77, 77)
    assert decision.features is None


def test_several_prompts_are_not_learned() -> None:
    assert router().route(request(prompts=2)).features is None


def test_hints_and_loads_reach_the_decision() -> None:
    routes = router(hints=("legal",))

    assert routes.route(request(), "legal").category == "legal"
    assert routes.route(request(), "illegal").category == Category.PROSE
    down = {"short": PoolLoad(available=False)}
    assert routes.route(request(), None, down).reason is Reason.SPILLED


def test_every_category_of_a_decision_is_listed() -> None:
    assert router(hints=("legal",)).categories == sorted(
        {*Category, "legal", UNKNOWN_CATEGORY}
    )


def test_failing_open_goes_to_the_largest_pool() -> None:
    decision = router().fail_open(Reason.TOO_LARGE, 5000)

    assert decision == Decision(LONG, Reason.TOO_LARGE, body_bytes=5000)


@settings(max_examples=50)
@given(
    limits=st.tuples(st.integers(1, 1 << 31), st.integers(1, 1 << 31)).map(sorted),
    texts=st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)).map(sorted),
)
def test_budgets_grow_with_text_and_limit(limits: list[int], texts: list[int]) -> None:
    routes = Router(Policy([SHORT, LONG]), Bounded(TextEma(), NoMargin()), TextRatios())
    small, large = (
        routes.route(request("a " * text, max_tokens=limit))
        for text, limit in zip(texts, limits, strict=True)
    )

    assert small.budget_tokens <= large.budget_tokens
    assert small.pool.max_model_len <= large.pool.max_model_len


# Which responses the router learns from.


def test_a_counted_prompt_is_learned_from() -> None:
    estimator = Fixed(point=90, bound=99)
    routes = router(estimator)
    decision = routes.route(request("a " * 200, max_tokens=30))

    lesson = routes.learn(decision, Outcome(200, 100, 20))

    assert lesson == Lesson(error_ratio=-0.1, under_estimated=True)
    assert estimator.taught == [("m", "prose", 100)]
    assert routes.ratios.bytes_per_token("prose") == pytest.approx(400 / 92)


def test_a_count_at_the_bound_is_no_under_estimate() -> None:
    routes = router(Fixed(point=90, bound=100))
    decision = routes.route(request(max_tokens=30))

    assert not routes.learn(decision, Outcome(200, 100, 20)).under_estimated


@pytest.mark.parametrize(
    ("outcome", "skipped"),
    [
        (Outcome(400, 100, 20), Skipped.STATUS),
        (Outcome(500), Skipped.STATUS),
        (Outcome(0, 100), Skipped.STATUS),
        (Outcome(204, 100), Skipped.STATUS),
        (Outcome(200), Skipped.NO_USAGE),
        (Outcome(200, 0, 20), Skipped.NO_USAGE),
        (Outcome(200, -5, 20), Skipped.NO_USAGE),
        (Outcome(200, None, 20), Skipped.NO_USAGE),
    ],
)
def test_outcomes_that_teach_nothing(outcome: Outcome, skipped: Skipped) -> None:
    estimator = Fixed()
    routes = router(estimator)

    lesson = routes.learn(routes.route(request()), outcome)

    assert lesson == Lesson(skipped)
    assert estimator.taught == []
    assert routes.ratios.all() == {}


@pytest.mark.parametrize("reason", [r for r in Reason if r.failed_open])
def test_a_decision_that_failed_open_teaches_nothing(reason: Reason) -> None:
    estimator = Fixed()
    routes = router(estimator)

    lesson = routes.learn(routes.fail_open(reason), Outcome(200, 100, 20))

    assert lesson == Lesson(Skipped.FAILED_OPEN)
    assert estimator.taught == []


@pytest.mark.parametrize(
    "not_text",
    [
        Request(Prompt(b"", token_ids=100), 99, max_tokens=10),
        Request(Prompt(b"Look", images=1, opaque=True), 99, max_tokens=10),
        Request(Prompt(b"Look", opaque=True), 99, max_tokens=10),
        request(prompts=2, max_tokens=10),
    ],
)
def test_what_is_not_one_text_teaches_nothing(not_text: Request) -> None:
    estimator = Fixed()
    routes = router(estimator)

    lesson = routes.learn(routes.route(not_text), Outcome(200, 100, 20))

    assert lesson.skipped is Skipped.NOT_TEXT
    assert estimator.taught == []
    assert routes.ratios.all() == {}


def used_to_short_answers(*, retry_cut_answers: bool = False) -> Router:
    """Return a router that reserves little of a limit of 32,000 tokens."""
    routes = Router(
        Policy([Pool("short", 4096, 4096), Pool("long", 65536, 65536)]),
        Fixed(),
        TextRatios(),
        declared_allowance=DeclaredAllowance(0.4),
        retry_cut_answers=retry_cut_answers,
    )
    asked = request(max_tokens=32_000)
    for _ in range(40):
        routes.learn(routes.route(asked), Outcome(200, 100, 20))
    return routes


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"max_tokens": 32_000}, True),
        ({"max_tokens": 100}, False),
        ({"stream": True}, False),
        ({"sequences": 2}, False),
        ({"prompts": 2}, False),
        ({"generates": False}, False),
        ({"max_tokens": 32_000, "min_tokens": 5000}, False),
    ],
    ids=["no limit", "a large limit", "a limit with room", "stream", "sequences",
         "prompts", "embedding", "the largest pool"],
)  # fmt: skip
def test_what_is_asked_for_again_if_the_window_cuts_it(
    change: dict[str, object], expected: bool
) -> None:
    asked = replace(request(), **change)
    for retries in (True, False):
        routes = used_to_short_answers(retry_cut_answers=retries)
        assert routes.route(asked).retry_cut == (expected and retries)


@pytest.mark.parametrize(
    ("completion", "believed"), [(20, True), (5000, False)], ids=["refused", "cut"]
)
def test_an_answer_that_was_cut_first_was_not_refused(
    completion: int, believed: bool
) -> None:
    routes = used_to_short_answers()
    asked = request(max_tokens=32_000)
    for _ in range(8):
        decision = routes.route(asked)
        assert decision.pool.name == "short" or believed
        routes.learn(decision, Outcome(200, 100, completion, attempts=2))
    assert (routes.route(asked).output_tokens == 32_000) == believed


def allowed_after(outcome: Outcome, asked: Request) -> int:
    """Return the allowance after the same outcome of a request has been learned many
    times.
    """
    routes = router()
    for _ in range(200):
        routes.learn(routes.route(asked), outcome)
    return routes.route(request()).output_tokens


def test_the_allowance_is_learned_from_answers_without_a_limit() -> None:
    assert allowed_after(Outcome(200, 100, 300), request()) > 200


@pytest.mark.parametrize(
    ("outcome", "asked"),
    [
        pytest.param(Outcome(200, 100, 300), request(max_tokens=900), id="declared"),
        pytest.param(Outcome(200, 100, 300), request(sequences=4), id="sequences"),
        pytest.param(Outcome(200, 100, 300), request(prompts=4), id="prompts"),
        pytest.param(Outcome(200, 100, None), request(), id="not-counted"),
        pytest.param(Outcome(400, 100, 300), request(), id="status"),
        pytest.param(Outcome(200, None, 300), request(), id="no-usage"),
    ],
)
def test_the_allowance_is_not_learned_from(outcome: Outcome, asked: Request) -> None:
    assert allowed_after(outcome, asked) == 50


# Misroutes.


def test_media_are_judged_as_text_is() -> None:
    routes = router()
    decision = routes.route(Request(Prompt(b"Look", images=1), 99, max_tokens=10))
    decision = replace(decision, pool=SHORT)

    lesson = routes.learn(decision, Outcome(200, 5000, 10))

    assert lesson.misroute is Misroute.SHORT_OVERFLOW


# Rough bounds.


def taught() -> Router:
    """Return a router whose estimator has learned from texts of several kinds."""
    pools = [Pool("s", 1000, 300), Pool("m", 2000, 2000), Pool("l", 8000, 8000)]
    learning = Router(Policy(pools), Bounded(TextEstimator()), TextRatios())
    for number in range(30):
        for word in ("fox ", "42", "{'a': [1]}, ", "\u6f22\u5b57"):
            asked = request(word * (20 + number))
            learning.learn(learning.route(asked), Outcome(200, 30 + number, 5))
    return learning


TAUGHT = taught()
LOADS = st.dictionaries(
    st.sampled_from("sml"), st.builds(PoolLoad, st.booleans(), st.booleans())
)
TEXTS = st.one_of(
    st.text(max_size=300),
    st.builds(
        lambda word, times: word * times,
        st.sampled_from(["the quick fox ", "3.14", "\n    x = y", "\u30c6\u30b9"]),
        st.integers(1, 900),
    ),
)


@given(text=TEXTS, output=st.integers(1, 9000), loads=LOADS)
def test_a_rough_bound_changes_no_choice(
    text: str, output: int, loads: dict[str, PoolLoad]
) -> None:
    asked = request(text, max_tokens=output)

    approximate = TAUGHT.route(asked, loads=loads, approximate=True)
    exact = TAUGHT.route(asked, loads=loads)

    assert (approximate.pool, approximate.reason) == (exact.pool, exact.reason)
    assert approximate.prompt_tokens == exact.prompt_tokens
    assert approximate.prompt_tokens <= approximate.bound_tokens
    settled = TAUGHT.with_bound(approximate)
    assert settled.bound_tokens == exact.bound_tokens
    assert not settled.approximate_bound


def test_a_bound_far_from_every_limit_is_rough() -> None:
    few, many = request("the quick fox " * 9), request("the quick fox " * 60)
    for near, asked in ((False, few), (True, many)):
        decision = TAUGHT.route(replace(asked, max_tokens=1), approximate=True)
        assert decision.approximate_bound is not near
        assert 0.5 < decision.bound_tokens / TAUGHT.route(asked).bound_tokens < 2.0


def test_what_teaches_nothing_has_a_bound_of_its_own() -> None:
    asked = Request(Prompt(b"Hello", images=1), body_bytes=99, max_tokens=1)
    assert not TAUGHT.route(asked, approximate=True).approximate_bound
