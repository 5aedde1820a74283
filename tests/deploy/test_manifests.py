"""Each variant renders to valid objects that refer to each other correctly."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.address import Address
from extproc.cli import main
from extproc.config import load_config

from .conftest import ADDITIONS, VARIANTS
from .manifests import CORE, KUBERNETES, Manifest, of_kind, only

CUSTOM = (
    "ai-gateway",
    "envoy-gateway+access-log",
    "envoy-gateway+overflow",
    "envoy-gateway+workers",
    "gke",
    "inference-extension",
    "istio",
    "istio-gateway-api",
)
"""Variants with custom resources; together they cover all kinds of resources."""

MESHES = ("inference-extension", "istio", "istio-gateway-api")
NO_SCHEMA = {
    "AIGatewayRoute",
    "AIServiceBackend",
    "GCPRoutingExtension",
    "InferencePool",
}
"""Kinds without a schema in any npm package; test_custom_resources.py checks most of them."""


def patches_of(manifests: list[Manifest], kind: str) -> list[Manifest]:
    """Return the patches of the EnvoyFilters that apply to this kind of object."""
    filters = of_kind(manifests, "EnvoyFilter")
    patches = [patch for each in filters for patch in each["spec"]["configPatches"]]
    return [patch for patch in patches if patch["applyTo"] == kind]


def is_core(manifest: Manifest) -> bool:
    return manifest["apiVersion"] in CORE


@functools.cache
def validate_core(manifest: str) -> None:
    """Validate an object once for all variants, because most variants share it."""
    schemas = pytest.importorskip("kubernetes_validate")
    schemas.validate(json.loads(manifest), KUBERNETES, strict=True)


def custom_resource_errors(tools: Path, manifests: list[Manifest]) -> Manifest:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node to run the schemas of custom resources")
    done = subprocess.run(
        [node, Path(__file__).with_name("check_custom_resources.mjs"), tools],
        input=json.dumps(manifests),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: Manifest = json.loads(done.stdout)
    return answer


def test_core_objects_follow_their_schemas(variant, kustomize):
    core = [manifest for manifest in kustomize(variant) if is_core(manifest)]
    assert len(core) >= 7
    for manifest in core:
        validate_core(json.dumps(manifest))


@pytest.mark.slow
def test_custom_resources_follow_their_schemas(tools, kustomize):
    custom = [
        manifest
        for variant in CUSTOM
        for manifest in kustomize(variant)
        if not is_core(manifest)
    ]
    answer = custom_resource_errors(tools, custom)
    assert answer["errors"] == []
    checked = {identity.split()[0] for identity in answer["checked"]}
    assert {manifest["kind"] for manifest in custom} - checked == NO_SCHEMA


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gateway-api", "istio"])
def test_printed_routes_follow_their_schemas(
    tools, envoy_folder: Path, capsys, target: str
):
    config = str(envoy_folder / "models-router.yaml")
    assert main(["routes", "--config", config, "--for", target]) == 0
    objects = list(yaml.safe_load_all(capsys.readouterr().out))
    answer = custom_resource_errors(tools, objects)
    assert answer["errors"] == []
    assert len(answer["checked"]) == len(objects)


@pytest.mark.slow
def test_a_mistake_in_a_custom_resource_is_seen(tools, kustomize):
    service = copy.deepcopy(of_kind(kustomize("istio"), "VirtualService")[0])
    service["spec"]["http"][0]["match"] = "x-llm-pool"
    policy = copy.deepcopy(only(kustomize("envoy-gateway"), "EnvoyExtensionPolicy"))
    policy["spec"]["extProc"][0]["failopen"] = True
    errors = custom_resource_errors(tools, [service, policy])["errors"]
    assert any("VirtualService" in error for error in errors)
    assert any(
        "EnvoyExtensionPolicy" in error and "failopen" in error for error in errors
    )


def test_every_overlay_and_component_is_a_variant(envoy_folder: Path):
    folder = envoy_folder / "kubernetes"
    overlays = {path.name for path in (folder / "overlays").iterdir()}
    assert overlays == {variant.partition("+")[0] for variant in VARIANTS} - {"base"}
    components = {path.name for path in (folder / "components").iterdir()}
    used = {name for variant in VARIANTS for name in variant.split("+")[1:]}
    assert components <= {Path(ADDITIONS[name][0]).name for name in used}


def test_base_needs_nothing_but_core_apis(kustomize):
    assert [m["kind"] for m in kustomize("base") if not is_core(m)] == []


def test_configuration_is_accepted_and_has_a_route_for_each_pool(variant, kustomize):
    manifests = kustomize(variant)
    (text,) = [
        config["data"]["extproc.yaml"]
        for config in of_kind(manifests, "ConfigMap")
        if "extproc.yaml" in config["data"]
    ]
    url = {"EXTPROC_STATE_URL": "redis://redis:6379/0"} if "state" in variant else {}
    config = load_config(text, url)
    pools = [pool.name for pool in config.pools]
    for model in config.models.values():
        pools = [pool.name for pool in model.pools]
    for route in routes(manifests):
        assert [match.get("x-llm-pool") for match in route] == [*pools[:-1], None]


def routes(manifests: list[Manifest]) -> list[list[dict[str, str]]]:
    """Return, in order, the headers that each rule of each route matches."""
    found = [
        [
            {h["name"]: h["value"] for h in rule["matches"][0].get("headers", [])}
            for rule in route["spec"]["rules"]
        ]
        for kind in ("HTTPRoute", "AIGatewayRoute")
        for route in of_kind(manifests, kind)
        # The other routes lead to no pool.
        if not route["metadata"]["name"].endswith(("-administration", "-cluster"))
    ]
    found += [
        [
            {
                name: m["exact"]
                for name, m in rule["match"][0].get("headers", {}).items()
            }
            for rule in service["spec"]["http"]
            if "route" in rule
        ]
        for service in of_kind(manifests, "VirtualService")
        # The other VirtualService only keeps the router's cluster in the gateway, and
        # no client uses it.
        if not service["spec"]["hosts"][0].endswith(".invalid")
    ]
    return found


def test_every_gateway_has_one_route(kustomize):
    for variant in CUSTOM:
        assert len(routes(kustomize(variant))) == 1


def test_references_within_a_variant_resolve(variant, kustomize):
    manifests = kustomize(variant)
    pod = only(manifests, "Deployment")["spec"]["template"]
    labels = pod["metadata"]["labels"]
    ports = {
        port["name"]: port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container["ports"]
    }
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    names = {(m["kind"], m["metadata"]["name"]) for m in manifests}

    selectors = [
        only(manifests, "Deployment")["spec"]["selector"]["matchLabels"],
        only(manifests, "Service")["spec"]["selector"],
        only(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
    service = only(manifests, "Service")["spec"]
    for port in service["ports"]:
        assert ports[port["targetPort"]] == port["port"]
    for container in pod["spec"]["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[kind]
            asked = probe["grpc"] if "grpc" in probe else probe["httpGet"]
            assert asked["port"] in (*ports, *ports.values())
    for volume in pod["spec"]["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in names
    assert ("ServiceAccount", pod["spec"]["serviceAccountName"]) in names
    scaled = only(manifests, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) in names
    for rule in only(manifests, "NetworkPolicy")["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= set(ports)


def test_policies_and_extensions_name_what_is_there(kustomize):
    for variant in set(CUSTOM) - {"istio"}:
        manifests = kustomize(variant)
        names = {(m["kind"], m["metadata"]["name"]) for m in manifests}
        # The operator creates the Gateway and the pools' Services.
        names |= {("Gateway", "llm-gateway")}
        names |= {("Service", "vllm-short"), ("Service", "vllm-long")}
        # AI Gateway makes an HTTPRoute of each AIGatewayRoute.
        names |= {("HTTPRoute", n) for kind, n in names if kind == "AIGatewayRoute"}
        asked = [
            reference
            for manifest in manifests
            if not is_core(manifest)
            for reference in references(manifest["spec"])
        ]
        assert asked
        assert set(asked) <= names, variant


def references(value: Any) -> list[tuple[str, str]]:
    """Return the kind and the name of each object to which a custom resource refers."""
    found = []
    if isinstance(value, dict):
        for key, inner in value.items():
            match key:
                case "targetRefs" | "backendRefs":
                    default = "AIServiceBackend" if "modelsOwnedBy" in value else ""
                    found += [(r.get("kind", default), r["name"]) for r in inner]
                case "targetRef" | "backendRef":
                    found.append((inner["kind"], inner["name"]))
                case "parentRefs":
                    found += [("Gateway", r["name"]) for r in inner]
                case _:
                    found += references(inner)
    elif isinstance(value, list):
        for inner in value:
            found += references(inner)
    return found


def test_hosts_in_a_mesh_are_of_the_namespace_that_it_is_applied_to(kustomize):
    for variant in MESHES:
        manifests = kustomize(variant)
        service = only(manifests, "Service")["metadata"]
        host = f"{service['name']}.{service['namespace']}.svc.cluster.local"
        filters = of_kind(manifests, "EnvoyFilter")
        assert f"outbound|9002||{host}" in json.dumps(filters)
        rules = of_kind(manifests, "DestinationRule")
        assert host in [rule["spec"]["host"] for rule in rules]


def test_pods_meet_the_restricted_pod_security_standard(variant, kustomize):
    pod = only(kustomize(variant), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert {next(iter(v.keys() - {"name"})) for v in pod["volumes"]} <= {
        "configMap",
        "emptyDir",
    }
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_several_workers_have_what_they_need(kustomize):
    """Each worker needs its own endpoint, and all workers need one shared folder for
    the learned state.
    """
    for variant in ("base+workers", "envoy-gateway+workers", "sidecar+throughput"):
        manifests = kustomize(variant)
        pod = only(manifests, "Deployment")["spec"]["template"]["spec"]
        router = pod["containers"][0]
        environment = {each["name"]: each.get("value") for each in router["env"]}
        server = load_config("", environment).server
        assert (server.workers, server.transport) == (4, "native")
        first = Address.parse(server.listen)
        addresses = [str(first.nth(i)) for i in range(4)]
        if variant.startswith("sidecar"):
            asked = [
                f"unix:{each['endpoint']['address']['pipe']['path']}"
                for each in router_endpoints(manifests)
            ]
        else:
            asked = [
                f"0.0.0.0:{port['port']}"
                for port in only(manifests, "Service")["spec"]["ports"]
                if port["name"].startswith("grpc")
            ]
        assert sorted(asked) == addresses
        for policy in of_kind(manifests, "EnvoyExtensionPolicy"):
            (ext_proc,) = policy["spec"]["extProc"]
            ports = [f"0.0.0.0:{each['port']}" for each in ext_proc["backendRefs"]]
            assert ports == addresses
        (mount,) = [m for m in router["volumeMounts"] if m["mountPath"] == "/tmp"]
        (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
        assert "emptyDir" in volume


def router_endpoints(manifests: list[Manifest]) -> list[Manifest]:
    """Return the endpoints of the router in the sidecar's Envoy."""
    (text,) = [
        config["data"]["envoy.yaml"]
        for config in of_kind(manifests, "ConfigMap")
        if "envoy.yaml" in config["data"]
    ]
    clusters = yaml.safe_load(text)["static_resources"]["clusters"]
    (cluster,) = [each for each in clusters if each["name"] == "extproc"]
    (locality,) = cluster["load_assignment"]["endpoints"]
    endpoints: list[Manifest] = locality["lb_endpoints"]
    return endpoints


def test_images_are_pinned_and_resources_bounded(variant, kustomize):
    for container in only(kustomize(variant), "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]:
        _, _, tag = container["image"].rpartition(":")
        assert any(digit in tag for digit in "0123456789")
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


def test_a_pod_has_time_to_drain(variant, kustomize):
    manifests = kustomize(variant)
    pod = only(manifests, "Deployment")["spec"]["template"]["spec"]
    sleeps = {
        c["name"]: c["lifecycle"]["preStop"]["sleep"]["seconds"]
        for c in pod["containers"]
    }
    config = load_config("", {})
    grace = pod["terminationGracePeriodSeconds"]
    assert sleeps["extproc"] + config.server.drain_timeout_s < grace
    if "envoy" in sleeps:
        assert sleeps["envoy"] < sleeps["extproc"]


def test_buffer_limits_hold_what_the_router_reads(kustomize):
    """If the router requested a body above the limit, the request would hang."""
    asked = load_config("", {}).server.max_body_bytes
    policy = only(kustomize("envoy-gateway"), "ClientTrafficPolicy")["spec"]
    assert policy["connection"]["bufferLimit"] >= asked
    # For an HTTP/2 request, only the window of the stream matters.
    stream = policy["http2"]["initialStreamWindowSize"]
    assert asked <= stream <= policy["http2"]["initialConnectionWindowSize"]
    for variant in ("istio", "istio-gateway-api"):
        limits = [
            value["request_body_buffer_limit"]
            for patch in patches_of(kustomize(variant), "HTTP_ROUTE")
            for value in [patch["patch"]["value"]]
            if "llm/token-budget-router/router"
            in value.get("typed_per_filter_config", {})
        ]
        assert len(limits) == 2
        assert min(limits) >= asked
    assert asked <= limit_of(kustomize("inference-extension")) <= PICKER_TAKES


PICKER_TAKES = 3 << 20
"""Largest buffer limit in bytes.

A Go gRPC server accepts 4 MiB, but Envoy can exceed its own limit by one read.
"""


def limit_of(manifests: list[Manifest]) -> int:
    """Return how much a connection of either protocol may collect, in bytes."""
    (listener,) = patches_of(manifests, "LISTENER")
    (manager,) = patches_of(manifests, "NETWORK_FILTER")
    http2 = manager["patch"]["value"]["typed_config"]["http2_protocol_options"]
    limit = listener["patch"]["value"]["per_connection_buffer_limit_bytes"]
    assert http2["initial_stream_window_size"] == limit
    return int(limit)


def test_a_mesh_asks_the_router_for_our_routes_alone(kustomize):
    """The costly settings do not apply to another team's host on the same gateway."""
    for variant in MESHES:
        manifests = kustomize(variant)
        for added in patches_of(manifests, "HTTP_FILTER"):
            assert added["patch"]["value"]["disabled"] is True
        on = {
            p["match"]["routeConfiguration"]["vhost"]["route"]["name"]
            for p in patches_of(manifests, "HTTP_ROUTE")
        }
        assert on == {"llm.token-budget-router.short", "llm.token-budget-router.long"}
        assert on == {
            rule["name"]
            for kind, rules in (("HTTPRoute", "rules"), ("VirtualService", "http"))
            for route in of_kind(manifests, kind)
            for rule in route["spec"][rules]
            if "name" in rule and "directResponse" not in rule
        }
        assert patches_of(manifests, "VIRTUAL_HOST") == []
        managers = patches_of(manifests, "NETWORK_FILTER")
        assert "idle" not in json.dumps(managers)


def test_a_router_that_hangs_is_left_out_even_if_it_is_the_last(kustomize):
    """A hung router causes no 5xx response, so each gateway needs a health check."""
    asked = "envoy.service.ext_proc.v3.ExternalProcessor"
    (ext_proc,) = only(kustomize("envoy-gateway"), "EnvoyExtensionPolicy")["spec"][
        "extProc"
    ]
    check = ext_proc["backendSettings"]["healthCheck"]
    assert check["active"]["grpc"]["service"] == asked
    assert check["panicThreshold"] == 0
    for variant in MESHES:
        clusters = patches_of(kustomize(variant), "CLUSTER")
        (cluster,) = [p for p in clusters if p["patch"]["operation"] == "MERGE"]
        (check,) = cluster["patch"]["value"]["health_checks"]
        assert check["grpc_health_check"]["service_name"] == asked
        assert cluster["patch"]["value"]["ignore_health_on_host_removal"] is True


def test_another_policy_of_the_platform_team_stays_in_force(kustomize):
    policy = only(kustomize("envoy-gateway"), "EnvoyExtensionPolicy")
    assert policy["spec"]["mergeType"] == "StrategicMerge"


def test_only_the_short_rule_is_tried_again_after_an_overflow(kustomize):
    policies = of_kind(kustomize("envoy-gateway+overflow"), "BackendTrafficPolicy")
    retried = [
        target.get("sectionName")
        for policy in policies
        for target in policy["spec"]["targetRefs"]
        if "httpStatusCodes" in policy["spec"]["retry"]["retryOn"]
    ]
    assert retried == ["short"]
    # A rule's policy replaces the route's policy, so all other fields must be equal.
    (one, other) = ({**p["spec"], "retry": 0, "targetRefs": 0} for p in policies)
    assert one == other


def test_a_port_s_protocol_is_written_out(variant, kustomize):
    """Server-side apply treats the rules of a NetworkPolicy as one value.

    If the API server added a default, the lists of two owners would differ and conflict.
    """
    policy = only(kustomize(variant), "NetworkPolicy")["spec"]
    for rule in (*policy["ingress"], *policy["egress"]):
        for port in rule["ports"]:
            assert port["protocol"] in {"TCP", "UDP"}


def test_files_made_from_others_are_current(envoy_folder: Path):
    command = [sys.executable, str(envoy_folder / "kubernetes/generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_sidecar_runs_envoy_yaml_with_two_differences(kustomize, envoy_folder: Path):
    """Compare only the data of the two files, not their layout and comments."""
    (text,) = [
        config["data"]["envoy.yaml"]
        for config in of_kind(kustomize("sidecar"), "ConfigMap")
        if "envoy.yaml" in config["data"]
    ]
    sidecar = yaml.safe_load(text)
    resources = sidecar["static_resources"]
    plain = yaml.safe_load((envoy_folder / "envoy.yaml").read_text())
    (cluster,) = [
        c for c in plain["static_resources"]["clusters"] if c["name"] == "extproc"
    ]
    cluster["type"] = "STATIC"
    del cluster["dns_lookup_family"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    endpoint["endpoint"]["address"] = {"pipe": {"path": "/run/extproc/extproc.sock"}}
    resources["listeners"] = [x for x in resources["listeners"] if x["name"] != "stats"]
    resources["clusters"] = [x for x in resources["clusters"] if x["name"] != "admin"]
    assert sidecar == plain
