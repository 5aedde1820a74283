"""The Envoy files are valid, keep their settings if relocated, and fit the descriptors."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config import ServerConfig
from extproc.demo.stack.envoy_config import (
    Addresses,
    EnvoyConfigError,
    connection_manager,
    ext_proc_filter,
    find_config,
    find_envoy,
    load_config,
    relocate,
    with_bypass,
)

from ...pasted import composed

FOLDER = Path(__file__).parents[3] / "envoy"
ADDRESSES = Addresses(
    listener=("127.0.0.1", 1),
    admin=("127.0.0.1", 2),
    clusters={
        "extproc": ("127.0.0.1", 3),
        "vllm_short": ("127.0.0.1", 4),
        "vllm_long": ("127.0.0.1", 5),
    },
)


@pytest.fixture
def config() -> dict[str, Any]:
    return load_config(FOLDER / "envoy.yaml")


def leaves(node: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """Return every scalar of a document, keyed by its path."""
    if isinstance(node, dict):
        return {
            k: v
            for key, value in node.items()
            for k, v in leaves(value, (*path, key)).items()
        }
    if isinstance(node, list):
        return {
            k: v
            for i, value in enumerate(node)
            for k, v in leaves(value, (*path, i)).items()
        }
    return {path: node}


def test_relocation_changes_addresses_and_nothing_else(config: dict[str, Any]) -> None:
    before = copy.deepcopy(config)
    moved = relocate(config, ADDRESSES)
    assert config == before
    old, new = leaves(before), leaves(moved)
    assert old.keys() == new.keys()
    changed = {path for path in old if old[path] != new[path]}
    assert {path[-1] for path in changed} <= {"address", "port_value"}
    assert [new[path] for path in new if path[-1] == "port_value"] == [2, 1, 3, 4, 5]


def test_relocation_wants_every_cluster_and_no_other(config: dict[str, Any]) -> None:
    for clusters in ({"extproc": ("a", 1)}, {**ADDRESSES.clusters, "more": ("a", 1)}):
        with pytest.raises(EnvoyConfigError, match="clusters: "):
            relocate(config, Addresses(("a", 1), ("a", 2), clusters))


def test_the_bypass_has_the_same_routes_and_no_router(config: dict[str, Any]) -> None:
    both = with_bypass(config, ("127.0.0.1", 9))
    first, second = both["static_resources"]["listeners"]
    assert first == config["static_resources"]["listeners"][0]
    manager, bypass = connection_manager(first), connection_manager(second)
    assert [each["name"] for each in bypass["http_filters"]] == [
        "envoy.filters.http.router"
    ]
    assert "early_header_mutation_extensions" not in bypass
    routes = [
        m["route_config"]["virtual_hosts"][0]["routes"] for m in (manager, bypass)
    ]
    assert [route["match"] for route in routes[0]] == [
        route["match"] for route in routes[1]
    ]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvoyConfigError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("content", ["- a list", "a: [", ""])
def test_a_file_that_is_no_configuration_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "envoy.yaml"
    path.write_text(content)
    with pytest.raises(EnvoyConfigError, match=r"envoy\.yaml"):
        load_config(path)


def test_the_demo_finds_the_file_that_we_ship() -> None:
    assert find_config() == FOLDER / "envoy.yaml"


def test_the_last_route_is_the_safe_default(config: dict[str, Any]) -> None:
    manager = connection_manager(config["static_resources"]["listeners"][0])
    last = manager["route_config"]["virtual_hosts"][0]["routes"][-1]
    assert last["match"] == {"prefix": "/"}
    assert last["route"]["cluster"] == "vllm_long"


def test_every_header_that_decides_is_stripped_first(config: dict[str, Any]) -> None:
    manager = connection_manager(config["static_resources"]["listeners"][0])
    (extension,) = manager["early_header_mutation_extensions"]
    removed = {
        mutation["remove"] for mutation in extension["typed_config"]["mutations"]
    }
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    matched = {
        header["name"]
        for route in routes
        for header in route["match"].get("headers", [])
        if not header["name"].startswith(":")  # the request line is the client's
    }
    ours = {"x-llm-budget", "x-llm-overflow", "x-llm-retry-cut"}
    assert matched | ours <= removed
    assert removed <= matched | ours | {"x-llm-model"}


def test_envoy_may_hold_what_the_router_may_ask_for(config: dict[str, Any]) -> None:
    manager = connection_manager(config["static_resources"]["listeners"][0])
    limit = manager["route_config"]["virtual_hosts"][0]["request_body_buffer_limit"]
    assert limit >= ServerConfig().max_body_bytes


def test_the_pasted_filter_is_the_complete_one(config: dict[str, Any]) -> None:
    """The filter and the cluster are equal in both files, so neither file is outdated."""
    pasted = yaml.safe_load((FOLDER / "ext_proc_filter.yaml").read_text())
    assert pasted["http_filters"][0]["typed_config"] == ext_proc_filter(config)
    complete = {
        cluster["name"]: cluster for cluster in config["static_resources"]["clusters"]
    }
    router, short = pasted["clusters"]
    assert router == complete["extproc"]
    assert short == {key: complete["vllm_short"][key] for key in short}

    def routes(host: dict[str, Any]) -> list[Any]:
        return [route["route"] for route in host["routes"][-2:]]

    (pasted_host,) = pasted["virtual_hosts"]
    manager = connection_manager(config["static_resources"]["listeners"][0])
    (host,) = manager["route_config"]["virtual_hosts"]
    assert routes(pasted_host) == routes(host)
    settings = [key for key in pasted_host if key != "routes"]
    assert {key: pasted_host[key] for key in settings} == {
        key: host[key] for key in settings
    }


@pytest.mark.parametrize(
    "variant",
    [
        "envoy.yaml",
        "envoy-1.37.yaml",
        "relocated",
        "with bypass",
        "ext_proc_filter.yaml",
    ],
)
def test_envoy_accepts_it(variant: str, config: dict[str, Any], tmp_path: Path) -> None:
    chosen = {
        "envoy.yaml": lambda: config,
        "envoy-1.37.yaml": lambda: load_config(FOLDER / "envoy-1.37.yaml"),
        "relocated": lambda: relocate(config, ADDRESSES),
        "with bypass": lambda: with_bypass(config, ("127.0.0.1", 9)),
        "ext_proc_filter.yaml": lambda: composed(),
    }[variant]()
    path = tmp_path / "envoy.yaml"
    path.write_text(yaml.safe_dump(chosen))
    command = [
        find_envoy(),
        "--mode",
        "validate",
        "-c",
        str(path),
        "--log-level",
        "error",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_envoy_refuses_a_typo(config: dict[str, Any], tmp_path: Path) -> None:
    """This test shows that the test above can fail."""
    ext_proc_filter(config)["failure_mode_alow"] = True
    path = tmp_path / "envoy.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [
        find_envoy(),
        "--mode",
        "validate",
        "-c",
        str(path),
        "--log-level",
        "error",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "failure_mode_alow" in done.stderr + done.stdout


# These fields are newer than the published descriptors, but the real Envoy accepts
# them.
TOO_NEW = {"inline_cluster_specifier_plugin", "refresh_cluster_on_retry"}


def without(node: Any, names: set[str]) -> Any:
    if isinstance(node, dict):
        return {
            key: without(value, names)
            for key, value in node.items()
            if key not in names
        }
    if isinstance(node, list):
        return [without(value, names) for value in node]
    return node


@pytest.mark.parametrize("file", ["envoy.yaml", "ext_proc_filter.yaml"])
def test_every_field_is_one_that_envoy_has(file: str, config: dict[str, Any]) -> None:
    """Parse the file with Envoy's descriptors, for machines without Envoy.

    The parser runs in a separate process, because the descriptors of ``envoy.*``
    conflict with the router's. It also misspells one key at a time, and reports the
    misspellings that were accepted.
    """
    document = config if file == "envoy.yaml" else composed()
    document = without(document, TOO_NEW)
    script = Path(__file__).parent / "parse_bootstrap.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(document),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["error"] is None
    assert report["misspelled"] > 100
    assert report["taken"] == []


def test_the_access_log_has_what_the_demo_reads(config: dict[str, Any]) -> None:
    manager = connection_manager(config["static_resources"]["listeners"][0])
    fields = manager["access_log"][0]["typed_config"]["log_format"]["json_format"]
    assert {
        "request_id",
        "status",
        "pool",
        "decision",
        "cluster",
        "attempts",
    } <= fields.keys()


def test_envoy_is_found_beside_this_python() -> None:
    assert shutil.which(find_envoy())


def test_a_cluster_that_is_made_of_others_stays_as_it_is() -> None:
    older = load_config(FOLDER / "envoy-1.37.yaml")
    moved = relocate(older, ADDRESSES)["static_resources"]["clusters"]
    (aggregate,) = (c for c in moved if c["name"] == "vllm_short_then_long")
    assert aggregate in older["static_resources"]["clusters"]


def test_the_environment_names_another_envoy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXTPROC_ENVOY", "/opt/envoy-1.37/envoy")
    monkeypatch.setenv("EXTPROC_ENVOY_CONFIG", "envoy/envoy-1.37.yaml")
    assert find_envoy() == "/opt/envoy-1.37/envoy"
    assert find_config() == Path("envoy/envoy-1.37.yaml")
