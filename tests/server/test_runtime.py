"""What changes and what stays if a running server's configuration is replaced."""

import asyncio
import contextlib

import pytest

from extproc.config import ConfigError, load_config
from extproc.routing.features import measure
from extproc.routing.mergeable import snapshot
from extproc.routing.policy import PoolLoad
from extproc.routing.request import Prompt, Request
from extproc.server.build import build
from extproc.server.runtime import Runtime

from .pools.fake_vllm import FakeVllm

MODELS = 20
TEXT = b"some text to learn from " * 10


def config(server=None, threshold=10, rest=""):
    endpoints = f", endpoints: ['{server.url}']" if server else ""
    return load_config(
        f"pools: [{{name: s, max_model_len: 8192, threshold_tokens: {threshold}"
        f"{endpoints}}}, {{name: l, max_model_len: 65536}}]\n"
        "load: {interval_s: 30}\n" + rest,
        {},
    )


@contextlib.asynccontextmanager
async def serving(server=None, **options):
    if server:
        await server.start()
    live = Runtime(build(config(server, **options)), lambda: True, lambda call: call())
    await live.start()
    try:
        yield live
    finally:
        await live.stop()
        if server:
            await server.stop()


def replace(live, new):
    return live.replace(new, lambda component: {})


def teach(live, model):
    features = measure(Prompt(text=TEXT), len(TEXT))
    live.in_force.now.router.estimator.observe(model, "prose", features, 60)


def observed(router):
    groups = snapshot(router.estimator.estimator).items()
    return {key: group.observations for key, group in groups}


def test_what_is_learned_while_it_is_replaced_is_kept():
    async def scenario():
        async with serving() as live:
            for number in range(MODELS):
                teach(live, f"m{number}")
            before = live.in_force.now.router
            replacing = asyncio.create_task(replace(live, config(threshold=20)))
            slices = 0
            while not replacing.done():
                await asyncio.sleep(0)
                slices += 1
                if slices == MODELS:
                    teach(live, "m0")
                    teach(live, "new")
            await replacing
            assert (
                slices > MODELS
            )  # one group a turn, so that requests are served in between
            assert live.in_force.now.router is not before
            assert observed(live.in_force.now.router) == observed(before)
            assert observed(before)["m0"] == 2

    asyncio.run(scenario())


def test_all_that_knows_the_pools_knows_the_new_ones():
    async def scenario():
        async with serving() as live:
            history = live.in_force.now.sampler.history
            await replace(live, config(threshold=20, rest="mode: shadow\n"))
            sampler = live.in_force.now.sampler
            assert sampler.history is history  # the same counts as before
            assert sampler.limits == {"": live.in_force.now.router.policy.thresholds}
            report = live.status.report()
            assert report.pools[0].threshold_tokens == 20
            assert report.mode == "shadow"
            assert 20 in report.budgets.thresholds

    asyncio.run(scenario())


def test_another_feedback_is_begun_anew():
    async def scenario():
        async with serving() as live:
            history = live.in_force.now.sampler.history
            await replace(live, config(rest="feedback: {sample: 0.5}\n"))
            assert live.in_force.now.sampler.history is not history

    asyncio.run(scenario())


def test_budgets_go_on_under_the_same_limits_and_begin_again_under_others():
    async def scenario():
        async with serving() as live:
            budgets = live.in_force.now.budgets[""]
            await replace(live, config(rest="risk: {under_estimate_rate: 0.02}\n"))
            assert live.in_force.now.budgets[""] is budgets
            await replace(live, config(threshold=5000))
            assert live.in_force.now.budgets[""] is not budgets
            assert 5000 in live.in_force.now.budgets[""].thresholds

    asyncio.run(scenario())


def others():
    return asyncio.all_tasks() - {asyncio.current_task()}


def test_pools_are_watched_by_one_watch_at_a_time():
    async def scenario():
        async with serving(server := FakeVllm()) as live:
            watching = len([t for t in others() if "LoadWatch" in repr(t)])
            await replace(live, config(server, threshold=20))
            assert len([t for t in others() if "LoadWatch" in repr(t)]) == watching > 0

    asyncio.run(scenario())


def test_what_cannot_be_served_with_leaves_all_as_it_was():
    async def scenario():
        other = FakeVllm(max_model_len=4096)
        await other.start()
        async with serving(FakeVllm()) as live:
            was = live.in_force.now
            watching = len([t for t in others() if "LoadWatch" in repr(t)])
            with pytest.raises(ConfigError, match="has 4096"):
                await replace(live, config(other, threshold=20))
            assert live.in_force.now is was
            assert len([t for t in others() if "LoadWatch" in repr(t)]) == watching
        await other.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("mode", ["route", "shadow"])
def test_what_is_sent_and_comes_back_counts_where_it_is_routed(mode):
    async def scenario():
        server = FakeVllm()
        server.waiting = 7.0
        async with serving(server, threshold=4096, rest=f"mode: {mode}\n") as live:
            request = Request(Prompt(text=TEXT), len(TEXT), max_tokens=10)
            live.service.decided(live.in_force.now.router.route(request))
            routed = PoolLoad(under_pressure=mode == "route")
            assert live.in_force.now.loads() == {"s": routed}
            for key in range(4):
                live.service.in_flight.began(key, "s")
                live.service.in_flight.ended(key)
            assert live.in_force.now.loads() == {"s": PoolLoad()}

    asyncio.run(scenario())


def test_what_comes_back_of_another_time_counts_nothing_in_shadow_mode():
    async def scenario():
        server = FakeVllm()
        server.waiting = 8.0
        async with serving(server, rest="mode: shadow\n") as live:
            for key in range(4):
                live.service.in_flight.began(key, "s")
                live.service.in_flight.ended(key)
            assert live.in_force.now.loads() == {"s": PoolLoad(under_pressure=True)}

    asyncio.run(scenario())
