"""Commands, probes and files of the pods, run as kubelet runs them."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request

import pytest

from ..patience import wait_until
from .pod import project

pytestmark = pytest.mark.e2e

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def chat(port: int, text: str) -> tuple[int, str | None]:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 4,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(body),
            {"content-type": "application/json"},
        )
        response = connection.getresponse()
        response.read()
        return response.status, response.getheader("x-llm-served-by")
    finally:
        connection.close()


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}{path}", timeout=60
        ) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


@pytest.fixture(scope="module")
def base_pod(kustomize, start_pod):
    return start_pod(kustomize("base"))


def test_router_starts_and_is_probed(base_pod):
    wait_until(lambda: all(base_pod.probe("extproc", kind) for kind in PROBES))
    status, metrics = get(base_pod.ports["http-admin"], "/metrics")
    assert status == 200
    assert "extproc_decisions_total" in metrics


def test_a_changed_configmap_is_in_force_without_a_restart(base_pod):
    def thresholds() -> list[int]:
        pools = json.loads(get(base_pod.ports["http-admin"], "/status")[1])["pools"]
        return [pool["threshold_tokens"] for pool in pools]

    assert thresholds() == [8192, 65536]
    folder = base_pod.volumes["config"]
    text = (folder / "extproc.yaml").read_text()
    limit = "max_model_len: 8192"
    lower = text.replace(limit, f"{limit}\n  threshold_tokens: 4000")
    project(folder, {"extproc.yaml": lower})
    assert wait_until(lambda: thresholds() == [4000, 65536])
    # The same process is still running, and stops cleanly on SIGTERM.
    assert base_pod.containers["extproc"].running
    assert base_pod.containers["extproc"].stop(grace_s=60) == 0


def test_sidecar_routes_over_the_unix_socket(sidecar_pod):
    assert all(
        sidecar_pod.probe(name, kind)
        for name in ("extproc", "envoy")
        for kind in PROBES
    )
    port = sidecar_pod.ports["http"]
    # The pod is ready when Envoy serves. Envoy then finds the router healthy within a
    # second.
    assert wait_until(lambda: chat(port, "hello " * 20) == (200, "vllm_short"))
    assert chat(port, "hello " * 20_000) == (200, "vllm_long")


def test_sidecar_with_workers_learns_from_the_access_log(throughput_pod):
    assert all(
        throughput_pod.probe(name, kind)
        for name in ("extproc", "envoy")
        for kind in PROBES
    )
    port, admin = (throughput_pod.ports[name] for name in ("http", "http-admin"))
    assert wait_until(lambda: chat(port, "hello " * 20) == (200, "vllm_short"))

    def every_worker_decides_and_one_learns() -> bool:
        assert chat(port, "hello " * 20) == (200, "vllm_short")
        workers = json.loads(get(admin, "/status")[1])["workers"]
        _, metrics = get(admin, "/metrics")
        return (
            len(workers) == 2
            and all(worker["decisions"] for worker in workers)
            and 'extproc_access_log_entries_total{result="observed"}' in metrics
        )

    assert wait_until(every_worker_decides_and_one_learns)


def test_sidecar_shows_envoy_s_metrics_but_not_its_admin_interface(sidecar_pod):
    port = sidecar_pod.ports["http-stats"]
    status, metrics = get(port, "/stats/prometheus")
    assert status == 200
    assert "envoy_http_ext_proc_failure_mode_allowed" in metrics
    assert get(port, "/config_dump")[0] == 404
    assert get(port, "/quitquitquit")[0] == 404
