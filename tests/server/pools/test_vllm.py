"""Responses in which vLLM describes itself, and responses that only look similar."""

import asyncio
import json
import ssl

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.pressure import EndpointLoad
from extproc.server.pools.vllm import (
    MAX_ANSWER_BYTES,
    ServedModels,
    Vllm,
    VllmError,
    parse_metrics,
    parse_models,
)

from .fake_vllm import METRICS, FakeVllm


def ask(server, question, *, tls=None, name=None, **options):
    """Start a server, query it, stop it, and return the answer."""

    async def scenario():
        await server.start()
        connector = aiohttp.TCPConnector(ssl=tls or True)
        try:
            async with aiohttp.ClientSession(connector=connector) as session:
                url = server.url.replace(server.host, name or server.host)
                return await question(Vllm(session, url, **options))
        finally:
            await server.stop()

    return asyncio.run(scenario())


def test_a_certificate_is_held_against_the_name_not_the_address(
    certificate, server_tls
):
    trusted = ssl.create_default_context(cafile=certificate)
    server = FakeVllm(tls=server_tls)
    options = {"tls": trusted, "name": "localhost", "address": server.host}
    assert ask(server, Vllm.models, **options).max_model_len == 8192
    options["name"] = "another.test"
    with pytest.raises(VllmError, match="certificate: "):
        ask(server, Vllm.models, **options)


def test_no_one_else_is_asked_where_a_server_says_so():
    """A redirect is not followed, because the API key is only for this server."""
    other = FakeVllm()
    server = FakeVllm()

    async def question(vllm):
        await other.start()
        server.moved_to = other.url
        try:
            return (await vllm.models()).max_model_len
        finally:
            await other.stop()

    assert ask(server, question) is None
    assert other.asked == []


def test_an_answer_without_end_is_not_read_to_it():
    server = FakeVllm()
    server.comment = "#" * MAX_ANSWER_BYTES
    with pytest.raises(VllmError, match=f"over {MAX_ANSWER_BYTES} bytes"):
        ask(server, Vllm.load)


def test_a_key_that_is_gone_is_an_answer_that_is_not_given(tmp_path):
    file = tmp_path / "key"
    with pytest.raises(VllmError, match="No such file"):
        ask(FakeVllm(), Vllm.load, key_file=str(file))
    file.write_text("two\nlines")
    with pytest.raises(VllmError, match="contains no API key"):
        ask(FakeVllm(), Vllm.load, key_file=str(file))


@pytest.mark.parametrize("missing", ["waiting", "running", "usage_perc"])
def test_a_load_of_which_a_part_is_missing_is_none(missing):
    lines = METRICS.format(waiting=1, usage=0.5).splitlines()
    kept = "\n".join(line for line in lines if missing not in line)
    assert parse_metrics("\n".join(lines).encode()) is not None
    assert parse_metrics(kept.encode()) is None


def test_the_window_is_the_widest_of_the_models():
    models = {"data": [{"max_model_len": n} for n in (4096, None, 8192, 2048)]}
    assert parse_models(json.dumps(models).encode()).max_model_len == 8192


def test_metrics_of_several_engines_are_added_up():
    text = (
        b'vllm:num_requests_waiting{engine="0"} 2.0\n'
        b'vllm:num_requests_waiting{engine="1"} 3.0\n'
        b"vllm:num_requests_running 4\n"
        b'vllm:gpu_cache_usage_perc{engine="0"} 0.25\n'
        b'vllm:gpu_cache_usage_perc{engine="1"} 0.75\n'
    )
    assert parse_metrics(text) == EndpointLoad(5.0, 4.0, 0.5)


@pytest.mark.parametrize("value", [b"NaN", b"+Inf", b"-1", b"many"])
def test_values_that_are_no_counts_do_not_count(value):
    text = METRICS.encode().replace(b"{waiting}", value).replace(b"{usage}", b"0")
    assert parse_metrics(text) is None


@given(st.binary(max_size=300))
def test_any_answer_is_survived(body):
    parse_metrics(body)
    parse_metrics(b"vllm:num_requests_waiting " + body)
    parse_models(body)
    parse_models(b'{"data":[' + body + b"]}")


def test_the_names_that_a_server_lists_are_its_model_s() -> None:
    """vLLM lists its base model under each of its names, and each adapter with its
    parent.
    """
    models = {
        "data": [
            {"id": "llama", "max_model_len": 8192, "parent": None},
            {"id": "meta/llama", "max_model_len": 8192},
            {"id": "support-v2", "parent": "llama", "max_model_len": None},
            {"id": ""},
        ]
    }
    served = parse_models(json.dumps(models).encode())
    assert served == ServedModels(8192, ("llama", "meta/llama", "support-v2"), "llama")
