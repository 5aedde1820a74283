"""The API server accepts every chart value that the values' schema accepts."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..deploy.conftest import CHART
from ..deploy.manifests import Manifest
from .cluster import Cluster

pytestmark = [pytest.mark.kubernetes, pytest.mark.xdist_group("kubernetes")]

TEXTS = (
    *("1", "1.5", "1e3", "0x1f", "true", "no", "null", "~", "a", "a1", "A", "UPPER"),
    *("a.b", "a_b", "a-b", "-a", "a-", "a..b", "*.a.b", "*", "a/b", "/a", "/a/b", "/"),
    *("/a b", "/a/../b", "/a//b", "/%2fa", "/v1?x", "/v1#x", "a b", "a: b", "a #b"),
    *("{}", "[a]", "&a", "!a", "%", '"', "'", "a\nb", "\t", "é", "x" * 64, "x" * 300),
    *("a." * 120 + "a", "10.0.0.0/8", "10.0.0.0/33", "300.0.0.0/8", "10.1.2.3/8"),
    *("1s", "0s", "500ms", "1500ms", "9m", "100000h", "1Gi", "1.5Gi", "0", "-1Gi"),
    *(
        "http://a",
        "http://a:4317",
        "http://a:99999",
        "http://10.0.0.5",
        "https://[::1]",
    ),
    *("sha256:" + "0" * 64, "registry:5000/a/b", "v1.2-rc.1"),
)
NUMBERS = (-1, 0, 1, 7, 65_535, 65_536, 2**31 - 1, 2**31, 2**32, 2**63)
KEYS = (
    *("a", "a.b/c", "A_b", "-a", "a b", "a/b/c", "UP.per/c", "x" * 64, "1", "true"),
    *("app.kubernetes.io/name", "app.kubernetes.io/managed-by", "helm.sh/chart"),
    "sidecar.istio.io/inject",
)
TYPES = (
    *("ai-gateway", "envoy-gateway", "istio", "istio-gateway-api"),
    *("gke", "inference-extension"),
)
EXTRA = {"envoy": "sidecar", "tls": "none", "networkPolicy": "gke"}
"""Gateway types that use the values below a key."""

Path_ = tuple[str, ...]


def leaves(
    schema: Manifest, definitions: Manifest, *path: str
) -> Iterator[tuple[Path_, Manifest]]:
    """Yield each value's path and its schema without references."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        schema = {**definitions[name], **schema}
    if "properties" in schema and path != ("config",):
        for name, inner in schema["properties"].items():
            yield from leaves(inner, definitions, *path, name)
    else:
        yield path, schema


def candidates(path: Path_, schema: Manifest) -> Iterator[Any]:
    """Yield values of a value's type, most of them invalid."""
    match schema.get("type"):
        case "string":
            yield from TEXTS
        case "integer":
            yield from NUMBERS
        case "array" if path[-1] in {"hosts", "gkeRanges"}:
            yield from ([text] for text in TEXTS)
    if path[-1] in {"annotations", "podAnnotations"} or "abels" in path[-1]:
        yield from ({key: "a"} for key in KEYS)
        yield from ({"a": text} for text in TEXTS)
    if path == ("nodeSelector",) or path[-1] == "selector":
        yield from ({key: text} for key in KEYS for text in ("a", "é"))


def nested(path: Path_, value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


def merged(base: Any, more: Any) -> Any:
    """Return the values that Helm makes of defaults and a file of values."""
    if not (isinstance(base, dict) and isinstance(more, dict)):
        return more
    result = {**base, **more}
    return result | {key: merged(base[key], more[key]) for key in base.keys() & more}


def accepted() -> Iterator[tuple[Path_, Any, str]]:
    """Yield each value that the schema accepts, with a gateway type that uses it."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    validator = jsonschema.Draft7Validator(
        {**schema, "$schema": "http://json-schema.org/draft-07/schema#"}
    )
    for path, inner in leaves(schema, schema["$defs"]):
        types = (
            TYPES if path[0] == "gateway" else (EXTRA.get(path[0], "envoy-gateway"),)
        )
        for value in candidates(path, inner):
            for gateway in types:
                values = merged(defaults, nested(path, value))
                if path != ("gateway", "type"):
                    values["gateway"]["type"] = gateway
                if validator.is_valid(values):
                    yield path, value, gateway


BASE = {
    "monitoring": {"enabled": True},
    "persistence": {"enabled": True},
    "state": {"secret": "redis"},
}


class Server:
    """Sends objects to the API server, which creates only their namespaces."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._plurals: dict[tuple[str, str], str] = {}

    def refusal(self, item: Manifest) -> str | None:
        """Return why the API server refuses an object, or None if it accepts it."""
        api = item["apiVersion"]
        root = "/api/v1" if api == "v1" else f"/apis/{api}"
        if (api, item["kind"]) not in self._plurals:
            for resource in self._cluster.ask("GET", root)["resources"]:
                if "/" not in resource["name"]:
                    self._plurals[api, resource["kind"]] = resource["name"]
        plural = self._plurals[api, item["kind"]]
        namespace = item["metadata"]["namespace"]
        # The gateway's namespace exists before a release names it.
        metadata = {"name": namespace}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        created = self._cluster.ask("POST", "/api/v1/namespaces", body)
        if created.get("reason") not in {None, "AlreadyExists"}:
            return created["message"]
        path = f"{root}/namespaces/{urllib.parse.quote(namespace)}/{plural}"
        answer = self._cluster.ask(
            "POST", f"{path}?dryRun=All&fieldValidation=Strict", item
        )
        return answer["message"] if answer["kind"] == "Status" else None


MODELS = {
    "m": {
        "pools": [
            {"name": "short", "max_model_len": 8192},
            {"name": "long", "max_model_len": 65536},
        ]
    }
}
"""Models for ai-gateway, which routes by model."""

ALONE = {
    *(("gateway", "bufferLimitBytes"), ("workers",), ("envoy", "config")),
    *(("autoscaling", "minReplicas"), ("autoscaling", "maxReplicas")),
}
"""Values that a template compares with other values, so that it refuses some."""


def rounds() -> Iterator[Manifest]:
    """Yield sets of values that the schema accepts, each with many values at once."""
    chosen: dict[str, dict[Path_, list[Any]]] = {}
    for path, value, gateway in accepted():
        if gateway == "ai-gateway" and path[-1] in {"pathPrefix", "rewritePrefix"}:
            continue  # the gateway has its own paths
        if path in ALONE:
            alone = merged(nested(path, value), {"gateway": {"type": gateway}})
            yield merged(BASE, alone)
        else:
            chosen.setdefault(gateway, {}).setdefault(path, []).append(value)
    for gateway, values in chosen.items():
        for i in range(max(map(len, values.values()))):
            together = merged(BASE, {"gateway": {"type": gateway}})
            if gateway == "ai-gateway":
                together = merged(together, {"config": {"models": MODELS}})
            for path, tried in values.items():
                if i < len(tried):
                    together = merged(together, nested(path, tried[i]))
            if gateway == "none":
                together = merged({"tls": {"secret": "tls"}}, together)
            yield together


def test_no_accepted_value_is_refused_by_the_api_server(
    cluster: Cluster, tmp_path: Path
) -> None:
    server = Server(cluster)
    file = tmp_path / "values.json"
    refused, seen, rendered = [], set(), 0
    for values in rounds():
        file.write_text(json.dumps(values))
        done = cluster.helm(
            *("template", "r", CHART, "--namespace", "llm", "--skip-tests", "-f", file)
        )
        if done.returncode:  # a template's own message, which names the value
            assert "execution error" in done.stderr, (values, done.stderr)
            assert "; expected" in done.stderr, (values, done.stderr)
            continue
        rendered += 1
        for item in yaml.safe_load_all(done.stdout):
            if item is not None and (text := json.dumps(item)) not in seen:
                seen.add(text)
                if message := server.refusal(item):
                    refused.append((item["kind"], message))
    assert rendered > 100
    assert refused == []
