"""Rules for the project as a whole, independent of single modules."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
MODULES = sorted((PROJECT / "extproc").rglob("*.py"))
PRINTING = ("cli.py", "commands", "demo", "wire")


def test_imports_point_inward_and_the_core_does_no_io() -> None:
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("import-linter is not installed")

    checked = subprocess.run(
        [command, "--no-cache"], cwd=PROJECT, capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stdout


def calls_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if p.relative_to(PROJECT / "extproc").parts[0] not in PRINTING],
    ids=lambda path: str(path.relative_to(PROJECT)),
)
def test_only_the_command_line_and_the_demo_print(path: Path) -> None:
    assert not calls_of(path) & {"print", "breakpoint"}


def test_the_envoy_folder_is_no_package() -> None:
    """If the folder were a package, it would hide upstream's package ``envoy``."""
    assert list((PROJECT / "envoy").rglob("__init__.py")) == []


def test_protos_and_generated_code_correspond() -> None:
    protos = {p.stem for p in (PROJECT / "protos").rglob("*.proto")}
    generated = {
        p.stem.removesuffix("_pb2")
        for p in (PROJECT / "extproc/wire").glob("*_pb2.py*")
    }

    assert protos == generated
