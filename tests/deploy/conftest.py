"""Manifests and chart, rendered by the real kubectl and helm."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from extproc.demo.stack.envoy_config import EnvoyConfigError, find_envoy
from extproc.demo.stack.stack import Backend, stand_in

from .manifests import Manifest
from .pod import Pod, run_pod

ENVOY = Path(__file__).resolve().parents[2] / "envoy"
CHART = ENVOY / "helm" / "token-budget-router"
RELEASE = ("token-budget-router", "--namespace", "llm")

VARIANTS = (
    "ai-gateway",
    "base",
    "base+workers",
    "envoy-gateway",
    "envoy-gateway+workers",
    "envoy-gateway+access-log",
    "envoy-gateway+overflow",
    "gke",
    "inference-extension",
    "istio",
    "istio-gateway-api",
    "sidecar",
    "sidecar+throughput",
    # This variant has all optional components.
    "sidecar+monitoring+state",
)
GATEWAYS = (
    "envoy-gateway",
    "istio",
    "istio-gateway-api",
    "gke",
    "inference-extension",
    "sidecar",
)
"""Gateway types of the chart that need no models in the configuration."""
SEVERAL_WORKERS = [
    "workers=4",
    'resources.requests.cpu:="4"',
    "resources.requests.memory=512Mi",
    "resources.limits.memory=2Gi",
    "autoscaling.decisionsPerSecond=3200",
]
ADDITIONS = {
    "overflow": (
        "kubernetes/components/envoy-gateway-overflow",
        ["gateway.retryOverflow=true"],
    ),
    "access-log": (
        "kubernetes/components/envoy-gateway-access-log",
        ["gateway.accessLog=true"],
    ),
    "monitoring": ("observability", ["monitoring.enabled=true"]),
    "throughput": (
        "kubernetes/components/sidecar-throughput",
        [*SEVERAL_WORKERS, "envoy.accessLog=true"],
    ),
    "workers": ("kubernetes/components/workers", SEVERAL_WORKERS),
    "state": (
        "kubernetes/components/shared-state",
        ["state.secret=token-budget-router-state"],
    ),
}
"""Options of a variant, each with a kustomize component and equivalent chart values."""

OVERLAYS = {
    "ai-gateway": [
        'config.models:={"my-model": {"pools":'
        ' [{"name": "short", "max_model_len": 8192},'
        ' {"name": "long", "max_model_len": 65536}]}}',
        "gateway.retryOverflow=true",
    ],
}
"""Chart values of overlays that differ from the chart's defaults."""


def chart_values(variant: str) -> list[str]:
    """Return a variant's chart values, each ``key=value`` or ``key:=JSON``."""
    name, *additions = variant.split("+")
    values = [f"gateway.type={'none' if name == 'base' else name}"]
    return [
        *values,
        *OVERLAYS.get(name, ()),
        *(value for each in additions for value in ADDITIONS[each][1]),
    ]


def helm_flags(values: Iterable[str]) -> list[str]:
    """Return helm's arguments that set values of the form above."""
    return [
        argument
        for value in values
        for argument in (
            ("--set-json", value.replace(":=", "=", 1))
            if ":=" in value
            else ("--set", value)
        )
    ]


@pytest.hookimpl(tryfirst=True)  # before pytest evaluates -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow the tests that wait for Prometheus's rates."""
    for item in items:
        if "prometheus" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def envoy_folder() -> Path:
    return ENVOY


@pytest.fixture(scope="session")
def observability(envoy_folder: Path) -> Path:
    return envoy_folder / "observability"


@pytest.fixture(scope="session")
def tools() -> Path:
    """Return the folder with helm, kubectl and the schemas of custom resources."""
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
    """Return each variant of the router on Kubernetes in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def kustomize(
    tools: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[Manifest]]:
    """Render a variant's kustomization; return its objects in the order of kubectl."""

    @functools.cache
    def render(variant: str) -> list[Manifest]:
        name, *additions = variant.split("+")
        folder = (
            ENVOY / "kubernetes" / ("base" if name == "base" else f"overlays/{name}")
        )
        if additions:
            folder = with_components(folder, additions)
        return _run([tools / "kubectl/kubectl", "kustomize", folder])

    def with_components(folder: Path, additions: list[str]) -> Path:
        """Write and render a kustomization that an operator could write."""
        own = tmp_path_factory.mktemp("own")
        components = [ENVOY / ADDITIONS[name][0] for name in additions]
        document = {
            "resources": [os.path.relpath(folder, own)],
            "components": [os.path.relpath(path, own) for path in components],
            "namespace": "llm",
        }
        (own / "kustomization.yaml").write_text(yaml.safe_dump(document))
        return own

    return render


@pytest.fixture(scope="session")
def helm(tools: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs helm with the given arguments."""

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
    """Return a function that renders the chart with ``key=value`` or ``key:=JSON``
    values.
    """

    @functools.cache
    def render(variant: str, *values: str) -> list[Manifest]:
        sets = helm_flags((*chart_values(variant), *values))
        return _run(
            [
                tools / "helm/helm",
                "template",
                "--skip-tests",
                *RELEASE[:1],
                CHART,
                *RELEASE[1:],
                *sets,
            ]
        )

    return render


@pytest.fixture(scope="session")
def envoy_program() -> str:
    try:
        return find_envoy()
    except EnvoyConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Backend]]:
    """Start a stand-in for each pool; the short one has half the configured window."""
    directory = tmp_path_factory.mktemp("pools")
    made = [
        stand_in("short", 4096, 64, directory, speed=100),
        stand_in("long", 65536, 16, directory, speed=100),
    ]
    with made[0].child, made[1].child:
        for pool in made:
            pool.wait_ready()
        yield made


@pytest.fixture(scope="session")
def start_pod(
    envoy_program: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[list[Manifest]], Pod]]:
    """Return a function that runs the pod of a Deployment until its startup probes
    pass.
    """
    with ExitStack() as started:
        yield lambda manifests: run_pod(
            manifests, envoy_program, tmp_path_factory.mktemp("pod"), started
        )


@pytest.fixture(scope="session")
def start_sidecar(
    chart: Callable[..., list[Manifest]],
    pools: list[Backend],
    start_pod: Callable[[list[Manifest]], Pod],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Pod]:
    """Return a function that runs the chart's pod, with given values and the stand-ins."""

    def start(*values: str) -> Pod:
        state = tmp_path_factory.mktemp("state")
        return start_pod(chart("sidecar", *values, *values_of(pools, state)))

    return start


@pytest.fixture(scope="session")
def sidecar_pod(start_sidecar: Callable[..., Pod]) -> Pod:
    """Run a router that learns from every response."""
    return start_sidecar("config.feedback.sample=all")


@pytest.fixture(scope="session")
def throughput_pod(start_sidecar: Callable[..., Pod]) -> Pod:
    """Run a router with several workers and the access log.

    The workers learn from half of the responses directly, and from the other half
    through the log.
    """
    return start_sidecar(
        "workers=2", "envoy.accessLog=true", "config.feedback.sample:=0.5"
    )


def values_of(pools: list[Backend], state: Path) -> list[str]:
    """Return the chart's values for local pools and for a store in a folder."""
    values = [
        "config.state.store=directory",
        f"config.state.path={state}",
        # Only the backend of this pool has the configured window.
        f"config.pools[1].endpoints[0]={pools[1].url}",
        "config.pools[0].name=short",
        "config.pools[0].max_model_len=8192",
        "config.pools[1].name=long",
        "config.pools[1].max_model_len=65536",
    ]
    for pool in pools:
        values += [
            f"backends.{pool.pool}.service=127.0.0.1",
            f"backends.{pool.pool}.port={pool.port}",
        ]
    return values


def _run(command: list[str | Path]) -> list[Manifest]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]
