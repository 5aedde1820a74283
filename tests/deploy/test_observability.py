"""Scrape configuration, alerts and dashboard are valid, complete and consistent."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from extproc.config import Config
from extproc.server.build import build_generation
from extproc.server.in_force import InForce
from extproc.server.observe.connections import ConnectionMetrics
from extproc.server.observe.gauges import InForceCollector
from extproc.server.observe.metrics import Metrics
from extproc.server.workers.merge import MergedMetrics

from .dashboard import DASHBOARD, alerts, expressions, panels, program


def own_metrics() -> set[str]:
    """Return the name of every exported metric, as queries use it."""
    names = set()
    state = InForceCollector(InForce(build_generation(Config())))
    connections = CollectorRegistry()
    ConnectionMetrics(connections)
    own = [
        *Metrics().registry.collect(),
        *connections.collect(),
        *state.collect(),
    ]
    for family in (*own, *MergedMetrics(1).collect()):
        suffix = {"counter": "_total", "histogram": "_bucket"}.get(family.type, "")
        names.add(family.name + suffix)
    return names


def test_prometheus_accepts_the_configuration(observability: Path):
    command = [program("promtool"), "check", "config", "prometheus.yml"]
    subprocess.run(command, cwd=observability, check=True, capture_output=True)


def test_each_alert_fires_where_it_should(observability: Path):
    command = [program("promtool"), "test", "rules", "rules.test.yml"]
    done = subprocess.run(
        command, cwd=observability, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # promtool accepts alerts that have no test, so this loop checks that every alert
    # has a test.
    named = (observability / "rules.test.yml").read_text()
    for alert in alerts(observability):
        fires = rf"alertname: {alert['alert']}\n    exp_alerts:"
        assert re.search(fires, named), alert["alert"]
        assert f"{{eval_time: 4h, alertname: {alert['alert']}}}" in named


def test_queries_use_metrics_that_exist_and_leave_none_out(observability: Path):
    used: set[str] = set()
    for _, _, query in expressions(observability):
        used |= set(re.findall(r"\bextproc_\w+", query))
    assert used == own_metrics()
    for alert in alerts(observability):
        assert set(re.findall(r"\bextproc_\w+", alert["expr"])) <= own_metrics()


def test_panels_fit_together(observability: Path):
    """No two panels overlap or exceed the page's width, and each has a description."""
    board = json.loads((observability / DASHBOARD).read_text())
    cells = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        covered = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not covered & cells, panel["title"]
        cells |= covered
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in board["panels"] if panel["type"] != "row"]
    assert len(set(titles)) == len(titles)
    variables = {f"${variable['name']}" for variable in board["templating"]["list"]}
    for panel in panels(observability):
        for target in panel["targets"]:
            asked = set(re.findall(r"\$(?!__)\w+", target["expr"]))
            assert asked <= variables
            assert target["datasource"]["uid"] == "${datasource}"


def dashboard_errors(tools: Path, board: dict[str, Any]) -> list[str]:
    """Return a dashboard's errors according to Grafana's own type declarations."""
    script = Path(__file__).with_name("check_dashboard.mjs")
    done = subprocess.run(
        [program("node"), script, tools],
        input=json.dumps(board),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors: list[str] = json.loads(done.stdout)
    return errors


@pytest.mark.slow
def test_grafana_knows_every_field(observability: Path, tools: Path):
    board = json.loads((observability / DASHBOARD).read_text())
    assert dashboard_errors(tools, board) == []
    board["refresh"] = 30
    first, *_ = (panel for panel in board["panels"] if panel["type"] == "timeseries")
    first["fieldConfig"]["defaults"]["custom"]["fillOpaqueness"] = 8
    first["options"]["legend"]["displayMode"] = "chart"
    errors = dashboard_errors(tools, board)
    assert [error.partition(":")[0] for error in errors] == [
        "dashboard",
        f"{first['title']}, options",
        f"{first['title']}, custom",
    ]


def test_the_fields_are_those_of_the_grafana_in_compose(observability: Path):
    compose = yaml.safe_load((observability / "../../docker-compose.yaml").read_text())
    _, _, version = compose["services"]["grafana"]["image"].partition(":")
    packages = Path(__file__).with_name("fetch_tools.py").read_text()
    assert f'"@grafana/schema@{version}"' in packages


def test_grafana_finds_what_it_is_provisioned_with(observability: Path):
    provisioning = observability / "grafana" / "provisioning"
    (source,) = yaml.safe_load(
        (provisioning / "datasources/prometheus.yml").read_text()
    )["datasources"]
    assert source["type"] == "prometheus"
    scraped = yaml.safe_load((observability / "prometheus.yml").read_text())
    # Grafana's $__rate_interval is four scrape intervals. Fewer than four would leave
    # gaps.
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]


def test_the_autoscaler_asks_for_the_metric_that_is_served(
    kustomize, observability: Path
):
    values = yaml.safe_load((observability / "prometheus-adapter.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    (scaler,) = [m for m in kustomize("base") if m["kind"] == "HorizontalPodAutoscaler"]
    asked = [
        m["pods"]["metric"]["name"] for m in scaler["spec"]["metrics"] if "pods" in m
    ]
    assert asked == [rule["name"]["as"]]
