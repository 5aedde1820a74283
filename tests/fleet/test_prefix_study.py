"""Savings from caching and from two pools if conversations grow above the threshold."""

from dataclasses import replace

import numpy as np
import pytest

from extproc.commands.plan_text import print_prefixes
from extproc.fleet.conversations import conversations
from extproc.fleet.planning import PolicyTask, size_policy
from extproc.fleet.prefix_study import PrefixStudy, study, without_prefixes
from extproc.fleet.prefixes import find_prefixes, hit_share
from extproc.fleet.question import Question, policies
from extproc.fleet.replay import Replay
from extproc.fleet.sizing import Engine
from extproc.fleet.slo import Slo
from extproc.fleet.steptime import Linear
from extproc.fleet.verdict import PAGED, SPLIT
from extproc.fleet.workload import Recorded

pytestmark = pytest.mark.slow

# Prefill causes nearly all of the cost, and the cache holds 32,000 tokens.
ENGINE = Engine("toy", Linear(0.004, 1e-5, 1e-4), 2001, 16, 1, 1.0)


@pytest.fixture(scope="module")
def found() -> PrefixStudy:
    made = conversations()
    assert isinstance(made.lengths, Recorded)
    assert made.arrivals is not None
    rows = (made.arrivals < 300) & (made.lengths.prompts < 15_000)
    replay = Replay(
        made.arrivals,
        made.lengths.prompts,
        np.minimum(made.lengths.outputs, 60),
        3600,
        prefixes=find_prefixes(made),
    ).only(rows)
    replay = replace(replay, period_s=300)
    question = Question(
        made,
        ENGINE,
        replay.rate,
        replay,
        Slo(p99_ttft_s=20),
        (4096,),
        16_384,
        2048,
        seed=1,
        asked_requests=500,
        tried_requests=300,
        verified_requests=300,
    )
    without = without_prefixes(question)
    assert without is not None
    assert without_prefixes(without) is None
    wanted = [
        next(policy for policy in policies(question) if policy.name == name)
        for name in (PAGED, SPLIT)
    ]
    one, split = (size_policy(PolicyTask(question, policy)) for policy in wanted)
    uncached = {
        policy.name: size_policy(PolicyTask(without, policy)) for policy in wanted
    }
    return study(question, one, split, uncached)


def test_caching_saves_instances(found: PrefixStudy) -> None:
    counts = found.instances
    assert counts["one pool, caching"] <= counts["one pool, no caching"]
    assert counts["split, caching"] <= counts["split, no caching"]


def test_conversations_that_cross_lose_a_little(found: PrefixStudy) -> None:
    assert 0.5 < found.unlimited_share_split < found.unlimited_share < 0.9


def test_every_load_balancer_on_both_fleets(found: PrefixStudy) -> None:
    assert len(found.hits) == 6
    for row in found.hits:
        assert 0 <= row.cached_share <= found.unlimited_share + 1e-9
        assert row.p99_ttft_s > 0


def test_it_is_printed(found: PrefixStudy, capsys: pytest.CaptureFixture[str]) -> None:
    print_prefixes(found)
    text = capsys.readouterr().out
    assert "Caching alone saves" in text
    assert text.count("least-request") == 2


def test_the_made_hour_is_the_same_every_time() -> None:
    one, again = conversations(), conversations()
    assert isinstance(one.lengths, Recorded)
    assert isinstance(again.lengths, Recorded)
    assert np.array_equal(one.lengths.prompts, again.lengths.prompts)
    prefixes = find_prefixes(one)
    assert prefixes is not None
    share = hit_share(prefixes, one.lengths.prompts.tolist())
    assert share == pytest.approx(0.82, abs=0.01)
