"""etcd, in which an API server keeps its objects."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..gateways.go_program import UnavailableError


def etcd() -> Path:
    """Return etcd from the PATH or, unpacked into the user's cache, from Debian.

    The package is not installed, because it would start etcd as a service.

    Raises:
        UnavailableError: there is no etcd, and no Debian package of it.
    """
    installed = shutil.which("etcd")
    if installed:
        return Path(installed)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "token-budget-router" / "etcd"
    binary = folder / "usr" / "bin" / "etcd"
    if binary.is_file():
        return binary
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        _run("apt-get", "download", "--quiet=2", "etcd-server", folder=Path(scratch))
        (package,) = Path(scratch).glob("*.deb")
        unpacked = Path(scratch) / "etcd"
        _run("dpkg-deb", "--extract", str(package), str(unpacked), folder=Path(scratch))
        unpacked.rename(folder)
    return binary


def _run(program: str, *arguments: str, folder: Path) -> None:
    found = shutil.which(program)
    if found is None:
        raise UnavailableError(f"needs etcd on the PATH, or {program} to fetch it")
    done = subprocess.run(
        [found, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UnavailableError(f"needs etcd: {program}: {done.stderr.strip()[-300:]}")
