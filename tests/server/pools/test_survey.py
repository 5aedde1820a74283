"""Servers that ``extproc check-config --online`` queries once."""

import asyncio
import contextlib

from extproc.config import Config, ModelConfig, PoolConfig
from extproc.server.pools.survey import Finding, render, survey

from .fake_vllm import FakeVllm


def found(*servers, config=None, **options):
    """Start the servers, survey them, and return the result."""

    async def scenario():
        async with contextlib.AsyncExitStack() as stack:
            for server in servers:
                await server.start()
                stack.push_async_callback(server.stop)
            return await survey(config(), **options)

    return asyncio.run(scenario())


def pools(*servers, max_model_len=8192, **options):
    def config():
        urls = tuple(server.url for server in servers)
        pool = PoolConfig("short", max_model_len, endpoints=urls, **options)
        return Config(pools=(pool, PoolConfig("long", 65536)))

    return config


def test_a_server_that_fits_its_pool():
    server = FakeVllm()
    short, long = found(server, config=pools(server))
    assert short == Finding(
        "short",
        str(server.url),
        "max_model_len 8192; serves m, adapter; 3 running, 0 waiting",
    )
    assert long == Finding("long", "", "no endpoints: not checked")


def test_another_window_is_a_fault_with_both_numbers():
    server = FakeVllm(max_model_len=4096)
    short, _ = found(server, config=pools(server))
    assert short.faults == ("max_model_len: 4096; expected 8192",)


def test_a_window_that_is_not_said_and_no_metrics_are_no_faults():
    server = FakeVllm(max_model_len=None)
    server.metrics_status = 404
    short, _ = found(server, config=pools(server))
    assert short.faults == ()
    assert (
        short.said == "max_model_len not reported; serves m, adapter; no load metrics"
    )


def test_a_server_that_is_not_there_beside_one_that_is():
    gone, there = FakeVllm(), FakeVllm()

    async def scenario():
        await gone.start()
        await gone.stop()
        await there.start()
        try:
            return await survey(pools(gone, there)())
        finally:
            await there.stop()

    first, second, _ = asyncio.run(scenario())
    assert first.faults == ("/v1/models: connection refused",)
    assert second.faults == ()


def test_a_name_that_nobody_knows():
    config = Config(
        pools=(PoolConfig("short", 8192, endpoints=("http://vllm.invalid:8000",)),)
    )
    (only,) = asyncio.run(survey(config))
    assert only.faults == ("/v1/models: unknown host name",)


def test_a_key_that_is_missing_and_one_that_cannot_be_read(tmp_path):
    server = FakeVllm(key="secret")
    short, _ = found(server, config=pools(server))
    assert short.faults == (
        "/v1/models: status 401; expected 200 with an api_key_file",
    )

    file = tmp_path / "key"
    short, _ = found(server, config=pools(server, api_key_file=str(file)))
    assert str(file) in short.faults[0]

    file.write_text("secret")
    short, _ = found(server, config=pools(server, api_key_file=str(file)))
    assert short.faults == ()


def test_a_pool_of_a_model_has_to_serve_it():
    server = FakeVllm()

    def config():
        urls = (str(server.url),)
        own, other = (
            ModelConfig((PoolConfig(name, 8192, endpoints=urls),)) for name in "ab"
        )
        return Config(pools=(), models={"m": own, "qwen": other})

    right, wrong = found(server, config=config)
    assert right.faults == ()
    assert wrong.faults == ("models: m, adapter; expected qwen",)


def test_each_address_of_a_name_is_asked():
    server = FakeVllm(host="127.0.0.1")

    async def two(url):
        return ["127.0.0.1", "127.0.0.2"]

    first, second, _ = found(server, config=pools(server), resolve=two)
    assert first.faults == ()
    assert "(127.0.0.2)" in second.server
    assert second.faults != ()


def test_lines_are_plain_and_name_every_fault():
    lines = render(
        [
            Finding("short", "http://a:1", "serves m"),
            Finding("long", "http://bb:1", "serves m", ("one", "two")),
            Finding("other", "", "not asked"),
        ]
    )
    assert list(lines) == [
        "short  http://a:1   ok  (serves m)",
        "long   http://bb:1  WRONG one; WRONG two  (serves m)",
        "other               --  (not asked)",
    ]
