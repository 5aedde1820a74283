"""``docker compose`` on a real engine: no request fails if the router fails."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..e2e.load import KINDS, Load, exchange
from ..patience import wait_until
from .compose_project import ComposeProject, ask_for_an_engine

pytestmark = [pytest.mark.slow, pytest.mark.engine]

# This number of clients can send at this rate even if every request waits one second
# for a dead router.
CLIENTS = 24
PER_SECOND = 20.0
# At the simulated speed of the stand-ins, the long pool prefills two long prompts per
# second.
MIX = ("short", "short stream") * 9 + ("long", "long stream")

THROUGHPUT = "envoy/compose/throughput/docker-compose.yaml"
GPU = "envoy/compose/gpu.yaml"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeProject]:
    ask_for_an_engine()
    made = ComposeProject(tmp_path_factory.mktemp("compose"))
    try:
        yield made
    finally:
        made.use([THROUGHPUT])
        made.run("--profile=redis", "down", "--volumes", check=False)


@pytest.fixture
def up(project: ComposeProject) -> ComposeProject:
    """Start the stack of the first file, even if an earlier test left another one
    running.
    """
    project.use([])
    project.run("up", "-d", "--wait")
    wait_until(lambda: is_routed(project))
    return project


def is_routed(project: ComposeProject) -> bool:
    return exchange(project.port, "short").routed


Clients = Callable[[ComposeProject, str], AbstractContextManager[Load]]


@pytest.fixture(scope="module")
def clients() -> Iterator[Clients]:
    """Run clients during a fault; every request must eventually receive a response.

    At the end the module prints a row of the README's table for each fault.
    """
    rows: list[str] = []

    @contextmanager
    def during(project: ComposeProject, fault: str) -> Iterator[Load]:
        expected = {kind: exchange(project.port, kind).answer for kind in KINDS}
        began_s = time.monotonic()
        with Load(project.port, expected, CLIENTS, PER_SECOND, MIX) as load:
            load.run(1)
            yield load
            wait_until(lambda: is_routed(project))
            load.run(1)
        seconds = time.monotonic() - began_s
        undecided = sum(not each.routed for each in load.done)
        sent = len(load.done) + len(load.failed)
        rows.append(
            f"| {fault} | {seconds:.0f} | {sent:,} | {len(load.failed)} | {undecided:,} |"
        )
        assert load.failed == []

    yield during
    print(
        "",
        "| | seconds | requests | failed | without a decision |",
        "|---|---|---|---|---|",
        sep="\n",
    )
    print(*rows, sep="\n")


def test_a_newcomer_s_first_up_answers_the_first_request(project: ComposeProject):
    printed = project.run("up", "-d", "--wait")

    assert "rror" not in printed  # Compose pulls no missing image
    answered = exchange(project.port, "short")
    assert (answered.routed, answered.served_by) == (True, "vllm_short")
    assert exchange(project.port, "long").served_by == "vllm_long"


def test_the_image_counts_in_c_and_holds_no_compiler(up: ComposeProject):
    inside = ("exec", "-T", "extproc")

    assert "(C kernel)" in up.run(*inside, "extproc", "--version")
    found = up.run(*inside, "sh", "-c", "command -v cc gcc clang; echo searched")
    assert found.split() == ["searched"]


def test_plain_load(up: ComposeProject, clients: Clients):
    with clients(up, "plain load") as load:
        load.run(10)
    assert all(each.routed for each in load.done)


def test_restart(up: ComposeProject, clients: Clients):
    with clients(up, "`restart extproc`"):
        up.run("restart", "extproc")


def test_kill_and_start(up: ComposeProject, clients: Clients):
    with clients(up, "`kill extproc`, then `start`") as load:
        up.run("kill", "extproc")
        load.run(2)
        up.run("start", "extproc")


def test_crash(up: ComposeProject, clients: Clients):
    with clients(up, "process killed, restarted by Docker"):
        up.signal("extproc", "KILL")
        up.wait_healthy("extproc")


def test_hang(up: ComposeProject, clients: Clients):
    with clients(up, "SIGSTOP for 5 s") as load:
        up.signal("extproc", "STOP")
        load.run(5)
        up.signal("extproc", "CONT")


def test_upgrade_leaves_envoy_alone(up: ComposeProject, clients: Clients):
    before = up.services()
    with clients(up, "`up -d` with a changed environment of the router"):
        up.run("up", "-d", EXTPROC_LOG_LEVEL="debug")
    after = up.services()
    assert after["extproc"]["ID"] != before["extproc"]["ID"]
    assert after["envoy"]["ID"] == before["envoy"]["ID"]


def test_reload_by_edit_and_by_rename(up: ComposeProject, clients: Clients):
    file = up.folder / "envoy/compose/extproc.yaml"
    original = file.read_text()

    def threshold() -> int:
        status = up.get("http://127.0.0.1:9090/status")
        return (
            4096
            if '"threshold_tokens": 4096' in status.replace(":4096", ": 4096")
            else 0
        )

    with clients(up, "configuration edited, replaced, broken, repaired"):
        changed = original.replace("8192\n", "8192\n  threshold_tokens: 4096\n", 1)
        file.write_text(changed)
        wait_until(lambda: threshold() == 4096)
        beside = Path(f"{file}.new")
        beside.write_text(original)
        os.rename(beside, file)
        wait_until(lambda: threshold() != 4096)
        file.write_text("pools: nonsense\n")
        wait_until(lambda: "config_refused" in up.run("logs", "extproc"))
        file.write_text(original)


def test_envoy_starts_with_a_wrong_configuration_of_the_router(up: ComposeProject):
    file = up.folder / "envoy/compose/extproc.yaml"
    original = file.read_text()
    up.run("down")
    try:
        file.write_text("pools: nonsense\n")
        up.run("up", "-d")
        wait_until(lambda: answers(up))
        assert exchange(up.port, "short").served_by == "vllm_long"
    finally:
        file.write_text(original)
    wait_until(lambda: is_routed(up))


def answers(project: ComposeProject) -> bool:
    try:
        exchange(project.port, "short")
    except Exception:
        return False
    return True


def test_metrics_of_envoy_survive_its_restart(up: ComposeProject):
    url = "http://envoy:9902/stats/prometheus"
    assert "envoy_server_live" in up.get(url)
    up.run("restart", "envoy")
    up.wait_healthy("envoy")
    assert "envoy_server_live" in up.get(url)


def test_state_and_recordings_have_a_volume(up: ComposeProject):
    file = up.folder / "envoy/compose/extproc.yaml"
    original = file.read_text()
    folder = "/var/lib/extproc"
    try:
        file.write_text(
            f"{original}state: {{store: directory, path: {folder}/state}}\n"
            f"recording: {{file: {folder}/recording.jsonl}}\n"
        )
        up.run("restart", "extproc")
        wait_until(lambda: is_routed(up))
        for _ in range(20):
            exchange(up.port, "short")
        up.run("down")
        up.run("up", "-d", "--wait")
        kept = up.run("exec", "-T", "extproc", "ls", folder, f"{folder}/state")
    finally:
        file.write_text(original)
    assert "recording.jsonl" in kept
    assert ".json" in kept


def test_redis_keeps_what_was_learned(up: ComposeProject, clients: Clients):
    redis: dict[str, Any] = {"EXTPROC_CONFIG": "shared-state.yaml"}
    up.run("--profile=redis", "up", "-d", "--wait", **redis)
    wait_until(lambda: is_routed(up))
    with clients(up, "Redis restarted") as load:
        load.run(1)
        up.run("--profile=redis", "restart", "redis", **redis)
        load.run(1)
    assert all(each.routed for each in load.done)
    wait_until(lambda: synced(up))
    up.run("--profile=redis", "down", **redis)
    up.run("--profile=redis", "up", "-d", "--wait", **redis)
    wait_until(
        lambda: '"observations": 0' not in up.get("http://127.0.0.1:9090/status")
    )
    up.run("--profile=redis", "rm", "--stop", "--force", "redis")


def synced(project: ComposeProject) -> bool:
    metrics = project.get("http://127.0.0.1:9090/metrics")
    return any(
        line.startswith("extproc_state_synced_timestamp_seconds ")
        and float(line.split()[1]) > 0
        for line in metrics.splitlines()
    )


def test_workers_and_the_access_log(up: ComposeProject, clients: Clients):
    up.use([THROUGHPUT])
    up.run("up", "-d", "--wait")
    wait_until(lambda: is_routed(up))
    with clients(up, "four workers: one killed, then all restarted") as load:
        load.run(2)
        up.signal("extproc", "KILL", "--worker")
        load.run(2)
        up.run("restart", "extproc")
    metrics = up.get("http://127.0.0.1:9090/metrics")
    assert 'extproc_access_log_entries_total{result="observed"}' in metrics


def test_stand_ins_are_gone_when_vllm_is_there(up: ComposeProject):
    up.use([GPU])
    # The test omits vLLM's image of 10 GB, because it checks only the stand-ins.
    up.run(
        "up", "-d", "--pull=never", "--scale", "vllm-short=0", "--scale", "vllm-long=0"
    )
    assert set(up.services()) == {"envoy", "extproc"}


def test_images_hold_no_tools(up: ComposeProject):
    for service in ("extproc", "standin-short"):
        found = up.run(
            *("exec", "-T", service, "python", "-c"),
            "import importlib.util as u, os; print(u.find_spec('pip'), os.getuid())",
        )
        assert found.split() == ["None", "10001"]


def test_the_router_s_image_is_small(up: ComposeProject):
    def size(image: str) -> int:
        command = ["docker", "image", "inspect", "--format={{.Size}}", image]
        return int(subprocess.check_output(command, text=True))

    dockerfile = (up.folder / "extproc/Dockerfile").read_text()
    base = re.findall(r"^FROM (python:\S+)", dockerfile, re.MULTILINE)[-1]
    assert size("token-budget-router:local") - size(base) < 150e6
