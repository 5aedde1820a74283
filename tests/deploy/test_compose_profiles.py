"""The compose profiles and override files: commands, files and names."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.address import Address
from extproc.config import StateStore, load_config
from extproc.demo.stack.process import Child, answers_200, free_ports

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(
        (ROOT / "docker-compose.yaml").read_text()
    )
    found: dict[str, Any] = document["services"]
    return found


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here")
    return found


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """Return the project's files and folders in a container, by container path."""
    found = {}
    for mount in service["volumes"]:
        source, target, *mode = mount.split(":")
        if source.startswith("./"):
            assert mode == ["ro"]
            assert (ROOT / source).exists()
            found[target] = ROOT / source
    return found


MORE = {
    name: ROOT / "envoy" / "compose" / name
    for name in ("gpu.yaml", "throughput/docker-compose.yaml")
}


@pytest.mark.parametrize("more", [(), ("gpu.yaml",), tuple(MORE)])
def test_compose_accepts_all_together(more: tuple[str, ...]):
    files = [ROOT / "docker-compose.yaml", *(MORE[name] for name in more)]
    flags = [flag for file in files for flag in ("-f", file)]
    profiles = [f"--profile={name}" for name in ("observability", "redis")]
    command = [program("docker-compose"), *flags, *profiles, "config", "--quiet"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_compose_accepts_the_file_for_much_traffic(services: dict[str, Any]):
    """The merged configuration has four workers, four endpoints, and the access log."""
    more = MORE["throughput/docker-compose.yaml"]
    files = ["-f", str(ROOT / "docker-compose.yaml"), "-f", str(more)]
    done = subprocess.run(
        [program("docker-compose"), *files, "config"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    merged = yaml.safe_load(done.stdout)["services"]
    router = merged["extproc"]
    (mount,) = merged["envoy"]["volumes"]
    envoy = yaml.safe_load(source(mount).read_text())
    clusters = envoy["static_resources"]["clusters"]
    (cluster,) = [each for each in clusters if each["name"] == "extproc"]
    (locality,) = cluster["load_assignment"]["endpoints"]
    asked = [each["endpoint"]["address"] for each in locality["lb_endpoints"]]
    (folder,) = (
        source(mount)
        for mount in router["volumes"]
        if str(source(mount)).endswith("throughput")
    )
    config = load_config(
        (folder / Path(router["command"][-1]).name).read_text(), router["environment"]
    )
    shared = (folder / "shared-state.yaml").read_text()
    shared_config = load_config(shared, router["environment"])
    assert config.feedback.access_log
    assert shared_config.feedback.access_log
    assert shared_config.state.store is StateStore.REDIS
    assert config.server.transport == "native"
    plain = (ROOT / "envoy/compose/extproc.yaml").read_text()
    assert config.pools == load_config(plain, {}).pools
    first = Address.parse(config.server.listen)
    assert [
        f"0.0.0.0:{address['socket_address']['port_value']}" for address in asked
    ] == [str(first.nth(i)) for i in range(config.server.workers)]
    assert {each["socket_address"]["address"] for each in asked} == {"extproc"}
    # The file system of the container is read-only.
    assert router["tmpfs"] == ["/tmp"]


def source(mount: str | dict[str, str]) -> Path:
    """Return a mount's source from the output of docker-compose version 1 or 2."""
    return Path(mount.split(":")[0] if isinstance(mount, str) else mount["source"])


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("service", "target"),
    [("extproc", "server"), ("standin-short", "standin"), ("standin-long", "standin")],
)
def test_our_images_start_as_their_dockerfile_says(
    service: str, target: str, services: dict[str, Any], tmp_path: Path
):
    """Run the entry point with compose's command and environment, and the image's
    probe.
    """
    _, _, stage = (ROOT / "extproc/Dockerfile").read_text().partition(f" AS {target}\n")
    stage = stage.partition("\nFROM ")[0]
    entry, probe = (
        json.loads(re.findall(rf"^ *{instruction} (\[.*\])$", stage, re.MULTILINE)[0])
        for instruction in ("ENTRYPOINT", "CMD")
    )
    described = services[service]
    grpc_port, http_port = free_ports(2)
    places = {
        ":9002": f":{grpc_port}",
        ":9090": f":{http_port}",
        "0.0.0.0": "127.0.0.1",
    }
    places |= {
        "8000": str(http_port),
        "${EXTPROC_CONFIG:-extproc.yaml}": "extproc.yaml",
    }
    places |= (
        {k: str(v) for k, v in mounts(described).items()}
        if "volumes" in described
        else {}
    )

    def placed(text: str) -> str:
        for name, value in places.items():
            text = text.replace(name, value)
        return text

    programs = {
        "extproc": [sys.executable, "-m", "extproc"],
        "python": [sys.executable],
    }
    command = [*programs[entry[0]], *entry[1:], *map(placed, described["command"])]
    environment = {
        name: placed(value)
        for name, value in described.get("environment", {}).items()
        if not value.startswith("$")
    }
    with Child(service, command, tmp_path / "log", environment) as child:
        child.wait_ready(
            lambda: (
                subprocess.run(
                    [*programs[probe[0]], *map(placed, probe[1:])],
                    capture_output=True,
                    check=False,
                ).returncode
                == 0
            ),
            60,
        )
        assert child.stop(grace_s=60) == 0


def test_prometheus_starts_with_its_command(services: dict[str, Any], tmp_path: Path):
    service = services["prometheus"]
    (port,) = free_ports(1)
    ((target, source),) = mounts(service).items()
    arguments = [
        argument.replace(target, str(source)).replace(
            "=/prometheus", f"={tmp_path}/data"
        )
        for argument in service["command"]
    ]
    command = [
        program("prometheus"),
        *arguments,
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with Child("prometheus", command, tmp_path / "log") as child:
        child.wait_ready(lambda: answers_200(f"http://127.0.0.1:{port}/-/ready"), 60)


def test_prometheus_scrapes_names_of_the_network(services: dict[str, Any]):
    config = yaml.safe_load((ROOT / "envoy/observability/prometheus.yml").read_text())
    names = {
        alias
        for name, service in services.items()
        for alias in (
            name,
            *service.get("networks", {}).get("default", {}).get("aliases", []),
        )
    }
    for job in config["scrape_configs"]:
        for group in job["static_configs"]:
            assert {target.partition(":")[0] for target in group["targets"]} <= names
    # Envoy serves its metrics on its own port. No container shares Envoy's network,
    # because the container would lose this network when Envoy restarts.
    assert "network_mode" not in {key for each in services.values() for key in each}
    bootstrap = yaml.safe_load(mounts(services["envoy"]).popitem()[1].read_text())
    ports = {
        listener["address"]["socket_address"]["port_value"]
        for listener in bootstrap["static_resources"]["listeners"]
    }
    assert 9902 in ports


@pytest.mark.parametrize("name", ["envoy.yaml", "throughput/envoy.yaml"])
def test_envoy_takes_the_file(name: str, envoy_program: str):
    path = ROOT / "envoy/compose" / name
    command = [envoy_program, "--mode", "validate", "--config-path", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_grafana_finds_its_dashboard(services: dict[str, Any]):
    service = services["grafana"]
    found = mounts(service)
    providers = found["/etc/grafana/provisioning"] / "dashboards" / "dashboards.yml"
    (provider,) = yaml.safe_load(providers.read_text())["providers"]
    folder = found[provider["options"]["path"]]
    home = Path(service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (folder / home.name).is_file()
    assert str(home.parent) == provider["options"]["path"]


def test_redis_starts_with_its_command(services: dict[str, Any], tmp_path: Path):
    """Valkey is a fork of Redis 7.2 with the same settings."""
    (port,) = free_ports(1)
    name, *arguments = services["redis"]["command"]
    assert name == "valkey-server"
    arguments = [
        str(tmp_path) if argument == "/data" else argument for argument in arguments
    ]
    command = [program("redis-server"), *arguments, "--port", str(port)]

    def answers() -> bool:
        try:
            with socket.create_connection(
                ("127.0.0.1", port), timeout=60
            ) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16) == b"+PONG\r\n"
        except OSError:
            return False

    with Child("redis", command, tmp_path / "log") as child:
        child.wait_ready(answers, 60)


def test_both_configurations_differ_in_the_store_only(services: dict[str, Any]):
    folder = mounts(services["extproc"])["/etc/extproc"]
    url = {"EXTPROC_STATE_URL": "redis://redis:6379/0"}
    alone = load_config((folder / "extproc.yaml").read_text(), url)
    shared = load_config((folder / "shared-state.yaml").read_text(), url)
    assert alone.state.store is StateStore.NONE
    assert shared.state.store is StateStore.REDIS
    assert (alone.pools, alone.server) == (shared.pools, shared.server)
    assert "redis:6379" in services["extproc"]["environment"]["EXTPROC_STATE_URL"]
    assert "redis" in services


def test_images_are_pinned_and_memory_is_bounded(services: dict[str, Any]):
    for service in services.values():
        image, _, tag = service["image"].rpartition(":")
        assert tag.count(".") == 2 or image.startswith("token-budget-router")
        assert "mem_limit" in service
        for published in service.get("ports", []):
            assert re.match(
                r"(127\.0\.0\.1|\$\{ENVOY_BIND:-127\.0\.0\.1\}):", published
            )


def test_everything_is_hardened(services: dict[str, Any]):
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["logging"]["options"]["max-size"]
        assert service["restart"] == "unless-stopped"


def test_envoy_starts_without_the_router(services: dict[str, Any]):
    assert "extproc" not in services["envoy"]["depends_on"]


def test_no_image_of_the_project_is_pulled(services: dict[str, Any]):
    for service in services.values():
        if service["image"].endswith(":local"):
            built = "build" if "build" in service else "never"
            assert service["pull_policy"] == built
