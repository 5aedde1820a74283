"""An API server with the gateways' custom resources, and namespaces in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..deploy.conftest import chart, envoy_folder, helm, kustomize, tools  # noqa: F401 - fixtures
from ..gateways.go_program import UnavailableError
from . import crds
from .cluster import Cluster, running_cluster


@pytest.fixture(scope="session")
def cluster(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:  # noqa: F811
    """Start an API server with the namespaces that the manifests name."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a key")
    try:
        defined = {**crds.stubs(), **crds.definitions()}
        running = running_cluster(tmp_path_factory.mktemp("cluster"), tools)
        with running as started:
            started.define(defined.values())
            for name in ("llm", "istio-system"):
                body = {
                    "kind": "Namespace",
                    "apiVersion": "v1",
                    "metadata": {"name": name},
                }
                started.ask("POST", "/api/v1/namespaces", body)
            yield started
    except (UnavailableError, crds.MissingError) as missing:
        pytest.skip(str(missing))
