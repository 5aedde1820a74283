"""The HAProxy example runs in a real HAProxy in front of two stand-ins."""

import shutil
from pathlib import Path

import pytest

from .gateways import (
    CONFIGURATIONS,
    Gateway,
    chat,
    forwards_as_it_was,
    holds_no_stream,
    put_in_place,
    through_gateway,
)

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(HAPROXY is None, reason="no haproxy: apt-get install haproxy"),
]


def start_haproxy(folder: Path, port: int, addresses: dict[str, str]) -> list[str]:
    script = folder / "token_budget.lua"
    placeholders = {
        "extproc:9090": addresses.pop("extproc:9090"),
        # A busy test machine may exceed the router's timeout.
        "TIMEOUT_MS = 1000": "TIMEOUT_MS = 20000",
    }
    text = (CONFIGURATIONS / script.name).read_text()
    script.write_text(put_in_place(text, placeholders))
    placeholders = {
        f"/usr/local/etc/haproxy/{script.name}": str(script),
        "bind :8080": f"bind 127.0.0.1:{port}",
    }
    text = (CONFIGURATIONS / "haproxy.cfg").read_text()
    text = put_in_place(text, addresses | placeholders)
    file = folder / "haproxy.cfg"
    file.write_text(text)
    assert HAPROXY is not None
    return [HAPROXY, "-f", str(file), "-db"]


def test_routes_by_budget_and_forwards_the_request_as_it_was(tmp_path: Path) -> None:
    async def steps(gateway: Gateway) -> None:
        await forwards_as_it_was(gateway)
        got = await gateway.post(chat(max_tokens=20_000))
        assert (got["backend"], got["pool"]) == ("vllm-long", "long")
        # The request has 180 kB, and HAProxy reads the whole body.
        got = await gateway.post(chat(20_000))
        assert (got["backend"], got["pool"], got["whole"]) == (
            "vllm-long",
            "long",
            True,
        )
        got = await gateway.post(b'{"prompt": "x"}', "/v1/completions?a=b")
        assert (got["backend"], got["path"]) == ("vllm-short", "/v1/completions?a=b")

    through_gateway(start_haproxy, tmp_path, steps)


def test_what_cannot_be_decided_goes_to_the_long_pool(tmp_path: Path) -> None:
    async def steps(gateway: Gateway) -> None:
        for body in (b"not JSON}", b" " * (3 << 20) + b"}"):
            got = await gateway.post(body)
            assert got["backend"] == "vllm-long"
            assert (got["bytes"], got["whole"]) == (len(body), True)
        async with gateway.client.get(f"{gateway.url}/v1/models") as response:
            assert b"vllm-long" in await response.read()
        await gateway.admin.stop()
        got = await gateway.post(chat())
        assert (got["backend"], got["method"], got["pool"]) == (
            "vllm-long",
            "POST",
            None,
        )

    through_gateway(start_haproxy, tmp_path, steps)


def test_clients_cannot_choose_and_streams_are_not_held(tmp_path: Path) -> None:
    async def steps(gateway: Gateway) -> None:
        got = await gateway.post(chat(), **{"x-llm-pool": "long"})
        assert (got["backend"], got["pool"]) == ("vllm-short", "short")
        # The hint is a single word, whatever the client sends.
        got = await gateway.post(chat(), **{"x-llm-category": "co de&path=/v1/x"})
        assert got["backend"] == "vllm-short"
        await holds_no_stream(gateway)

    through_gateway(start_haproxy, tmp_path, steps)
