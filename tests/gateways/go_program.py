"""Go programs that the tests run, built once and kept in the user's cache.

The first build of a control plane takes minutes, and needs Go and the Go module proxy.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path


class UnavailableError(Exception):
    """A program or permission that these tests need is missing; the message names it."""


class BuildError(Exception):
    """Go could not build the program; the message has the end of Go's output."""


def installed(package: str, version: str) -> Path:
    """Return the program of a published package, built by ``go install``.

    Args:
        package: the import path, whose last element names the program.
        version: a version of the package's module, such as v1.9.0.

    Raises:
        UnavailableError: Go is not installed.
        BuildError: the build failed.
    """
    name = package.rpartition("/")[2]

    def build(go: str, folder: Path) -> None:
        _run(
            [go, "install", "-ldflags=-s -w", f"{package}@{version}"],
            {"GOBIN": str(folder)},
        )

    return _cached(name, version.removeprefix("v"), build)


def built(source: Path, ldflags: str = "") -> Path:
    """Return the program of a Go module of these tests.

    Args:
        source: the module's folder, whose name is the program's.
        ldflags: more flags for Go's linker, such as ``-X`` with a version.

    Raises:
        UnavailableError: Go is not installed.
        BuildError: the build failed.
    """
    digest = hashlib.sha256(ldflags.encode())
    for path in sorted(source.iterdir()):
        if path.suffix in {".go", ".mod", ".sum"}:
            digest.update(f"\n{path.name}\n".encode() + path.read_bytes())

    def build(go: str, folder: Path) -> None:
        command = [go, "-C", str(source), "build", "-mod=readonly", "-trimpath"]
        command += ["-buildvcs=false", f"-ldflags=-s -w {ldflags}".strip()]
        command += ["-o", str(folder / source.name), "."]
        _run(command, {"CGO_ENABLED": "0"})

    return _cached(source.name, digest.hexdigest()[:12], build)


def _cached(name: str, version: str, build: Callable[[str, Path], None]) -> Path:
    """Return the program of this version; build it in a folder that then gets its name."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "token-budget-router" / f"{name}-{version}"
    binary = folder / name
    if binary.exists():
        return binary
    go = shutil.which("go")
    if go is None:
        raise UnavailableError(f"needs Go to build {name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / f"{folder.name}.lock"):
        if not binary.exists():
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as new:
                build(go, Path(new))
                (Path(new) / name).replace(binary)
    return binary


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for other processes that build the same program."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)}: {done.stderr[-2000:]}")
