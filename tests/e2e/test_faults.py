"""If any component is broken, every request still gets its correct response.

Clients send short and long prompts through Envoy continuously, for JSON and SSE
responses. Each response is compared with the response to the same request before the
fault. This includes the token counts, which reveal a body that was truncated or
changed. Each fault is injected, lasts for a while, and is then removed. The output
lists the numbers of sent and failed requests, the longest wait of a client, and the
time from the fault's removal until requests are routed again.
"""

import contextlib
import json
import os
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.stack.envoy_config import find_config
from extproc.demo.stack.process import Child, free_ports
from extproc.demo.stack.stack import Backend, Router, Stack, envoy, router, stand_in

from ..patience import PATIENCE_S, wait_until
from .faults import Crowded, FakeVllm, Rig, make_clock, with_port
from .load import (
    CLIENTS,
    KINDS,
    Answer,
    Load,
    chat,
    exchange,
    in_parallel,
    only,
    post,
    read_some,
    served,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.faults,
    pytest.mark.xdist_group("faults"),
]

STEADY_S = 0.3


@pytest.fixture(scope="module", params=["grpcio", "native"])
def transport(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    only = os.environ.get("EXTPROC_TRANSPORT")
    if only and only != chosen:
        pytest.skip(f"EXTPROC_TRANSPORT is {only}")
    return chosen


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], transport: str) -> Callable[..., None]:
    """Return a function that prints a fault's effect and fails if requests failed."""

    def print_and_check(fault: str, load: Load, recovered_s: float) -> None:
        fault = f"{transport}: {fault}"
        longest_s = max(exchanged.seconds for exchanged in load.done)
        sent = len(load.done) + len(load.failed)
        with capsys.disabled():
            print(
                f"\n{fault:<50} sent {sent:>5}  failed {len(load.failed):>2}"
                f"  longest {longest_s:6.3f} s  recovered {recovered_s:6.3f} s",
                end="",
            )
        assert load.failed == []
        assert sent >= CLIENTS

    return print_and_check


@pytest.fixture(scope="module")
def make_rig(
    stack: Stack,
    transport: str,
    patiently: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Rig]]:
    """Return a function that starts routers, and an Envoy that uses all of them."""
    expected: dict[str, Answer] = {}
    with contextlib.ExitStack() as started:

        def make(
            config: dict[str, Any] | None = None,
            *,
            count: int = 1,
            backends: list[Backend] | None = None,
            routers: Sequence[Router] = (),
            patient: bool = False,
        ) -> Rig:
            directory = tmp_path_factory.mktemp("faults")
            settings = {"feedback": {"sample": "all"}, **(config or {})}
            settings["server"] = {"transport": transport, **settings.get("server", {})}
            routers = list(routers)
            for number in range(0 if routers else count):
                own = directory / f"router-{number}"
                own.mkdir()
                routers.append(router(settings, own))
                started.enter_context(routers[-1].child)

            def ask_all(bootstrap: dict[str, Any]) -> None:
                clusters = bootstrap["static_resources"]["clusters"]
                (cluster,) = (c for c in clusters if c["name"] == "extproc")
                endpoints = cluster["load_assignment"]["endpoints"][0]
                (first,) = endpoints["lb_endpoints"]
                endpoints["lb_endpoints"] = [
                    with_port(first, each.port) for each in routers
                ]

            new = envoy(
                find_config(),
                backends or stack.backends,
                routers[0].port,
                directory,
                change=patiently(ask_all) if patient else ask_all,
            )
            for each in routers:
                each.wait_ready()
            started.enter_context(new.child)
            new.wait_ready()
            if not expected:
                for kind in KINDS:
                    expected[kind] = exchange(new.port, kind).answer
            rig = Rig(new, routers, expected, directory)
            rig.wait_routing()
            return rig

        yield make


@pytest.fixture(scope="module")
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig({"server": {"max_body_bytes": 16 << 20}})


@pytest.fixture(scope="module")
def crowded(
    make_rig: Callable[..., Rig], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Crowded]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    pytest.importorskip("redis", reason="redis-py is not installed")
    directory = tmp_path_factory.mktemp("crowded")
    (port,) = free_ports(1)
    options = ["--port", str(port), "--save", "", "--dir", str(directory)]
    redis = Child("redis", ["redis-server", *options], directory / "redis.log")
    with redis, pytest.MonkeyPatch.context() as environment:
        crowded = Crowded(redis, port, make_clock(directory, environment))
        crowded.start_vllm()
        url = f"http://127.0.0.1:{crowded.vllm_port}"
        crowded.rig = make_rig(
            {
                "state": {
                    "store": "redis",
                    "url": f"redis://127.0.0.1:{port}",
                    "interval_s": 0.2,
                },
                "pools": [
                    {"name": "short", "max_model_len": 8192, "endpoints": [url]},
                    {"name": "long", "max_model_len": 65536},
                ],
                "load": {"interval_s": 0.1},
            },
            patient=True,
        )
        environment.undo()
        wait_until(lambda: crowded.rig.metric("extproc_state_synced_timestamp") > 0)
        yield crowded
        crowded.stop_vllm()


@pytest.fixture(autouse=True)
def healed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Heal the shared rig after each test."""
    yield
    if "rig" in request.fixturenames:
        shared: Rig = request.getfixturevalue("rig")
        shared.router.child.resume()
        if not shared.router.child.running:
            shared.router.child.start()
        shared.wait_routing()


def test_not_started(rig: Rig, report: Callable[..., None]) -> None:
    rig.router.child.stop()
    with rig.load() as load:
        load.run(STEADY_S)
        assert not any(exchanged.routed for exchanged in load.done)
        healed_s = time.monotonic()
        rig.router.child.start()
        recovered_s = load.routed_after(healed_s)
    report("router not started", load, recovered_s)


def test_killed(rig: Rig, report: Callable[..., None]) -> None:
    with rig.load() as load:
        load.run(STEADY_S)
        rig.router.child.kill()
        load.run(STEADY_S)
        healed_s = time.monotonic()
        rig.router.child.start()
        recovered_s = load.routed_after(healed_s)
    report("router killed (SIGKILL) under load", load, recovered_s)


def test_hung(rig: Rig, report: Callable[..., None]) -> None:
    with rig.load() as load:
        load.run(STEADY_S)
        rig.router.child.pause()
        load.run(3.0)
        healed_s = time.monotonic()
        rig.router.child.resume()
        recovered_s = load.routed_after(healed_s)
    report("router hung (SIGSTOP) for 3 s", load, recovered_s)


def test_slow(rig: Rig, report: Callable[..., None]) -> None:
    """The router runs for a fifth of the time, as on an overloaded machine."""
    with rig.load() as load:
        load.run(STEADY_S)
        for _ in range(6):
            rig.router.child.pause()
            load.run(0.2)
            rig.router.child.resume()
            load.run(0.05)
        recovered_s = load.routed_after(time.monotonic())
    report("router slow (stopped 4/5 of the time)", load, recovered_s)


def test_restarted(rig: Rig, report: Callable[..., None]) -> None:
    with rig.load() as load:
        load.run(STEADY_S)
        assert rig.router.child.stop(grace_s=PATIENCE_S) == 0
        healed_s = time.monotonic()
        rig.router.child.start()
        recovered_s = load.routed_after(healed_s)
    report("router restarted (SIGTERM)", load, recovered_s)


def test_out_of_memory(rig: Rig, report: Callable[..., None]) -> None:
    """Several bodies of 12 MB arrive at once; memory is too small for any of them."""
    huge = json.dumps(chat(20, 3) | {"metadata": "x" * (12 << 20)}).encode()
    with rig.load() as load:
        load.run(STEADY_S)
        process = rig.router.child.pid
        used = int(Path(f"/proc/{process}/statm").read_text().split()[0])
        limit = used * resource.getpagesize() + (2 << 20)
        resource.prlimit(process, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        assert in_parallel(3, lambda: post(rig.envoy.port, huge)) == [200] * 3
        died = not rig.router.child.running
        assert died or "MemoryError" in rig.log(), "the memory sufficed"
        healed_s = time.monotonic()
        if died:
            rig.router.child.start()
        else:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(process, resource.RLIMIT_AS, unlimited)
        recovered_s = load.routed_after(healed_s)
    report("out of memory on bodies of 12 MB", load, recovered_s)


def restart_each(rig: Rig, report: Callable[..., None]) -> float:
    """Restart the routers in turn under load; return the share of unrouted requests."""
    with rig.load() as load:
        wait_until(lambda: len(load.done) > 50)
        for each in rig.routers:
            assert each.child.stop(grace_s=PATIENCE_S) == 0
            load.routed_after(time.monotonic())
            each.child.start()
            each.wait_ready()
            rig.wait_routing()
        restarted_s = time.monotonic()
        recovered_s = load.routed_after(restarted_s)
        unrouted = sum(not exchanged.routed for exchanged in load.done)
    report("rolling restart of two processes", load, recovered_s)
    return unrouted / len(load.done)


def test_rolling_restart(
    make_rig: Callable[..., Rig], report: Callable[..., None], tmp_path: Path
) -> None:
    """Two processes that share their learned state are restarted in turn."""
    state = {"store": "directory", "path": str(tmp_path), "interval_s": 0.2}
    rig = make_rig({"state": state}, count=2, patient=True)
    unrouted = []
    # Try up to three times: a stall of the machine may delay a health check, and more
    # requests are unrouted then.
    while len(unrouted) < 3 and not any(share <= 1 / 20 for share in unrouted):
        unrouted.append(restart_each(rig, report))
    assert min(unrouted) <= 1 / 20, "the other one should have gone on"
    # Each process has the observations of all processes.
    assert rig.routers[0].child.stop(grace_s=PATIENCE_S) == 0
    learned = json.loads(
        next(tmp_path.glob("learned.v2.json")).read_text().split("\n")[1]
    )
    assert sum(group[1] for group in learned["components"]["ratios.1"].values()) > 20


def test_admin_port_busy(rig: Rig, report: Callable[..., None]) -> None:
    with rig.load() as load, socket.socket() as squatter:
        load.run(STEADY_S)
        rig.router.child.stop(grace_s=PATIENCE_S)
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", rig.router.admin_port))
        squatter.listen()
        healed_s = time.monotonic()
        rig.router.child.start()
        recovered_s = load.routed_after(healed_s)
        assert "admin_unavailable" in rig.log()
    report("admin port busy", load, recovered_s)
    rig.router.child.stop(grace_s=PATIENCE_S)


def test_store_unreachable(crowded: Crowded, report: Callable[..., None]) -> None:
    """Redis dies under load and restarts without its data."""
    rig = crowded.rig
    synced = 'extproc_state_syncs_total{result="ok"}'
    with rig.load() as load:
        load.run(STEADY_S)
        crowded.redis.kill()
        load.run(2 * STEADY_S)
        before = rig.metric(synced)
        healed_s = time.monotonic()
        crowded.redis.start()
        wait_until(lambda: rig.metric(synced) > before)
        recovered_s = time.monotonic() - healed_s
        wait_until(lambda: "ratios.1" in crowded.stored())
    report("store unreachable, then back and empty", load, recovered_s)
    assert all(exchanged.routed for exchanged in load.done)


def test_vllm_metrics_gone(crowded: Crowded, report: Callable[..., None]) -> None:
    """At first only /metrics fails, and then the whole server that reports the load."""
    rig = crowded.rig
    with rig.load() as load:
        load.run(STEADY_S)
        FakeVllm.metrics = False
        wait_until(lambda: not rig.has_metric("extproc_pool_waiting_requests{"))
        load.run(STEADY_S)
        assert served(load, "short") == {"vllm_short"}
        crowded.stop_vllm()
        wait_until(lambda: rig.metric("extproc_pool_healthy_endpoints{") == 0)
        wait_until(lambda: "vllm_long" in served(load, "short"))
        FakeVllm.metrics = True
        healed_s = time.monotonic()
        crowded.start_vllm()
        wait_until(lambda: rig.metric("extproc_pool_healthy_endpoints{") == 1)
        recovered_s = time.monotonic() - healed_s
        load.run(STEADY_S)
    report("vLLM metrics gone, then the whole server", load, recovered_s)
    assert served(load, "short") == {"vllm_short", "vllm_long"}


def test_backend_reset(
    rig: Rig,
    make_rig: Callable[..., Rig],
    report: Callable[..., None],
    stack: Stack,
    tmp_path: Path,
) -> None:
    """A backend dies under observed streams.

    Clients of this backend lose their streams, the other pool's clients are not
    affected, and the router retains no stream.
    """
    short = stand_in("short", 8192, 64, tmp_path, speed=1)
    with short.child:
        short.wait_ready()
        rig = make_rig(backends=[short, stack.backend("long")], routers=rig.routers)
        only_long = {k: v for k, v in rig.expected.items() if k.startswith("long")}
        load = rig.load()
        load.expected = only_long
        with only(load, "long"), load:
            streams = [
                read_some(rig.envoy.port, chat(20, 8000, stream=True), 3)
                for _ in range(4)
            ]
            assert rig.metric("extproc_streams_inflight") >= len(streams)
            short.child.kill()
            healed_s = time.monotonic()
            wait_until(lambda: rig.metric("extproc_streams_inflight") <= CLIENTS)
            recovered_s = time.monotonic() - healed_s
            load.run(STEADY_S)
            for stream in streams:
                stream.close()
        report("backend reset mid-stream", load, recovered_s)
    wait_until(lambda: rig.metric("extproc_streams_inflight") == 0)


def test_client_gone(rig: Rig, report: Callable[..., None]) -> None:
    with rig.load() as load:
        load.run(STEADY_S)
        streams = [
            read_some(rig.envoy.port, chat(20, 8000, stream=True), 3) for _ in range(8)
        ]
        for stream in streams:
            stream.shutdown(socket.SHUT_RDWR)
            stream.close()
        healed_s = time.monotonic()
        wait_until(lambda: rig.metric("extproc_streams_inflight") <= CLIENTS)
        recovered_s = time.monotonic() - healed_s
        load.run(STEADY_S)
    report("clients gone mid-stream", load, recovered_s)
    wait_until(lambda: rig.metric("extproc_streams_inflight") == 0)


def test_clock_jumps(crowded: Crowded, report: Callable[..., None]) -> None:
    """The clock jumps an hour forward, and then a day back."""
    if not crowded.clock:
        pytest.skip("no C compiler for the clock")
    rig = crowded.rig
    with rig.load() as load:
        load.run(STEADY_S)
        for jump in (3600, -86400):
            crowded.clock.write_text(str(jump))
            load.run(2 * STEADY_S)
        recovered_s = load.routed_after(time.monotonic())
    crowded.clock.write_text("0")
    report("clock jumping (+1 h, -1 day)", load, recovered_s)
    assert all(exchanged.routed for exchanged in load.done)
