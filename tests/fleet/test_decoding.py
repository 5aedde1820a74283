"""The decode instance agrees with single steps and with queueing laws."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.fleet.decoding import Decode, DecodeInstance
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.steptime import Linear

STEP = Linear(base_s=10e-3, seq_s=0.1e-3, context_s=1e-7)


def limits(seqs: int = 4, blocks: int = 200) -> SchedulerLimits:
    return SchedulerLimits(seqs, 512, 2048, blocks)


def run(requests: list[Decode], bounds: SchedulerLimits) -> DecodeInstance:
    instance = DecodeInstance(bounds, STEP)
    for request in requests:
        instance.add(request)
    instance.advance(math.inf)
    return instance


def step_by_step(requests: list[Decode], bounds: SchedulerLimits) -> None:
    """Simulate one step at a time, as the simplest reference for an instance."""
    coming = sorted(requests, key=lambda one: one.ready_s)
    waiting: list[Decode] = []
    pulling: list[tuple[float, Decode]] = []
    decoding: dict[Decode, int] = {}
    free, now = bounds.usable_blocks, 0.0

    def blocks(one: Decode) -> int:
        return bounds.blocks_for(one.prompt_tokens + one.output_tokens)

    def admit(at_s: float) -> None:
        nonlocal free
        while waiting and len(pulling) + len(decoding) < bounds.max_num_seqs:
            if blocks(waiting[0]) > free:
                return
            one = waiting.pop(0)
            free -= blocks(one)
            pulling.append((max(at_s, one.ready_s) + one.transfer_s, one))

    while coming or waiting or pulling or decoding:
        while coming and coming[0].ready_s <= now:
            waiting.append(coming.pop(0))
            admit(waiting[-1].ready_s)
        for arrival_s, one in sorted(pulling, key=lambda pair: pair[0]):
            if arrival_s <= now:
                decoding[one] = 0
        pulling[:] = [pair for pair in pulling if pair[1] not in decoding]
        if not decoding:
            instants = [pair[0] for pair in pulling] + [c.ready_s for c in coming[:1]]
            now = max(now, min(instants))
            continue
        context = sum(one.prompt_tokens - 1 + done for one, done in decoding.items())
        now += STEP.fixed_s(0, len(decoding)) + STEP.context_s * context
        for one in list(decoding):
            decoding[one] += 1
            if decoding[one] == 1:
                one.first_token_s = now
            if decoding[one] == one.output_tokens:
                one.finish_s = now
                free += blocks(one)
                del decoding[one]
        # Requests that arrive during the step are admitted at its end, in order of
        # arrival.
        while coming and coming[0].ready_s <= now:
            waiting.append(coming.pop(0))
        admit(now)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(20, 120))
def test_jumps_take_the_steps_that_a_plain_loop_takes(
    seed: int, seqs: int, blocks: int
) -> None:
    rng = random.Random(seed)
    # Arrivals and steps are on different time grids, so that no two instants coincide.
    requests = [
        Decode(i * 0.0437 * rng.random() * 4, rng.randint(1, 90), rng.randint(1, 60))
        for i in range(12)
    ]
    requests.sort(key=lambda one: one.ready_s)
    bounds = limits(seqs, blocks)
    plain = [Decode(r.ready_s, r.prompt_tokens, r.output_tokens) for r in requests]
    instance = run(requests, bounds)
    step_by_step(plain, bounds)
    assert len(instance.finished) == len(requests)
    for ours, theirs in zip(requests, plain, strict=True):
        assert ours.finish_s == pytest.approx(theirs.finish_s, abs=0.06)
        assert ours.first_token_s <= ours.finish_s


def test_one_request_takes_its_transfer_and_its_steps() -> None:
    request = Decode(1.0, 101, 3, transfer_s=0.5)
    instance = run([request], limits())
    steps = [10.1e-3 + 1e-7 * (100 + k) for k in range(3)]
    assert request.first_token_s == pytest.approx(1.5 + steps[0])
    assert request.finish_s == pytest.approx(1.5 + sum(steps))
    assert instance.busy_s == pytest.approx(sum(steps))


def test_nobody_is_admitted_without_room_for_all_of_it() -> None:
    """Two requests take 9 blocks each of the 20 usable blocks, so the third waits.

    A block has 16 tokens.
    """
    requests = [Decode(0.001 * k, 100, 44) for k in range(3)]
    run(requests, limits(blocks=21))
    assert requests[2].first_token_s > requests[0].finish_s
    assert requests[1].first_token_s < requests[0].finish_s
    with pytest.raises(ValueError, match="the KV cache"):
        run([Decode(0.0, 400, 1)], limits(blocks=21))
    with pytest.raises(ValueError, match="max_model_len"):
        run([Decode(0.0, 2048, 1)], limits())


def test_littles_law_holds() -> None:
    rng = random.Random(5)
    now, requests = 0.0, []
    for _ in range(4000):
        now += rng.expovariate(8.0)
        requests.append(Decode(now, rng.randint(10, 500), rng.randint(5, 60)))
    instance = run(requests, limits(seqs=64, blocks=4000))
    span_s = max(one.finish_s for one in requests)
    decoding = sum(one.finish_s - one.ready_s for one in requests) / span_s
    assert instance.running_s / span_s == pytest.approx(decoding, rel=0.05)
    assert instance.busy_s < span_s
