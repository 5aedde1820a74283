"""Read the files of envoy/observability, for comparison with other files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

DASHBOARD = "grafana/dashboards/token-budget-router.json"
VARIABLES = {"$__rate_interval": "1m", "$window": "1m", "$job": ".+", "$short": "short"}


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        package = {"node": "nodejs"}.get(name, "prometheus")
        pytest.skip(f"no {name}: it comes with Debian's package {package}")
    return found


def panels(observability: Path) -> list[dict[str, Any]]:
    board = json.loads((observability / DASHBOARD).read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions(observability: Path) -> list[tuple[str, str, str]]:
    """Yield title, unit and query of each target of a panel, with variables replaced."""
    found = []
    for panel in panels(observability):
        for target in panel["targets"]:
            query = target["expr"]
            for variable, value in VARIABLES.items():
                query = query.replace(variable, value)
            found.append(
                (panel["title"], panel["fieldConfig"]["defaults"]["unit"], query)
            )
    return found


def alerts(observability: Path) -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((observability / "rules.yml").read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules
