"""The cache of Go programs, with a script instead of Go."""

from pathlib import Path

import pytest

from .go_program import BuildError, UnavailableError, built, installed

GO = """\
#!/bin/sh
echo "$@" >> {log}
case "$*" in
*broken*) echo "undefined: x" >&2; exit 1 ;;
*install*) : > "$GOBIN/tool" ;;
*) while [ "$1" != -o ]; do shift; done; : > "$2" ;;
esac
"""


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file with the script's arguments, a line for each build."""
    log = tmp_path / "builds"
    log.touch()
    folder = tmp_path / "bin"
    folder.mkdir()
    go = folder / "go"
    go.write_text(GO.format(log=log))
    go.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return log


@pytest.fixture
def module(tmp_path: Path) -> Path:
    folder = tmp_path / "tool"
    folder.mkdir()
    (folder / "go.mod").write_text("module tool\n")
    (folder / "main.go").write_text("package main\n")
    return folder


def test_a_published_program_is_built_once(builds: Path) -> None:
    binary = installed("example.org/cmd/tool", "v1.2.3")

    assert binary.is_file()
    assert installed("example.org/cmd/tool", "v1.2.3") == binary
    assert installed("example.org/cmd/tool", "v1.2.4") != binary
    assert len(builds.read_text().splitlines()) == 2


def test_a_module_is_built_again_after_a_change(builds: Path, module: Path) -> None:
    first = built(module)

    assert first.is_file()
    assert built(module) == first
    (module / "main.go").write_text("package main // changed\n")
    changed = built(module)
    assert changed != first
    assert built(module, "-X main.version=1") not in {first, changed}
    assert len(builds.read_text().splitlines()) == 3


def test_a_failed_build_names_its_reason_and_leaves_nothing(
    builds: Path, module: Path
) -> None:
    broken = module.rename(module.with_name("broken"))
    for _ in range(2):
        with pytest.raises(BuildError, match="undefined: x"):
            built(broken)
    assert len(builds.read_text().splitlines()) == 2


def test_without_go_a_program_is_unavailable(
    builds: Path, module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = built(module)
    monkeypatch.setenv("PATH", "")

    assert built(module) == cached
    with pytest.raises(UnavailableError, match="needs Go to build other"):
        installed("example.org/cmd/other", "v1.0.0")
