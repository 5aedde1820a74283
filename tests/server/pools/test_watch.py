"""The watch over pools, whose HTTP servers respond like vLLM or fail."""

import asyncio
import dataclasses

import pytest

from extproc.config import ConfigError, LoadConfig, PoolConfig
from extproc.routing.policy import PoolLoad
from extproc.server.pools.watch import LoadWatch

from .fake_vllm import FakeVllm
from .watches import FAST, becomes, until, watch_over, watching

LOGGER = "extproc.server.pools.watch"
DIFFERS = "max_model_len_differs"


def test_a_queue_is_pressure_and_its_end_is_relief():
    async def scenario():
        server = FakeVllm()
        server.waiting = 9.0
        async with watching(server) as watch:
            assert watch.current() == {"short": PoolLoad(under_pressure=True)}
            (status,) = watch.statuses()
            assert (status.waiting, status.kv_cache_usage) == (9.0, 0.25)
            server.waiting = 1.0
            await becomes(watch, PoolLoad())

    asyncio.run(scenario())


def test_what_is_routed_counts_before_it_is_measured():
    async def scenario():
        server = FakeVllm()
        server.waiting = 6.0
        slow = LoadConfig(interval_s=30.0)
        async with watching(server, config=slow) as watch:
            watch.routed("short")
            watch.routed("long")
            assert watch.current() == {"short": PoolLoad()}
            watch.routed("short")
            assert watch.current() == {"short": PoolLoad(under_pressure=True)}

    asyncio.run(scenario())


def test_what_has_ended_counts_before_it_is_measured():
    async def scenario():
        server = FakeVllm()
        server.waiting = 9.0
        slow = LoadConfig(interval_s=30.0)
        async with watching(server, config=slow) as watch:
            for _ in range(4):
                watch.landed("short")
            watch.landed("long")
            assert watch.current() == {"short": PoolLoad(under_pressure=True)}
            watch.landed("short")
            assert watch.current() == {"short": PoolLoad()}

    asyncio.run(scenario())


def test_a_pool_is_down_once_no_endpoint_answers_and_up_once_one_does():
    async def scenario():
        one, other = FakeVllm(), FakeVllm()
        async with watching(one, other) as watch:
            await one.stop()
            await other.stop()
            await becomes(watch, PoolLoad(available=False))
            (status,) = watch.statuses()
            assert (status.endpoints, status.healthy) == (2, 0)
            await other.start(other.port)
            await becomes(watch, PoolLoad())

    asyncio.run(scenario())


def test_metrics_that_are_gone_are_neither_pressure_nor_illness():
    async def scenario():
        server = FakeVllm()
        server.waiting = 50.0
        async with watching(
            server, clock=lambda: 100.0
        ) as watch:  # no load becomes stale
            assert watch.current()["short"].under_pressure
            server.metrics_status = 404
            await becomes(watch, PoolLoad())
            assert watch.statuses()[0].waiting is None
            server.health_status = 503
            await becomes(watch, PoolLoad(available=False))

    asyncio.run(scenario())


def test_stale_data_is_no_data():
    async def scenario():
        now = 100.0
        one, other = FakeVllm(), FakeVllm()
        one.waiting = 50.0
        async with watching(one, other, clock=lambda: now) as watch:
            assert watch.current()["short"].under_pressure
            one.talks.clear()
            await other.is_asked(3)
            now += FAST.stale_after_s + 1
            await until(watch, waiting=0.0, healthy=2)  # not unhealthy so soon
            assert not watch.current()["short"].under_pressure

    asyncio.run(scenario())


def test_data_of_an_endpoint_that_is_down_is_no_data():
    async def scenario():
        one, other = FakeVllm(), FakeVllm()
        one.waiting = 50.0
        async with watching(one, other, clock=lambda: 100.0) as watch:
            await one.stop()
            await until(watch, waiting=0.0, healthy=1)

    asyncio.run(scenario())


def test_what_was_routed_is_in_what_is_measured_after_it():
    async def scenario():
        server = FakeVllm()
        server.waiting = 6.0
        config = dataclasses.replace(FAST, relief=0.5)
        async with watching(server, config=config) as watch:
            for _ in range(2):
                watch.routed("short")
            assert watch.current() == {"short": PoolLoad(under_pressure=True)}
            server.waiting = 3.0
            await becomes(watch, PoolLoad())

    asyncio.run(scenario())


def test_a_question_or_two_without_an_answer_are_no_illness(caplog):
    async def scenario():
        server = FakeVllm()
        async with watching(server) as watch:
            server.unanswered = 2
            await server.is_asked(6)
            assert "endpoint_down" not in caplog.text
            server.unanswered = 3
            await server.is_asked(6)
            await until(watch, healthy=1)

    with caplog.at_level("INFO"):
        asyncio.run(scenario())
    events = [record.message for record in caplog.records if record.name == LOGGER]
    # Each event is logged only once, however often the servers are polled.
    down, up = ["endpoint_down", "pool_load"], ["endpoint_back", "pool_load"]
    assert events == [*down, *up]


def test_the_window_is_asked_for_now_and_then_and_of_whoever_comes_back():
    async def scenario():
        server = FakeVllm()
        async with watching(server, clock=lambda: 100.0) as watch:
            await server.is_asked(5)
            assert server.asked.count("/v1/models") == 1
            await server.stop()
            await becomes(watch, PoolLoad(available=False))
            server.max_model_len = 4096
            await server.start(server.port)
            await until(watch, max_model_len_differs=True)

    asyncio.run(scenario())


def test_a_fault_of_ours_does_not_end_the_watch(caplog):
    async def scenario():
        faults = iter([ZeroDivisionError])

        def clock():
            if server.waiting:
                for fault in faults:
                    raise fault
            return 100.0

        server = FakeVllm()
        async with watching(server, clock=clock) as watch:
            server.waiting = 9.0
            await becomes(watch, PoolLoad(under_pressure=True))

    asyncio.run(scenario())
    assert "load_watch_failed" in caplog.text


def test_a_window_that_is_not_the_configured_one_is_an_error_at_start():
    async def scenario():
        async with watching(FakeVllm(max_model_len=4096)):
            pass

    with pytest.raises(ConfigError, match=r"pool short: max_model_len: 8192.* 4096"):
        asyncio.run(scenario())


def test_a_window_that_changes_later_is_shown_and_said(caplog):
    async def scenario():
        now = 100.0
        server = FakeVllm()

        async with watching(server, clock=lambda: now) as watch:
            assert not watch.statuses()[0].max_model_len_differs
            server.max_model_len = 4096
            now += 61
            async with asyncio.timeout(10):
                while not watch.statuses()[0].max_model_len_differs:
                    await asyncio.sleep(0.005)
            now += 61
            await server.is_asked(1, "/v1/models")
            await server.is_asked(2)

    asyncio.run(scenario())
    said = [each.fields for each in caplog.records if each.message == DIFFERS]
    assert [fields["max_model_len"] for fields in said] == [4096]  # logged once


def test_a_start_that_is_given_up_asks_no_more():
    async def scenario():
        server = FakeVllm()
        server.talks.clear()
        async with watch_over(server) as watch:
            starting = asyncio.create_task(watch.start())
            await server.is_asked(1)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await asyncio.sleep(0)
            assert not any("LoadWatch" in repr(task) for task in asyncio.all_tasks())

    asyncio.run(scenario())


def test_endpoints_that_are_not_there_yet_do_not_keep_it_from_starting():
    async def scenario():
        pool = PoolConfig("short", 8192, endpoints=("http://127.0.0.1:9",))
        watch = LoadWatch([pool], FAST)
        await watch.start()
        await becomes(watch, PoolLoad(available=False))
        await watch.stop()

    asyncio.run(scenario())


def test_a_key_is_sent_and_never_said(tmp_path, caplog):
    file = tmp_path / "key"
    file.write_text("hidden-secret\n")

    async def scenario():
        server = FakeVllm(key="hidden-secret")
        async with watch_over(server, max_model_len=4096, key_file=str(file)) as watch:
            # The server accepted the key for /v1/models; otherwise the window would be
            # unknown.
            with pytest.raises(ConfigError, match="has 8192"):
                await watch.start()
            (status,) = watch.statuses()
            assert status.waiting == 0.0

    with caplog.at_level("DEBUG"):
        asyncio.run(scenario())
    assert "hidden-secret" not in caplog.text


def test_a_key_that_changes_is_read_again(tmp_path):
    file = tmp_path / "key"
    file.write_text("old")

    async def scenario():
        server = FakeVllm(key="old")
        async with watching(server, key_file=str(file)) as watch:
            await until(watch, waiting=0.0)
            server.key = "new"
            await until(watch, waiting=None)  # healthy, but reports no load
            file.write_text("new")
            await until(watch, waiting=0.0)

    asyncio.run(scenario())


@pytest.mark.parametrize("content", [None, b"", b"two\nlines", b"\xff\xfe"])
def test_a_key_that_cannot_be_one_is_an_error_at_start(content, tmp_path):
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    pool = PoolConfig("short", 8192, endpoints=("http://h",), api_key_file=str(file))
    with pytest.raises(ConfigError, match=r"pool short: api_key_file: .*key"):
        asyncio.run(LoadWatch([pool], FAST).start())
