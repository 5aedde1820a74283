"""What the manifests and the chart render to, by the real kubectl and helm."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]

ENVOY = Path(__file__).resolve().parents[2] / "envoy"
CHART = ENVOY / "helm" / "token-budget-router"
RELEASE = ("token-budget-router", "--namespace", "llm")

VARIANTS = (
    "base",
    "envoy-gateway",
    "gke",
    "inference-extension",
    "istio",
    "sidecar",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker for all of them: they share what is rendered, and what is fetched."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("deploy"))


@pytest.fixture(scope="session")
def envoy_folder() -> Path:
    return ENVOY


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder with helm, kubectl and the schemas of custom resources."""
    spec = importlib.util.spec_from_file_location(
        "fetch_tools", Path(__file__).with_name("fetch_tools.py")
    )
    assert spec is not None
    assert spec.loader is not None
    fetch_tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fetch_tools)
    try:
        found: Path = fetch_tools.fetch()
    except fetch_tools.ToolsError as error:
        pytest.skip(str(error))
    return found


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    """Each way to run the router on Kubernetes."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def kustomize(tools: Path) -> Callable[[str], list[Manifest]]:
    """Render a variant's kustomization; the objects in kubectl's order."""

    @functools.cache
    def render(name: str) -> list[Manifest]:
        folder = "base" if name == "base" else f"overlays/{name}"
        return _run(
            [tools / "kubectl/kubectl", "kustomize", ENVOY / "kubernetes" / folder]
        )

    return render


@pytest.fixture(scope="session")
def helm(tools: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run helm with these arguments."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [tools / "helm/helm", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def chart(tools: Path) -> Callable[..., list[Manifest]]:
    """Render the chart for a variant, with values ``key=value`` set."""

    @functools.cache
    def render(name: str, *values: str) -> list[Manifest]:
        gateway = "none" if name == "base" else name
        sets = [
            argument
            for value in (f"gateway.type={gateway}", *values)
            for argument in ("--set", value)
        ]
        return _run(
            [tools / "helm/helm", "template", *RELEASE[:1], CHART, *RELEASE[1:], *sets]
        )

    return render


def _run(command: list[str | Path]) -> list[Manifest]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]
