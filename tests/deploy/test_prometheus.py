"""Scrape configuration, dashboard queries and alerts in a real Prometheus."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import http.client
import itertools
import json
import math
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.demo.stack import stack
from extproc.demo.stack.process import Child, answers_200, free_ports
from extproc.demo.workload import DemoRequest, Target, make_requests
from extproc.routing.router import Misroute

from ..patience import wait_until
from .dashboard import alerts, expressions, program
from .pod import project

Sample = tuple[dict[str, str], float]


@dataclass
class Prometheus:
    """A Prometheus that is running."""

    port: int
    at: float | None = None
    """Evaluation time of queries in seconds since the epoch, or None for the current
    time.
    """

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                pytest.fail(f"{parameters}: {error.read().decode()}")
        assert answer["status"] == "success"
        return answer["data"]

    def query(self, query: str) -> list[Sample]:
        """Return the labels and the value of every result."""
        when = {} if self.at is None else {"time": str(self.at)}
        data = self.get("/api/v1/query", query=query, **when)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(each["metric"], float(each["value"][1])) for each in data["result"]]

    def has_all(self) -> bool:
        """Return whether all divisors in panels, and all metrics that appear late,
        exist.
        """
        counters = (
            "extproc_decisions_total",
            'extproc_observations_total{result="learned"}',
            "extproc_message_seconds_count",
            'extproc_access_log_entries_total{result="observed"}',
        )
        wanted = [f"sum(rate({counter}[1m]))" for counter in counters]
        # This metric appears after 200 requests to one worker.
        wanted.append("max(extproc_advised_threshold_tokens)")
        wanted += ["sum(extproc_config_reload_total)", "min(up)"]
        return all(
            value > 0
            for query in wanted
            for _, value in self.query(f"{query} or vector(0)")
        )

    def has(self, counts: dict[str, float]) -> bool:
        """Return whether every counter in Prometheus has reached its value in
        ``counts``.
        """
        return all(
            sum(value for _, value in self.query(f"sum({name})")) >= count
            for name, count in counts.items()
        )


def counted(pod: Any) -> dict[str, float]:
    """Return a pod's current counts, including the request that reads Envoy's counts."""
    counters = (
        ("http-admin", "/metrics", "extproc_decisions_total"),
        ("http-stats", "/stats/prometheus", "envoy_cluster_upstream_rq_total"),
    )
    counts = {}
    for port, path, name in counters:
        url = f"http://127.0.0.1:{pod.ports[port]}{path}"
        with urllib.request.urlopen(url, timeout=60) as response:
            lines = response.read().decode().splitlines()
        values = [line.split()[-1] for line in lines if line.startswith(f"{name}{{")]
        counts[name] = sum(map(float, values))
    return counts


@pytest.fixture(scope="module")
def prometheus(
    observability: Path,
    throughput_pod,
    pools,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prometheus]:
    """Start a Prometheus with this configuration and scrape two rounds of traffic."""
    scrape = scrape_of(observability, throughput_pod, pools)
    directory = tmp_path_factory.mktemp("prometheus")
    mixed = list(make_requests(400, 7, Target(short_window=2048, longest_answer=16)))
    with scraping(scrape, observability, directory) as running:
        config = throughput_pod.volumes["config"]
        text = (config / "extproc.yaml").read_text()
        project(config, {"extproc.yaml": f"{text}\n# changed\n"})
        # A rate needs two scrapes of a series, and a change between the scrapes.
        for part in itertools.cycle((mixed[:200], mixed[200:])):
            send_all(throughput_pod.ports["http"], part + around_the_threshold())
            wait_until(functools.partial(running.has, counted(throughput_pod)))
            # All later queries use this time.
            running.at = time.time()
            if running.has_all():
                break
            running.at = None
        yield running


@contextlib.contextmanager
def scraping(
    config: dict[str, Any], observability: Path, directory: Path
) -> Iterator[Prometheus]:
    """Start a Prometheus with a configuration and the project's rules."""
    (port,) = free_ports(1)
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(observability / "rules.yml", directory)
    child = Child(
        "prometheus",
        [
            *(
                program("prometheus"),
                "--config.file",
                str(directory / "prometheus.yml"),
            ),
            *("--storage.tsdb.path", str(directory / "data")),
            *("--web.listen-address", f"127.0.0.1:{port}"),
        ],
        directory / "prometheus.log",
    )
    with child:
        child.wait_ready(lambda: answers_200(f"http://127.0.0.1:{port}/-/ready"), 60)
        yield Prometheus(port)


MODELS: dict[str, Any] = {
    "api": {"http": True},
    "models": {
        name: {
            "pools": [
                {"name": f"{name}-short", "max_model_len": 2048},
                {"name": f"{name}-long", "max_model_len": 32768},
            ]
        }
        for name in ("one", "two")
    },
}


@pytest.fixture(scope="module")
def prometheus_of_models(
    observability: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Start a Prometheus and a router of two models; each model has some misroutes."""
    directory = tmp_path_factory.mktemp("models")
    router = stack.router(MODELS, directory)
    scrape = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {
                "job_name": "extproc",
                "static_configs": [{"targets": [f"127.0.0.1:{router.admin_port}"]}],
            }
        ],
    }
    with router.child, scraping(scrape, observability, directory) as running:
        router.wait_ready()
        wanted = [
            f"rate({name}_total{{model='{model}'}}[1m])"
            for name in ("extproc_decisions", "extproc_misroutes")
            for model in MODELS["models"]
        ]
        wanted.append("count(extproc_achieved_truncation_rate)")

        def seen() -> bool:
            decide_and_observe(router.admin_url, 10)
            # All later queries use this time.
            running.at = time.time()
            if all(sum(v for _, v in running.query(query)) > 0 for query in wanted):
                return True
            running.at = None
            return False

        # A declared limit is reserved in full until 1 / output.truncation_risk answers
        # are known.
        decide_and_observe(router.admin_url, 220)
        wait_until(seen)
        yield running


def decide_and_observe(url: str, count: int) -> None:
    """Decide and learn through the HTTP API; each model's first prompt overflows."""
    for number in range(count):
        for model in MODELS["models"]:
            message = {"role": "user", "content": "Hello, hello. " * 20}
            body = {"model": model, "messages": [message], "max_tokens": 1500}
            answer = post_json(f"{url}/decide", body)
            counts = {"prompt_tokens": 4000 if number == 0 else 60}
            counts |= {"status": 200, "completion_tokens": 20}
            observed = {"decision": answer["decision"]} | counts
            post_json(f"{url}/tokenbudget.v1.Router/Observe", observed)


def post_json(url: str, body: dict[str, Any]) -> Any:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def scrape_of(observability: Path, pod: Any, pools: list[Any]) -> dict[str, Any]:
    """Return the scrape configuration with local addresses and a shorter interval."""
    text = (observability / "prometheus.yml").read_text()
    addresses = {
        "extproc:9090": pod.ports["http-admin"],
        "envoy:9902": pod.ports["http-stats"],
    } | {f"vllm-{pool.pool}:8000": pool.port for pool in pools}
    for name, port in addresses.items():
        assert name in text
        text = text.replace(name, f"127.0.0.1:{port}")
    config: dict[str, Any] = yaml.safe_load(text)
    config["global"] = {
        "scrape_interval": "1s",
        "scrape_timeout": "1s",
        "evaluation_interval": "1s",
    }
    return config


def around_the_threshold() -> list[DemoRequest]:
    """Return requests of 5,000 to 8,000 tokens.

    Some overflow the short stand-in, whose window is half of the configured 8,192
    tokens. The others go to the long pool needlessly, because their bound is above the
    threshold.
    """
    return [
        DemoRequest(
            "/v1/completions",
            json.dumps(
                {"model": "m", "prompt": "hello " * words, "max_tokens": 4}
            ).encode(),
            "prose",
        )
        for words in range(5000, 8001, 500)
    ]


def send_all(port: int, requests: list[DemoRequest]) -> None:
    """Send the requests, eight at a time."""

    def send(request: DemoRequest) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            headers = {"content-type": "application/json", **request.headers}
            connection.request("POST", request.path, request.body, headers)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(send, requests))
    assert set(statuses) == {200}
    # The router chooses no pool for speech, so the request counts as not routed.
    send(DemoRequest("/v1/audio/speech", b"{}", ""))


@pytest.mark.e2e
def test_every_target_is_scraped(prometheus: Prometheus):
    targets = prometheus.query("up")
    assert sorted(labels["job"] for labels, _ in targets) == [
        "envoy",
        "extproc",
        "vllm",
        "vllm",
    ]
    assert all(value == 1 for _, value in targets)


@pytest.mark.e2e
def test_every_panel_shows_sound_numbers(
    prometheus: Prometheus, prometheus_of_models: Prometheus, observability: Path
):
    for title, unit, query in expressions(observability):
        by_model = "by (model" in query or "achieved_truncation" in query
        results = (prometheus_of_models if by_model else prometheus).query(query)
        assert results, f"{title}: no data from {query}"
        for labels, value in results:
            assert math.isfinite(value), (title, labels, value)
            if title.startswith("Estimate error"):
                assert -1 <= value <= 2, (title, labels, value)
            elif unit == "percentunit":
                # Prometheus extrapolates counters, so the ratio of two new counters may
                # be above 1.
                assert 0 <= value <= 1.5, (title, labels, value)
            else:
                assert value >= 0, (title, labels, value)


@pytest.mark.e2e
def test_numbers_agree_with_the_traffic(prometheus: Prometheus, observability: Path):
    queries = {title: query for title, _, query in expressions(observability)}
    for title in ("Share by pool", "Share by category"):
        assert math.isclose(
            sum(value for _, value in prometheus.query(queries[title])), 1
        )
    pools = {labels["pool"] for labels, _ in prometheus.query(queries["Share by pool"])}
    assert pools == {"short", "long"}
    kinds = {
        labels["kind"] for labels, _ in prometheus.query(queries["Misroutes by kind"])
    }
    assert kinds <= set(Misroute)
    assert sum(value for _, value in prometheus.query(queries["Overflows retried"])) > 0


@pytest.mark.e2e
def test_every_alert_is_evaluated(prometheus: Prometheus, observability: Path):
    def evaluated() -> list[dict[str, Any]]:
        (group,) = prometheus.get("/api/v1/rules")["groups"]
        rules: list[dict[str, Any]] = group["rules"]
        return rules if all(rule["health"] != "unknown" for rule in rules) else []

    rules = wait_until(evaluated)
    assert [rule["name"] for rule in rules] == [
        alert["alert"] for alert in alerts(observability)
    ]
    assert {rule["health"] for rule in rules} == {"ok"}


@pytest.mark.e2e
def test_the_autoscaler_s_metric_counts_decisions(
    prometheus: Prometheus, observability: Path
):
    """The test fills in the template of prometheus-adapter's query."""
    values = yaml.safe_load((observability / "prometheus-adapter.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    series = rule["seriesQuery"].partition("{")[0]
    query = (
        rule["metricsQuery"]
        .replace("<<.Series>>", series)
        .replace("<<.LabelMatchers>>", 'job="extproc"')
        .replace("<<.GroupBy>>", "instance")
    )
    ((_, value),) = prometheus.query(query)
    assert value > 0
