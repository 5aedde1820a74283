"""What the server costs behind a real Envoy: CPU a request, throughput, latency.

    python tests/benchmarks/bench_envoy.py [--seconds 5] [--rounds 3] [--body-bytes 4000]

Envoy (one worker) answers by itself, so that it and the ext_proc server are all there
is; wrk (Debian: wrk) sends chat requests over 16 connections for CPU and throughput,
and over one for latency. Bare Envoy, a grpc.aio server that does nothing but answer,
and ``extproc serve`` on both transports run in turn, rounds times over. CPU is the
process's own, from /proc. Medians; on a machine that is not quiet, read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from extproc.demo.envoy_config import find_envoy
from extproc.demo.process import Child, answers_200, free_ports
from extproc.exchange.events import Continue, RequestBody, RequestHeaders
from extproc.server.codec import encode
from extproc.server.service import PROCESS

TYPE = "type.googleapis.com/envoy.extensions"
SERVERS = ("bare", "lean grpc.aio", "grpcio", "native")


def envoy_config(port: int, admin: int, extproc: int | None) -> dict[str, Any]:
    """One listener that answers by itself, with or without ext_proc before it."""
    router = {"@type": f"{TYPE}.filters.http.router.v3.Router"}
    filters: list[Any] = [{"name": "router", "typed_config": router}]
    clusters = []
    if extproc is not None:
        ext_proc = {
            "@type": f"{TYPE}.filters.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": {"envoy_grpc": {"cluster_name": "extproc"}},
            "processing_mode": {
                "request_body_mode": "BUFFERED",
                "response_header_mode": "SKIP",
            },
            "allow_mode_override": True,
            "message_timeout": "2s",
        }
        filters.insert(0, {"name": "ext_proc", "typed_config": ext_proc})
        clusters.append(http2_cluster(extproc))
    answer = {"status": 200, "body": {"inline_string": "{}"}}
    host = {
        "name": "all",
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "direct_response": answer}],
    }
    manager = {
        "@type": f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": [host]},
        "http_filters": filters,
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listener = {"address": address(port), "filter_chains": [chain]}
    return {
        "admin": {"address": address(admin)},
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }


def address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def http2_cluster(port: int) -> dict[str, Any]:
    protocol = {
        "@type": f"{TYPE}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    endpoint = {"endpoint": {"address": address(port)}}
    return {
        "name": "extproc",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol
        },
        "load_assignment": {
            "cluster_name": "extproc",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }


async def serve_lean(port: int) -> None:
    """Answer every message with nothing: what grpc.aio itself costs."""
    replies = (
        *encode(RequestHeaders({}), Continue()),
        *encode(RequestBody(b""), Continue()),
    )

    async def process(_: object, context: Any) -> None:
        for reply in replies:
            if await context.read() is grpc.aio.EOF:
                return
            await context.write(reply)

    service, method = PROCESS[1:].split("/")
    handler = grpc.stream_stream_rpc_method_handler(process)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


@contextlib.contextmanager
def running(server: str, directory: Path) -> Iterator[tuple[int, Child | None]]:
    """Envoy and one server; gives Envoy's port and the server's process."""
    port, admin, extproc, extproc_admin = free_ports(4)
    child = None
    if server == "lean grpc.aio":
        command = [sys.executable, __file__, "--serve-lean", str(extproc)]
        child = Child(server, command, directory / "server.log")
    elif server != "bare":
        command = [sys.executable, "-m", "extproc", "serve"]
        environment = {
            "EXTPROC_LISTEN": f"127.0.0.1:{extproc}",
            "EXTPROC_ADMIN": f"127.0.0.1:{extproc_admin}",
            "EXTPROC_TRANSPORT": server,
        }
        child = Child(server, command, directory / "server.log", environment)
    config = envoy_config(port, admin, extproc if child else None)
    (directory / "envoy.json").write_text(json.dumps(config))
    command = [find_envoy(), "-c", str(directory / "envoy.json"), "--concurrency", "1"]
    command += ["--use-dynamic-base-id", "-l", "error"]
    envoy = Child("envoy", command, directory / "envoy.log")
    with child or contextlib.nullcontext(), envoy:
        envoy.wait_ready(lambda: answers_200(f"http://127.0.0.1:{admin}/ready"), 30)
        # Through the server: until it listens, Envoy answers 500.
        envoy.wait_ready(lambda: answers_200(f"http://127.0.0.1:{port}/"), 30)
        yield port, child


def wrk(directory: Path, port: int, seconds: int, connections: int) -> dict[str, float]:
    script = str(directory / "post.lua")
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    out = subprocess.run(
        [*command, "-s", script, url], capture_output=True, text=True, check=True
    ).stdout
    units = {"us": 1e-3, "ms": 1.0, "s": 1e3}

    def quantile(percent: int) -> float:
        found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s)$", out, re.MULTILINE)
        assert found, out
        return float(found[1]) * units[found[2]]

    requests = re.search(r"(\d+) requests in", out)
    assert requests, out
    assert "Non-2xx" not in out, out
    return {
        "requests": int(requests[1]),
        "rps": int(requests[1]) / seconds,
        "p50_ms": quantile(50),
        "p99_ms": quantile(99),
    }


def cpu_s(child: Child | None) -> float:
    if child is None:
        return 0.0
    fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(server: str, args: argparse.Namespace) -> dict[str, float]:
    text = "the quick brown fox jumps over 13 lazy dogs; " * (args.body_bytes // 45 + 1)
    message = {"role": "user", "content": text[: args.body_bytes]}
    body = json.dumps({"model": "m", "max_tokens": 256, "messages": [message]})
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "post.lua").write_text(
            'wrk.method="POST"\nwrk.headers["content-type"]="application/json"\n'
            f"wrk.body=[[{body}]]\n"
        )
        with running(server, directory) as (port, child):
            wrk(directory, port, 2, 16)
            before = cpu_s(child)
            busy = wrk(directory, port, args.seconds, 16)
            spent = cpu_s(child) - before
            alone = wrk(directory, port, args.seconds, 1)
    return {
        "cpu_us": 1e6 * spent / busy["requests"],
        "rps": busy["rps"],
        "p50_ms": alone["p50_ms"],
        "p99_ms": alone["p99_ms"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--body-bytes", type=int, default=4000)
    parser.add_argument(
        "--serve-lean", type=int, metavar="PORT", help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.serve_lean:
        asyncio.run(serve_lean(args.serve_lean))
    if shutil.which("wrk") is None:
        print("wrk is not installed (Debian: apt-get install wrk)", file=sys.stderr)
        return 2
    rounds = [{s: measure(s, args) for s in SERVERS} for _ in range(args.rounds)]
    rows = {
        s: {k: statistics.median(r[s][k] for r in rounds) for k in rounds[0][s]}
        for s in SERVERS
    }
    print(
        f"{'server':<14} {'CPU us':>8} {'/ grpcio':>9} {'req/s':>8} {'added p50, p99 ms':>18}"
    )
    for name, row in rows.items():
        ratio = row["cpu_us"] / rows["grpcio"]["cpu_us"]
        added = [row[k] - rows["bare"][k] for k in ("p50_ms", "p99_ms")]
        print(
            f"{name:<14} {row['cpu_us']:>8.0f} {ratio:>9.2f} {row['rps']:>8.0f} "
            f"{added[0]:>9.2f} {added[1]:>8.2f}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
