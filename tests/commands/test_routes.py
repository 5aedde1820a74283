import copy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.cli import main
from extproc.commands.envoy_routes import Model, model_filter, models_answer, routes
from extproc.demo.stack.envoy_config import (
    EnvoyConfigError,
    connection_manager,
    find_config,
    find_envoy,
    load_config,
)

Print = Callable[..., Any]
FLEET = [
    Model("llama", ["llama-short", "llama-mid", "llama-long"], ["lora-1", "legal-*"]),
    Model("org/vlm", ["vlm"]),
]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Print:
    def run(text: str, *options: str) -> Any:
        path = tmp_path / "extproc.yaml"
        path.write_text(text)
        assert main(["routes", "--config", str(path), *options]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    return run


THREE = """
pools:
- {name: small, max_model_len: 4096}
- {name: mid, max_model_len: 16384}
- {name: large, max_model_len: 65536}
"""


def test_envoy_takes_what_is_printed(printed: Print, tmp_path: Path) -> None:
    document = printed(THREE)
    config = load_config(find_config())
    listener = config["static_resources"]["listeners"][0]
    (host,) = connection_manager(listener)["route_config"]["virtual_hosts"]
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
    assert [route["name"] for route in host["routes"]] == ["small", "mid", "default"]
    assert "headers" not in host["routes"][-1]["match"]


@pytest.mark.parametrize(
    ("target", "rules"),
    [
        (
            "gateway-api",
            [
                ({"x-llm-pool": "small"}, "vllm-small"),
                ({"x-llm-pool": "mid"}, "vllm-mid"),
                ({}, "vllm-large"),
            ],
        ),
    ],
)
def test_the_last_rule_takes_what_was_not_decided(
    target: str, rules: list[tuple[dict[str, str], str]], printed: Print
) -> None:
    document = printed(THREE, "--for", target)

    found = [
        (
            {
                header["name"]: header["value"]
                for match in rule.get("matches", ())
                for header in match["headers"]
            },
            rule["backendRefs"][0]["name"],
        )
        for rule in document["spec"]["rules"]
    ]
    assert found == rules


def test_istio_has_the_same_rules(printed: Print) -> None:
    rules = printed(THREE, "--for", "istio")["spec"]["http"]

    hosts = [rule["route"][0]["destination"]["host"] for rule in rules]
    assert hosts == ["vllm-small", "vllm-mid", "vllm-large"]
    assert "match" not in rules[-1]


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

    assert document["routes"][-1]["name"] == last
    if not more:
        assert [each for each in document["routes"] if each not in host["routes"]] == []
    names = {each["name"] for each in shipped["static_resources"]["clusters"]}
    assert {each["name"] for each in document["clusters"]} == names - {"extproc"}
    (lua,) = document["http_filters_after_ext_proc"]
    assert lua in connection_manager(listener)["http_filters"]


def test_rules_of_a_fleet_go_by_pool_then_by_model(printed: Print) -> None:
    document = printed(FLEET_FILE.read_text() + DEFAULT, "--for", "gateway-api")
    rules = document["spec"]["rules"]

    assert [rule["backendRefs"][0]["name"] for rule in rules] == [
        *("vllm-llama-short", "vllm-llama-long", "vllm-qwen-short", "vllm-qwen-long"),
        *("vllm-vlm", "vllm-qwen-long"),
    ]
    (match,) = rules[1]["matches"]
    assert match["headers"] == [{"name": "x-llm-model", "value": "llama-3.1-8b"}]


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
    made: list[dict[str, Any]] = list(routes(FLEET, "org/vlm"))

    assert names(made)[-1] == "default"
    assert made[-1]["route"]["cluster"] == "vllm_vlm"
    assert made[-1]["match"] == {"prefix": "/"}


def test_names_that_are_patterns_are_not_listed() -> None:
    answer: Any = models_answer(FLEET)

    listed = yaml.safe_load(answer["direct_response"]["body"]["inline_string"])["data"]
    assert [each["id"] for each in listed] == ["llama", "lora-1", "org/vlm"]


@pytest.mark.parametrize(
    ("glob", "pattern"),
    [
        ("legal-*", "^legal%-.*$"),
        ("org/m?", "^org%/m.$"),
        ("v[12]", "^v[12]$"),
        ("v[!a-c].x", "^v[^a-c]%.x$"),
        ("v[]%^]", "^v[%]%%%^]$"),
        ("v[", "^v%[$"),
        ("é*", "^\\195\\169.*$"),
    ],
)
def test_a_glob_is_lua_s_pattern(glob: str, pattern: str) -> None:
    source = model_filter([Model("m", ["p"], [glob])], 1000)

    assert f'{{"{pattern}", "m"}}' in source


def test_the_filter_knows_every_name() -> None:
    source = model_filter(FLEET, 1000)

    assert '["lora-1"] = "llama"' in source
    assert '{"^legal%-.*$", "llama"}' in source
    assert '["org/vlm"] = "org/vlm"' in source
    assert "max_bytes = 1000" in source
