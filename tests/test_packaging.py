"""The sdist builds the wheel, and the wheel has every file that the commands need."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

from extproc.cli import COMMANDS

PROJECT = Path(__file__).parents[1]
BUILD_INPUTS = (
    *("Makefile", "pyproject.toml", "README.md", "LICENSE"),
    *("extproc", "envoy"),
)
LIMIT_S = 30.0

pytestmark = [pytest.mark.packaging, pytest.mark.xdist_group("packaging")]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Build the sdist, and build the wheel from the sdist."""
    if "packaging" not in request.config.getoption("-m"):
        pytest.skip("takes half a minute: pytest -m packaging")
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    source.mkdir()
    for name in BUILD_INPUTS:
        origin = PROJECT / name
        if origin.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(origin, source / name, ignore=ignore)
        else:
            shutil.copy(origin, source)
    venv.create(folder / "builder", with_pip=True)
    try:
        run("make", "dist", f"VENV={folder / 'builder'}", cwd=source)
    except AssertionError as error:
        if "Could not find a version" not in str(error):
            raise
        pytest.skip(f"no package index: {str(error).splitlines()[-1]}")
    (sdist,) = (source / "dist").glob("*.tar.gz")
    (wheel,) = (source / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(
    built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the script folder of an environment with the wheel and its dependencies.

    The dependencies come from the current environment, through a path entry after that
    of the wheel. Installing them again would only test pip.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / "bin"
    _, wheel = built
    pip = (programs / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    behind = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "dependencies.pth").write_text("\n".join(behind))
    return programs


def test_wheel_holds_every_file_of_the_package(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    expected = {
        str(path.relative_to(PROJECT))
        for path in (PROJECT / "extproc").rglob("*")
        if path.is_file()
        and path.suffix in (".py", ".pyi", ".html", ".typed", ".c", "")
        and path.name != "Dockerfile"
        and "__pycache__" not in path.parts
    } | {"extproc/py.typed"}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        described = archive.read(metadata).decode()
    held = {name for name in names if name.startswith("extproc/")}
    compiled = {name for name in held if name.endswith(".so")}
    assert len(compiled) == (2 if shutil.which("cc") is not None else 0)
    held -= compiled
    assert held - expected == set()
    # Type stubs of generated code are needed only during development.
    assert {name for name in expected - held if not name.endswith(".pyi")} == set()
    assert not any(name.startswith("tests/") for name in names)
    assert any(n.endswith("share/token-budget-router/envoy.yaml") for n in names)
    assert any(n.endswith("licenses/LICENSE") for n in names)
    for extra in ("demo", "redis", "otel", "dev"):
        assert f"Provides-Extra: {extra}" in described
    with tarfile.open(sdist) as archive:
        top = sdist.name.removesuffix(".tar.gz")
        assert f"{top}/envoy/envoy.yaml" in archive.getnames()
        for source in ("routing/_kernel.c", "server/services/_fast_decode.c"):
            assert f"{top}/extproc/{source}" in archive.getnames()


def test_every_command_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    extproc = installed / "extproc"
    where = "import extproc; print(extproc.__file__)"
    assert str(installed.parent) in run(installed / "python", "-c", where, cwd=tmp_path)
    assert run(extproc, "--version", cwd=tmp_path).startswith("extproc ")
    body = tmp_path / "body.json"
    body.write_text('{"messages": [{"role": "user", "content": "Hello"}]}')
    assert "short: within_threshold" in run(extproc, "explain", body, cwd=tmp_path)
    assert "max_model_len: 8192" in run(extproc, "check-config", cwd=tmp_path)
    commands = PROJECT / "extproc" / "commands"
    for command in COMMANDS:
        if not (commands / f"{command.replace('-', '_')}.py").exists():
            continue
        assert f"usage: extproc {command}" in run(
            extproc, command, "--help", cwd=tmp_path
        )
    find = (
        "from extproc.demo.stack.envoy_config import find_config; print(find_config())"
    )
    found = run(installed / "python", "-c", find, cwd=tmp_path).strip()
    assert found == str(
        installed.parent / "share" / "token-budget-router" / "envoy.yaml"
    )


def test_server_shows_its_page_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    server = subprocess.Popen(
        [installed / "extproc", "serve"],
        cwd=tmp_path,
        env={"EXTPROC_LISTEN": "127.0.0.1:0", "EXTPROC_ADMIN": "127.0.0.1:0"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "admin=" in line)
        address = line.split("admin=")[1].split()[0]
        with urllib.request.urlopen(f"http://{address}/", timeout=LIMIT_S) as page:
            assert b"<title>Token budget router</title>" in page.read()
    finally:
        server.kill()
        server.communicate()
