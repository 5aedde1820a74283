"""Prefixes shared by the requests of a file, and their assignment to instances."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from extproc.fleet.balancing import Balancing
from extproc.fleet.prefix_cache import Prefix
from extproc.fleet.prefixes import from_counts, from_hashes, from_sessions, hit_share
from extproc.fleet.replay import Replay
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.simulation import PoolSpec, simulate
from extproc.fleet.steady import RunSettings
from extproc.fleet.steptime import Linear
from extproc.fleet.strategy import StrategyName, StrategySpec

PROJECT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("EXTPROC_SHARED", PROJECT.parent / "shared"))
MOONCAKE = SHARED / "data" / "traces" / "mooncake_conversation_trace.jsonl.gz"


def test_hashes_that_never_part_are_one_key() -> None:
    one, two, three = from_hashes(
        [(1, 2, 3, 4), (1, 2, 3, 5), (9, 8)], 512, [2048, 2047, 1500]
    )
    # The last block of the second prompt is not full.
    assert one == Prefix((3, 4), (1536, 2048))
    assert two == Prefix((3,), (1536,))
    assert three == Prefix((8,), (1024,))


def test_a_prompt_without_a_full_block_is_like_no_other() -> None:
    assert from_hashes([(1,), ()], 512, [511, 600]) == (None, None)


def test_turns_repeat_what_was_said_before() -> None:
    first, cut, second, thought, other = from_sessions(
        ["a", "b", "a", "a", None], [100, 50, 200, 215, 9], [20, 5, 30, 10, 9]
    )
    assert first == Prefix(((0, "prompt"), (0, "answer")), (100, 120))
    assert cut is not None
    assert not set(cut.keys) & set(first.keys if first else ())
    assert second is not None
    assert second.ends == (100, 120, 200, 230)
    assert second.keys[:2] == ((0, "prompt"), (0, "answer"))
    # The third prompt repeats the second prompt, but not the second answer of 30
    # tokens, because the third prompt has only 15 more tokens.
    assert thought is not None
    assert thought.ends == (100, 120, 200, 215, 225)
    assert thought.keys[:3] == second.keys[:3]
    assert other is None


def test_a_shorter_prompt_begins_anew() -> None:
    first, second = from_sessions(["a", "a"], [100, 90], [20, 5])
    assert first is not None
    assert second is not None
    assert not set(first.keys) & set(second.keys)


def test_a_cache_that_forgets_nothing() -> None:
    prefixes = from_sessions(["a", "a"], [100, 200], [20, 10])
    # The 120 repeated tokens fill 7 blocks of 16 tokens.
    assert hit_share(prefixes, [100, 200]) == 112 / 300
    assert hit_share(prefixes, [100, 200], classes=[0, 1]) == 0


@pytest.mark.skipif(
    not MOONCAKE.exists(), reason="no Mooncake trace beside the project"
)
def test_the_hit_share_of_mooncakes_conversations() -> None:
    with gzip.open(MOONCAKE, "rt") as lines:
        records = [json.loads(line) for line in lines]
    prompts = [record["input_length"] for record in records]
    prefixes = from_hashes([r["hash_ids"] for r in records], 512, prompts)
    assert hit_share(prefixes, prompts) == pytest.approx(0.373, abs=0.001)


def reporting(cached: list[int]) -> Replay:
    """Return ten requests a second of 1,000 tokens, with these reported cached tokens."""
    count = len(cached)
    prompts, outputs = np.full(count, 1000), np.full(count, 20)
    instants = np.arange(count) / 10
    prefixes = from_counts(cached)
    return Replay(instants, prompts, outputs, count / 10, prefixes=prefixes)


@pytest.mark.parametrize("caching", [True, False])
def test_reported_counts_are_found_up_to_what_caching_could_find(caching: bool) -> None:
    # 15 tokens do not fill a block, and no hit covers the whole prompt, even if 1,000
    # or more cached tokens are reported.
    replay = reporting([0, 15, 16, 640, 1000, 5000] * 50)
    limits = SchedulerLimits(64, 2048, 8192, 4000, enable_prefix_caching=caching)
    pool = PoolSpec("all", 2, limits, Linear(0.01, 2e-4, 2e-5), 8192)
    run = RunSettings(replay.requests, seed=1, fill=0, taught=0)
    oracle = StrategySpec(StrategyName.ORACLE, {"prose": 1.0})

    result = simulate([pool], replay, oracle, run).pools[0]

    assert replay.prefixes is not None
    found = (16 + 640 + 992 + 992) / 6000 if caching else 0
    assert result.cached_share == pytest.approx(found)
    if caching:
        prompts = replay.prompts.tolist()
        assert hit_share(replay.prefixes, prompts) == pytest.approx(found)


def test_counts_that_say_nothing_was_found_are_no_prefixes() -> None:
    assert from_counts([0, 0]) is None


def conversations(count: int, turns: int) -> Replay:
    """Return sessions with a turn every four minutes.

    Each turn adds 512 prompt tokens and 64 output tokens.
    """
    rng = np.random.default_rng(3)
    starts = np.sort(rng.random(count) * 600)
    instants = np.concatenate([starts + 240 * turn for turn in range(turns)])
    order = np.argsort(instants, kind="stable")
    sessions = [str(row % count) for row in order.tolist()]
    prompts = np.array([512 + 576 * (row // count) for row in order.tolist()])
    outputs = np.full(len(prompts), 64)
    prefixes = from_sessions(sessions, prompts.tolist(), outputs.tolist())
    return Replay(
        instants[order], prompts, outputs, float(instants.max()) + 1, prefixes=prefixes
    )


@pytest.mark.parametrize("limited", [False, True])
def test_requests_are_sent_where_their_prefix_is(limited: bool) -> None:
    blocks = 4000 if limited else 60_000
    replay = conversations(600, 4)

    def cached(balancing: Balancing) -> float:
        pool = PoolSpec(
            "all",
            4,
            SchedulerLimits(64, 2048, 8192, blocks),
            Linear(base_s=0.01, seq_s=2e-4, token_s=2e-5),
            8192,
            balancing=balancing,
        )
        run = RunSettings(len(replay.prompts), seed=1, fill=0, taught=0)
        oracle = StrategySpec(StrategyName.ORACLE, {"prose": 1.0})
        result = simulate([pool], replay, oracle, run)
        assert result.pools[0].requests == len(replay.prompts)
        return result.pools[0].cached_share

    assert replay.prefixes is not None
    ideal = hit_share(replay.prefixes, replay.prompts.tolist())
    affine, spread = cached(Balancing.PREFIX), cached(Balancing.RANDOM)
    assert cached(Balancing.LEAST_REQUEST) == pytest.approx(spread, abs=0.05)
    assert 0 < spread < 0.55 * affine
    assert affine <= ideal
    if not limited:
        assert affine > 0.9 * ideal


def test_rounds_and_copies_have_nothing_in_common() -> None:
    replay = conversations(10, 2).at_rate(conversations(10, 2).rate * 2)
    first, again = (
        block[3]
        for block, _ in zip(
            replay(np.random.default_rng(0), np.random.default_rng(0)),
            range(2),
            strict=False,
        )
    )
    assert first is not None
    assert again is not None
    keys = [key for prefix in (*first, *again) if prefix for key in prefix.keys[:1]]
    assert len(set(keys)) == 4 * 10
