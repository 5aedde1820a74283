"""The objects of two releases never collide, and their names stay texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import GATEWAYS, chart_values, helm_flags
from .manifests import Manifest

SHARED = {"InferencePool"}
"""Kinds of objects that two releases can share, because they belong to the pools."""


@pytest.mark.parametrize("gateway", ["ai-gateway", *GATEWAYS])
def test_two_releases_share_no_object(helm, envoy_folder: Path, gateway: str) -> None:
    """Neither two releases in one namespace nor one name in two namespaces collide."""
    options = helm_flags([*chart_values(gateway), "monitoring.enabled=true"])
    if gateway == "envoy-gateway":
        options += ["--set", "gateway.retryOverflow=true"]

    def objects(name: str, namespace: str) -> set[tuple[str, str, str]]:
        chart = str(envoy_folder / "helm/token-budget-router")
        done = helm("template", name, chart, "--namespace", namespace, *options)
        assert done.returncode == 0, done.stderr
        manifests = [m for m in yaml.safe_load_all(done.stdout) if m is not None]
        return {
            (m["kind"], m["metadata"]["namespace"], m["metadata"]["name"])
            for m in manifests
            if m["kind"] not in SHARED
        } | {("added to the gateway", "", name) for name in added(manifests)}

    first, second, third = (
        objects(*release) for release in (("a", "x"), ("b", "x"), ("a", "y"))
    )
    assert not first & second
    assert not first & third


def added(manifests: list[Manifest]) -> Iterator[str]:
    """Yield the names of the filters and clusters that EnvoyFilters add to a gateway."""
    for manifest in manifests:
        if manifest["kind"] == "EnvoyFilter":
            for patch in manifest["spec"]["configPatches"]:
                if patch["patch"]["operation"] != "MERGE":
                    yield patch["patch"]["value"]["name"]


@pytest.mark.parametrize("name", ["123", "a.b"])
def test_a_release_that_no_service_can_be_named_after_needs_another_name(
    helm, envoy_folder: Path, name: str
) -> None:
    command = ("template", name, envoy_folder / "helm/token-budget-router")
    assert f"release name {name}: not the name of a Service" in helm(*command).stderr
    assert helm(*command, "--set", "fullnameOverride=router").returncode == 0


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_names_that_look_like_numbers_stay_texts(
    helm, envoy_folder: Path, gateway: str
) -> None:
    chart = str(envoy_folder / "helm/token-budget-router")
    names = ("1", "true")
    pools = [{"name": name, "max_model_len": 8192} for name in names]
    backends = {
        name: {"service": "vllm", "port": 8000, "podLabels": {"pool": name}}
        for name in names
    }
    values = [
        *("--set-json", f"config.pools={json.dumps(pools)}"),
        *("--set-json", f"backends={json.dumps(backends)}"),
    ]
    if gateway == "sidecar":  # the sidecar only has routes for the pools short and long
        values = []
    done = helm("template", "true", chart, "--set", f"gateway.type={gateway}", *values)
    assert done.returncode == 0, done.stderr
    for manifest in yaml.safe_load_all(done.stdout):
        for key, value in texts(manifest):
            assert isinstance(value, str), (manifest["kind"], key, value)


def texts(value: Any) -> list[tuple[str, Any]]:
    """Return an object's names, and the values of its labels and header matches."""
    found: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in {"labels", "matchLabels"}:
                found += inner.items()
            elif key in {"name", "exact", "namespace"}:
                found.append((key, inner))
            found += texts(inner)
    elif isinstance(value, list):
        for inner in value:
            found += texts(inner)
    return found
