"""Custom resources follow the definitions that a cluster would have.

The definitions come from the gateways' Go modules (``tests/kubernetes/crds.py``). Their
rules in CEL apply only in ``make test-kubernetes``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..e2e.fleet import FLEET
from ..kubernetes import crds
from .conftest import VARIANTS
from .manifests import Manifest, printed

Schema = dict[str, Any]

VALUES = (
    "gateway.hosts[0]=llm.example.com",
    "gateway.parentNamespace=gateways",
    "monitoring.enabled=true",
)
PREFIX = ("gateway.pathPrefix=/team/v1", "gateway.rewritePrefix=/v1")


@pytest.fixture(scope="module")
def schemas() -> dict[tuple[str, str], Schema]:
    """Return the schema of each kind, by API version and kind."""
    try:
        definitions = crds.definitions()
    except crds.MissingError as missing:
        pytest.skip(str(missing))
    return {
        (f"{definition['spec']['group']}/{version['name']}", kind): version["schema"][
            "openAPIV3Schema"
        ]
        for kind, definition in definitions.items()
        for version in definition["spec"]["versions"]
    }


def strict(schema: Schema) -> Schema:
    """Return a JSON schema that refuses unknown fields, unlike the API's structural one."""
    result = dict(schema)
    if "properties" in schema:
        result["properties"] = {k: strict(v) for k, v in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            result[key] = strict(schema[key])
    if schema.get("nullable"):
        result = {"anyOf": [result, {"type": "null"}]}
    return result


def errors(schema: Schema, manifest: Manifest) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    # Some definitions leave these fields to the API server, which always allows them.
    common = {"apiVersion": {}, "kind": {}, "metadata": {}}
    schema = {**schema, "properties": {**schema["properties"], **common}}
    found = jsonschema.Draft202012Validator(strict(schema)).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in found]


def defaults_left_out(
    schema: Schema, value: Any, path: str = "", one_owner: bool = False
) -> Iterator[str]:
    """Yield the fields in lists of one owner that the API server would add.

    Server-side apply treats such a list as one value, so an added default makes two
    equal files conflict.
    """
    if isinstance(value, dict):
        one_owner |= schema.get("x-kubernetes-map-type") == "atomic"
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                yield from defaults_left_out(
                    inner, value[name], f"{path}.{name}", one_owner
                )
            elif one_owner and "default" in inner:
                yield f"{path}.{name}"
    elif isinstance(value, list):
        one_owner |= schema.get("x-kubernetes-list-type", "atomic") == "atomic"
        for item in value:
            yield from defaults_left_out(
                schema.get("items", {}), item, f"{path}[]", one_owner
            )


def check(
    schemas: dict[tuple[str, str], Schema], manifests: list[Manifest]
) -> set[str]:
    """Check the objects that have a definition; return their kinds."""
    checked = set()
    for manifest in manifests:
        schema = schemas.get((manifest["apiVersion"], manifest["kind"]))
        if schema is not None:
            name = f"{manifest['kind']} {manifest['metadata']['name']}"
            assert errors(schema, manifest) == [], name
            assert list(defaults_left_out(schema, manifest)) == [], name
            checked.add(manifest["kind"])
    return checked


def test_every_custom_resource_follows_its_definition(
    schemas: dict[tuple[str, str], Schema],
    kustomize: Callable[[str], list[Manifest]],
) -> None:
    """The Go proxy does not serve AI Gateway's definitions everywhere, and GKE has none."""
    # Variants share most objects.
    different = {json.dumps(m): m for name in VARIANTS for m in kustomize(name)}
    manifests = list(different.values())
    checked = check(schemas, manifests)
    custom = {m["kind"] for m in manifests if "." in m["apiVersion"].partition("/")[0]}
    core = {"NetworkPolicy"}
    assert custom - core - checked <= crds.WITHOUT_DEFINITION.keys()


@pytest.mark.parametrize(
    "values",
    [
        ("envoy-gateway", *VALUES[:2], *PREFIX, "gateway.retryOverflow=true"),
        ("istio", VALUES[0], *PREFIX),
        ("istio-gateway-api", *VALUES, *PREFIX),
        ("inference-extension", *VALUES, *PREFIX),
        ("ai-gateway", *VALUES),
    ],
    ids=lambda values: values[0],
)
def test_so_do_the_chart_s_with_other_values(
    schemas: dict[tuple[str, str], Schema],
    chart: Callable[..., list[Manifest]],
    values: tuple[str, ...],
) -> None:
    assert check(schemas, chart(*values))


@pytest.mark.parametrize("target", ["gateway-api", "istio"])
def test_so_do_printed_routes(
    schemas: dict[tuple[str, str], Schema], tmp_path: Path, target: str
) -> None:
    assert check(schemas, printed(FLEET, target, tmp_path))


def test_a_mistake_is_seen(
    schemas: dict[tuple[str, str], Schema],
    kustomize: Callable[[str], list[Manifest]],
) -> None:
    (policy,) = [
        copy.deepcopy(m)
        for m in kustomize("envoy-gateway")
        if m["kind"] == "EnvoyExtensionPolicy"
    ]
    schema = schemas[policy["apiVersion"], policy["kind"]]
    (ext_proc,) = policy["spec"]["extProc"]
    ext_proc["failopen"] = True
    ext_proc["messageTimeout"] = "soon"
    del ext_proc["backendRefs"][0]["group"]
    text = json.dumps(errors(schema, policy))
    assert "failopen" in text
    assert "messageTimeout" in text
    assert list(defaults_left_out(schema, policy)) == [
        ".spec.extProc[].backendRefs[].group"
    ]
