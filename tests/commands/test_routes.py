import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.cli import main
from extproc.commands.envoy_routes import models_answer, routes
from extproc.commands.gateway_fleet import BUFFER_LIMIT_BYTES, Fleet, Model
from extproc.demo.stack.envoy_config import (
    EnvoyConfigError,
    connection_manager,
    find_config,
    find_envoy,
    load_config,
)

Print = Callable[..., Any]
Objects = list[dict[str, Any]]
MODELS = [
    Model("llama", ["llama-short", "llama-mid", "llama-long"], ["lora-1", "legal-*"]),
    Model("org/vlm", ["vlm"]),
]
FLEET = Fleet(MODELS)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Print:
    def run(text: str, *options: str) -> Any:
        path = tmp_path / "extproc.yaml"
        path.write_text(text)
        assert main(["routes", "--config", str(path), *options]) == 0
        documents = list(yaml.safe_load_all(capsys.readouterr().out))
        return documents if options else documents[0]

    return run


THREE = """
pools:
- {name: small, max_model_len: 4096}
- {name: mid, max_model_len: 16384}
- {name: large, max_model_len: 65536}
"""


MANY_ADAPTERS = f"""
models:
  llama:
    adapters: {[f"adapter-number-{i}" for i in range(60)]}
    pools: [{{name: small, max_model_len: 4096}}, {{name: large, max_model_len: 8192}}]
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (THREE, ["small", "mid", "default"]),
        (
            MANY_ADAPTERS,
            [
                *("models", "small", "large"),
                *("unreadable", "no_model_named", "unknown_model", "no_model"),
            ],
        ),
    ],
    ids=["pools", "many adapters"],
)
def test_envoy_takes_what_is_printed(
    text: str, expected: list[str], printed: Print, tmp_path: Path
) -> None:
    document = printed(text)
    config = load_config(find_config())
    listener = config["static_resources"]["listeners"][0]
    route_config = connection_manager(listener)["route_config"]
    route_config.update(document.get("route_config", {}))
    (host,) = route_config["virtual_hosts"]
    host["routes"] = document["routes"]
    clusters = config["static_resources"]["clusters"]
    router = [each for each in clusters if each["name"] == "extproc"]
    config["static_resources"]["clusters"] = router + document["clusters"]
    path = tmp_path / "envoy.yaml"
    path.write_text(yaml.safe_dump(config))
    try:
        command = [find_envoy(), "--mode", "validate", "--config-path", str(path)]
    except EnvoyConfigError as error:
        pytest.skip(str(error))

    done = subprocess.run(
        [*command, "--use-dynamic-base-id"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert [route["name"] for route in host["routes"]] == expected
    assert "headers" not in host["routes"][-1]["match"]


def of_kind(documents: Objects, kind: str) -> Objects:
    return [each for each in documents if each["kind"] == kind]


def headers_of(rule: dict[str, Any]) -> dict[str, str]:
    (match,) = rule["matches"]
    return {each["name"]: each["value"] for each in match.get("headers", ())}


def test_the_last_rule_takes_what_was_not_decided(printed: Print) -> None:
    route, _ = of_kind(printed(THREE, "--for", "gateway-api"), "HTTPRoute")

    found = [
        (headers_of(rule), [each["name"] for each in rule["backendRefs"]])
        for rule in route["spec"]["rules"]
    ]
    name = "small-mid-large"
    assert route["metadata"]["name"] == name
    assert found == [
        ({"x-llm-pool": "small"}, [f"{name}-small", f"{name}-large-fallback"]),
        ({"x-llm-pool": "mid"}, [f"{name}-mid", f"{name}-large-fallback"]),
        ({}, ["vllm-large"]),
    ]


def test_istio_has_the_same_rules(printed: Print) -> None:
    service, _ = of_kind(printed(THREE, "--for", "istio"), "VirtualService")
    rules = [each for each in service["spec"]["http"] if "route" in each]

    hosts = [rule["route"][0]["destination"]["host"] for rule in rules]
    services = ["vllm-small", "vllm-mid", "vllm-large"]
    assert hosts == [f"{name}.llm.svc.cluster.local" for name in services]
    assert "headers" not in rules[-1]["match"][0]


def many(models: int) -> str:
    pools = "{{name: s{0}, max_model_len: 4096}}, {{name: l{0}, max_model_len: 8192}}"
    lines = (f"  m{i}: {{pools: [{pools.format(i)}]}}\n" for i in range(models))
    return "models:\n" + "".join(lines)


def test_no_route_has_more_rules_than_the_api_server_takes(printed: Print) -> None:
    documents = printed(many(20), "--for", "gateway-api", "--name", "many")
    routes_ = of_kind(documents, "HTTPRoute")

    assert max(len(route["spec"]["rules"]) for route in routes_) <= 16
    (policy,) = of_kind(documents, "EnvoyExtensionPolicy")
    asked = {target["name"] for target in policy["spec"]["targetRefs"]}
    assert asked == {"many", "many-2", "many-3"}
    # Across all routes, rules with more headers come first.
    rules = [rule for route in routes_[:3] for rule in route["spec"]["rules"]]
    counts = [len(headers_of(rule)) for rule in rules]
    assert counts == sorted(counts, reverse=True)
    (patch,) = of_kind(documents, "EnvoyPatchPolicy")
    (change,) = patch["spec"]["jsonPatches"]
    lua = change["operation"]["value"]["typed_config"]["default_source_code"]
    assert len(routes_[2]["spec"]["rules"]) == 12
    assert r"httproute%/llm%/many%-3%/rule%/11%/.*$" in lua["inline_string"]


@pytest.mark.parametrize("target", ["gateway-api", "istio"])
def test_objects_are_named_by_the_configuration(target: str, printed: Print) -> None:
    def names(text: str, *options: str) -> set[tuple[str, str, str]]:
        return {
            (each["kind"], each["metadata"]["namespace"], each["metadata"]["name"])
            for each in printed(text, "--for", target, *options)
        }

    odd = "models: {Org/Model_A: {pools: [{name: S_1, max_model_len: 4096}]}}"
    plain = many(1)
    assert not names(odd) & names(plain)
    assert not names(plain) & names(plain, "--name", "other")
    assert not names(plain) & names(plain, "--namespace", "b", "--gateway", "b/g")
    for _, _, name in names(odd) | names(many(30)):
        assert re.fullmatch("[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)


def test_a_name_that_kubernetes_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["routes", "--for", "istio", "--name", "My_Fleet"])

    assert exit_.value.code == 2


FLEET_FILE = Path(__file__).parents[2] / "envoy" / "models-router.yaml"
DEFAULT = "unknown_model: {default: qwen3-32b}\n"


@pytest.mark.parametrize(
    ("more", "last"), [("", "no_model"), (DEFAULT, "default")], ids=["pass", "default"]
)
def test_the_example_s_fleet_has_the_example_s_routes(
    more: str, last: str, printed: Print
) -> None:
    document = printed(FLEET_FILE.read_text() + more)
    shipped = load_config(FLEET_FILE.with_name("models.yaml"))
    listener = shipped["static_resources"]["listeners"][0]
    (host,) = connection_manager(listener)["route_config"]["virtual_hosts"]

    assert host["request_body_buffer_limit"] == BUFFER_LIMIT_BYTES
    assert document["routes"][-1]["name"] == last
    if not more:
        assert [each for each in document["routes"] if each not in host["routes"]] == []
    names = {each["name"] for each in shipped["static_resources"]["clusters"]}
    assert {each["name"] for each in document["clusters"]} == names - {"extproc"}
    (lua,) = document["http_filters_after_ext_proc"]
    source = lua["typed_config"]["default_source_code"]["inline_string"]
    lua["typed_config"]["default_source_code"]["inline_string"] = source.replace(
        f'"^{last}$"'.replace("_", "%_"), '"^no%_model$"'
    )
    assert lua in connection_manager(listener)["http_filters"]


def test_rules_of_a_fleet_go_by_pool_then_by_model(printed: Print) -> None:
    documents = printed(FLEET_FILE.read_text() + DEFAULT, "--for", "gateway-api")
    rules = of_kind(documents, "HTTPRoute")[0]["spec"]["rules"]

    assert [headers_of(rule) for rule in rules] == [
        {"x-llm-pool": "llama-short", "x-llm-model": "llama-3.1-8b"},
        {"x-llm-pool": "qwen-short", "x-llm-model": "qwen3-32b"},
        {"x-llm-model": "llama-3.1-8b"},
        {"x-llm-model": "qwen3-32b"},
        {"x-llm-model": "qwen2.5-vl-7b"},
        {},
    ]
    assert rules[-1]["backendRefs"][0]["name"] == "vllm-qwen-long"


def test_a_mistake_is_exit_status_2(tmp_path: Path) -> None:
    path = tmp_path / "extproc.yaml"
    path.write_text("pools: []")

    assert main(["routes", "--config", str(path)]) == 2


def names(routes_: list[dict[str, Any]]) -> list[str]:
    return [route["name"] for route in routes_]


def test_a_fleet_has_a_route_for_each_pool_and_none_that_is_another_model_s() -> None:
    made: list[dict[str, Any]] = copy.deepcopy(list(routes(FLEET)))

    assert names(made) == [
        *("llama-short", "llama-mid", "llama-long", "vlm"),
        *("unreadable", "no_model_named", "unknown_model", "no_model"),
    ]
    for route in made[:2]:
        plugin = route["route"]["inline_cluster_specifier_plugin"]["extension"]
        groups = plugin["typed_config"]["priority_groups"]
        assert [group["name"] for group in groups] == [route["name"], "llama-long"]
    assert [route["direct_response"]["status"] for route in made[4:7]] == [
        503,
        400,
        404,
    ]


def test_a_default_model_takes_the_rest() -> None:
    made: list[dict[str, Any]] = list(routes(Fleet(MODELS, "org/vlm")))

    assert names(made)[-1] == "default"
    assert made[-1]["route"]["cluster"] == "vllm_vlm"
    assert made[-1]["match"] == {"prefix": "/"}


def test_names_that_are_patterns_are_not_listed() -> None:
    answer: Any = models_answer(FLEET)

    listed = yaml.safe_load(answer["direct_response"]["body"]["inline_string"])["data"]
    assert [each["id"] for each in listed] == ["llama", "lora-1", "org/vlm"]
