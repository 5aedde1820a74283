"""A real Kubernetes API server with etcd, but without nodes and controllers.

It validates objects, fills in defaults and merges fields like a cluster, but runs no pod.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from extproc.demo.stack.process import Child, free_ports

from ..deploy.manifests import Manifest
from ..gateways.go_program import built
from ..patience import PATIENCE_S, wait_until
from .etcd import etcd

VERSION = "1.36.3"
"""Version of the Kubernetes module in ``kube_apiserver/go.mod``."""

START_S = 240.0
"""Timeout in seconds: a start takes 4 s on an idle machine, minutes on a busy one."""


def api_server() -> Path:
    """Return the API server's program.

    Raises:
        UnavailableError: Go is not installed.
        BuildError: the build failed.
    """
    # Helm compares the server's version with the chart's kubeVersion.
    major, minor, _ = VERSION.split(".")
    package = "k8s.io/component-base/version"
    flags = f"-X {package}.gitVersion=v{VERSION} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    return built(Path(__file__).with_name("kube_apiserver"), flags)


class Cluster:
    """A running API server, and the programs that talk to it."""

    def __init__(self, folder: Path, tools: Path, port: int, token: str) -> None:
        self._address = f"https://127.0.0.1:{port}"
        self._token = token
        self._tools = tools
        # The API server writes its own certificate, followed by that of its authority.
        self._authority = folder / "certificates" / "apiserver.crt"
        cluster = {
            "server": self._address,
            "certificate-authority": str(self._authority),
        }
        context = {"cluster": "test", "user": "test"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": context}],
            "current-context": "test",
        }
        file = folder / "kubeconfig"
        file.write_text(yaml.safe_dump(config))
        # kubectl and helm keep caches in the home folder.
        self._environment = {
            **os.environ,
            "HOME": str(folder),
            "KUBECONFIG": str(file),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def kubectl(
        self, *arguments: str | Path, objects: Iterable[Manifest] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl, with the objects as its standard input."""
        program = self._tools / "kubectl" / "kubectl"
        return self._run(program, *arguments, stdin=yaml.safe_dump_all(objects))

    def helm(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run helm."""
        return self._run(self._tools / "helm" / "helm", *arguments)

    def ask(self, method: str, path: str, body: Manifest | None = None) -> Manifest:
        """Send a request to the API server; return its answer's JSON.

        An error of the server is an answer of the kind Status.

        Raises:
            OSError: the server does not listen.
        """
        request = urllib.request.Request(
            f"{self._address}{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={
                "authorization": f"Bearer {self._token}",
                "content-type": "application/json",
                "accept": "application/json",
            },
        )
        trust = ssl.create_default_context(cafile=str(self._authority))
        try:
            with urllib.request.urlopen(
                request, timeout=PATIENCE_S, context=trust
            ) as response:
                answer: Manifest = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                answer = json.load(error)
        return answer

    def ready(self) -> bool:
        """Return whether the API server answers and has started completely."""
        with contextlib.suppress(OSError, json.JSONDecodeError):
            return self.ask("GET", "/version")["gitVersion"] == f"v{VERSION}"
        return False

    def define(self, definitions: Iterable[Manifest]) -> None:
        """Create custom resource definitions, and wait until the server serves them."""
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        names = []
        for definition in definitions:
            created = self.ask("POST", path, definition)
            if created["kind"] == "Status":
                raise AssertionError(created["message"])
            names.append(created["metadata"]["name"])

        def established() -> bool:
            found = {
                item["metadata"]["name"]: item
                for item in self.ask("GET", path)["items"]
            }
            return all(
                {"type": "Established", "status": "True"}.items() <= condition.items()
                for name in names
                for condition in found[name]["status"].get("conditions", [{}])
                if condition.get("type") in {None, "Established"}
            )

        wait_until(established)

    def _run(
        self, *command: str | Path, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            input=stdin,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )


@contextlib.contextmanager
def running_cluster(folder: Path, tools: Path) -> Iterator[Cluster]:
    """Start etcd and an API server on loopback.

    Args:
        folder: an empty folder for data, keys and logs.
        tools: the folder with ``helm/helm`` and ``kubectl/kubectl``.

    Raises:
        UnavailableError: a program is missing.
        BuildError: the API server could not be built.
    """
    program, store = api_server(), etcd()
    port, client, peer = free_ports(3)
    token = secrets.token_hex(16)
    (folder / "tokens").write_text(f'{token},admin,admin,"system:masters"\n')
    key = folder / "accounts.key"
    subprocess.run(
        ["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True
    )
    peers = f"http://127.0.0.1:{peer}"
    clients = f"http://127.0.0.1:{client}"
    keeps = Child(
        "etcd",
        [
            *(str(store), "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync"),
            *("--listen-client-urls", clients, "--advertise-client-urls", clients),
            *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
            *("--initial-cluster", f"default={peers}"),
        ],
        folder / "etcd.log",
    )
    serves = Child(
        "kube-apiserver",
        [
            str(program),
            f"--etcd-servers={clients}",
            *("--bind-address=127.0.0.1", f"--secure-port={port}"),
            *("--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"),
            f"--cert-dir={folder / 'certificates'}",
            f"--token-auth-file={folder / 'tokens'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.96.0.0/16",
        ],
        folder / "kube-apiserver.log",
    )
    with keeps, serves:
        cluster = Cluster(folder, tools, port, token)
        serves.wait_ready(cluster.ready, START_S)
        yield cluster
