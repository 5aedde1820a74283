"""The pools of a model name, and the name under which its requests are learned."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.bound import Bounded
from extproc.routing.decision import OTHER_MODEL, Outcome
from extproc.routing.models import ModelRouter
from extproc.routing.policy import Policy, Pool, Reason
from extproc.routing.ratio import TextRatios
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Prompt, Request
from extproc.routing.router import Router

LLAMA = (Pool("l-short", 8192, 8192, "llama"), Pool("l-long", 65536, 65536, "llama"))
QWEN = (Pool("q-short", 16384, 16384, "qwen"), Pool("q-long", 131072, 131072, "qwen"))
VLM = (Pool("vlm", 32768, 32768, "vlm"),)
ADAPTERS = [("support", "llama"), ("legal-*", "llama"), ("*-?1", "qwen")]


def make_router(*, unknown: str = "") -> ModelRouter:
    learned = Bounded(TextEstimator()), TextRatios()
    routers = {
        pools[0].model: Router(Policy(pools), *learned, model=pools[0].model)
        for pools in (LLAMA, QWEN, VLM)
    }
    default = None
    if unknown:
        default = Router(routers[unknown].policy, *learned, model=OTHER_MODEL)
    return ModelRouter(list(routers.values()), ADAPTERS, default)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("llama", "llama"),
        ("qwen", "qwen"),
        ("support", "llama"),
        ("legal-v2", "llama"),
        ("legal-11", "llama"),  # the first matching pattern wins
        ("x-a1", "qwen"),
        ("listed", "vlm"),
        ("legal-listed", "vlm"),  # the servers' list precedes patterns
        ("Llama", None),
        ("llama ", None),
        ("legal", None),
        ("gone", None),
        ("", None),
    ],
)
def test_a_name_leads_to_its_model(name: str, model: str | None) -> None:
    served = {"listed": "vlm", "legal-listed": "vlm", "gone": "not configured"}
    found = make_router().find(name, served)
    assert (found and found.model) == model


def request_for(model: str, tokens: int) -> Request:
    text = b"word " * tokens
    return Request(Prompt(text), len(text), model=model, max_tokens=10)


@pytest.mark.parametrize(
    ("model", "tokens", "pool"),
    [
        ("llama", 100, "l-short"),
        ("support", 12000, "l-long"),
        ("qwen", 3000, "q-short"),
        ("x-a1", 30000, "q-long"),
        ("vlm", 90000, "vlm"),
    ],
)
def test_a_request_stays_among_its_model_s_pools(
    model: str, tokens: int, pool: str
) -> None:
    router = make_router().find(model)
    assert router is not None
    decision = router.route(request_for(model, tokens))
    assert decision.pool.name == pool
    assert decision.base_model == decision.pool.model == router.model
    assert router.fail_open(Reason.TOO_LARGE).pool is router.policy.default


def test_names_of_one_base_learn_together() -> None:
    routers = make_router()
    for name in ("llama", "support", "legal-1"):
        router = routers.find(name)
        assert router is not None
        lesson = routers.learn(
            router.route(request_for(name, 100)), Outcome(200, 130, 10)
        )
        assert lesson.error_ratio is not None
    names = routers.estimator.margin.names
    assert names is not None
    assert [name for name, _ in names.items()] == ["llama"]


def test_unknown_models_have_the_default_s_pools_and_are_learned_as_other() -> None:
    routers = make_router(unknown="qwen")
    router = routers.find("made up")
    assert router is not None
    decision = router.route(request_for("made up", 3000))
    assert (decision.pool.name, decision.base_model) == ("q-short", OTHER_MODEL)
    routers.learn(decision, Outcome(200, 3100, 10))
    names = routers.estimator.margin.names
    assert names is not None
    assert [name for name, _ in names.items()] == [OTHER_MODEL]


def test_a_name_given_twice_is_refused() -> None:
    one = Router(Policy(LLAMA), Bounded(TextEstimator()), TextRatios(), model="llama")
    other = Router(Policy(VLM), Bounded(TextEstimator()), TextRatios(), model="vlm")
    with pytest.raises(ValueError, match="'vlm' appears twice"):
        ModelRouter([one, other], [("vlm", "llama")])
    with pytest.raises(ValueError, match="'l-short' appears twice"):
        ModelRouter(
            [one, Router(Policy(LLAMA[:1]), one.estimator, one.ratios, model="x")]
        )
    with pytest.raises(ValueError, match="expected at least one"):
        ModelRouter([])


@given(st.text(max_size=40))
def test_any_name_is_answered(name: str) -> None:
    found = make_router().find(name)
    assert found is None or found.model in {"llama", "qwen", "vlm"}
