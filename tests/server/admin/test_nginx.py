"""The nginx example runs in a real nginx in front of two stand-ins."""

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

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

pytestmark = pytest.mark.skipif(
    NGINX is None, reason="no nginx: apt-get install nginx-light"
)


def start_nginx(folder: Path, port: int, addresses: dict[str, str]) -> list[str]:
    # The distribution's default folders are writable only by root.
    own = "".join(
        f"  {kind}_temp_path {folder / kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = put_in_place(
        (CONFIGURATIONS / "nginx.conf").read_text(),
        addresses
        | {
            # A busy test machine may exceed the router's timeout.
            "proxy_connect_timeout 200ms": "proxy_connect_timeout 20s",
            "proxy_read_timeout 1s": "proxy_read_timeout 20s",
            "http {\n": f"http {{\n{own}",
            "listen 8080": f"listen 127.0.0.1:{port}",
            "worker_processes auto": "worker_processes 1",
        },
    )
    file = folder / "nginx.conf"
    file.write_text(f"daemon off;\npid {folder / 'pid'};\n{text}")
    assert NGINX is not None
    return [NGINX, "-p", str(folder), "-c", str(file), "-e", "stderr"]


def test_routes_by_budget_and_forwards_the_request_as_it_was(tmp_path: Path) -> None:
    async def steps(gateway: Gateway) -> None:
        await forwards_as_it_was(gateway)
        got = await gateway.post(chat(max_tokens=20_000))
        assert got["backend"] == "vllm-long"
        got = await gateway.post(chat(60_000))
        assert (got["backend"], got["whole"]) == ("vllm-long", True)
        got = await gateway.post(b'{"prompt": "x"}', "/v1/completions?a=b")
        assert (got["backend"], got["path"]) == ("vllm-short", "/v1/completions?a=b")

    through_gateway(start_nginx, tmp_path, steps)


def test_what_cannot_be_decided_goes_to_the_long_pool(tmp_path: Path) -> None:
    async def steps(gateway: Gateway) -> None:
        for body in (b"not JSON}", b'{"a":1}' * 200_000, b" " * (3 << 20) + b"}"):
            got = await gateway.post(body)
            assert got["backend"] == "vllm-long"
            assert got["bytes"] == len(body)
        async with gateway.client.get(f"{gateway.url}/v1/models") as response:
            assert b"vllm-long" in await response.read()
        await gateway.admin.stop()
        got = await gateway.post(chat())
        assert (got["backend"], got["method"]) == ("vllm-long", "POST")

    through_gateway(start_nginx, tmp_path, steps)


def test_clients_cannot_choose_and_streams_are_not_held(tmp_path: Path) -> None:
    async def steps(gateway: Gateway) -> None:
        forged = {"x-llm-pool": "long", "x-accel-redirect": "@long"}
        got = await gateway.post(chat(), **forged)
        assert (got["backend"], got["pool"]) == ("vllm-short", "short")
        await holds_no_stream(gateway)

    through_gateway(start_nginx, tmp_path, steps)
