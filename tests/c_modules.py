"""Compiles the project's C modules for their tests."""

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

_RETURNS = ("Py_RETURN_NONE", "Py_RETURN_TRUE", "Py_RETURN_FALSE", "Py_RETURN_NOTIMPL")


def compiled(source: Path, folder: Path) -> ModuleType:
    """Compile a module with all warnings treated as errors, and import it.

    A module built by any Python must count references for every other: code built with
    Python 3.12's headers returns None without incrementing the reference count of None,
    so the macros that do this are an error too.
    """
    compiler = shutil.which("cc")
    include = Path(sysconfig.get_paths()["include"])
    if compiler is None or not (include / "Python.h").exists():
        pytest.skip("needs a C compiler and Python's headers")
    assert not any(macro in source.read_text() for macro in _RETURNS)
    library = folder / f"{source.stem}.abi3.so"
    options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(
        [compiler, *options, f"-I{include}", str(source), "-o", str(library)],
        check=True,
    )
    spec = importlib.util.spec_from_file_location(source.stem, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
