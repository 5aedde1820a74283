"""The C kernel counts what NumPy counts, on any bytes; built here, if there is a compiler."""

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing import features
from extproc.routing.features import (
    CLASS_TABLE,
    CLASSES,
    ByteClass,
    count_with_numpy,
)

SOURCE = Path(features.__file__).with_name("_kernel.c")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The kernel, compiled with all warnings as errors."""
    compiler = shutil.which("cc")
    include = Path(sysconfig.get_paths()["include"])
    if compiler is None or not (include / "Python.h").exists():
        pytest.skip("needs a C compiler and Python's headers")
    library = tmp_path_factory.mktemp("kernel") / "_kernel.abi3.so"
    options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(
        [compiler, *options, f"-I{include}", str(SOURCE), "-o", str(library)],
        check=True,
    )
    spec = importlib.util.spec_from_file_location("_kernel", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEXTS = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=300).map(str.encode),
    st.integers(0, 5000).map(
        lambda size: b"the 12 dogs, (and) {more}\n" * (size // 20)
    ),
)


@given(TEXTS)
def test_both_count_alike(kernel: ModuleType, text: bytes) -> None:
    counts = np.zeros(CLASSES * CLASSES, dtype=np.int64)

    kernel.count_pairs(text, CLASS_TABLE, CLASSES, int(ByteClass.NEWLINE), counts)

    assert counts.tolist() == count_with_numpy(text).tolist()


def test_counts_are_added(kernel: ModuleType) -> None:
    counts = np.zeros(4, dtype=np.int64)
    table = bytes(byte & 1 for byte in range(256))

    for _ in range(2):
        kernel.count_pairs(b"\0\1\1", table, 2, 0, counts)

    assert counts.tolist() == [2, 2, 0, 2]


@pytest.mark.parametrize(
    ("table", "classes", "first", "room", "message"),
    [
        (CLASS_TABLE, 0, 0, 0, "classes"),
        (CLASS_TABLE, 65, 0, 65 * 65, "classes"),
        (CLASS_TABLE, CLASSES, CLASSES, CLASSES**2, "classes"),
        (CLASS_TABLE, CLASSES, -1, CLASSES**2, "classes"),
        (CLASS_TABLE, 20, 0, 20 * 20, "table: a class out of range"),
        (CLASS_TABLE[:255], CLASSES, 0, CLASSES**2, "table: expected 256"),
        (CLASS_TABLE, CLASSES, 0, CLASSES**2 - 1, "counts"),
    ],
)
def test_arguments_that_do_not_fit_are_errors(
    kernel: ModuleType, table: bytes, classes: int, first: int, room: int, message: str
) -> None:
    counts = np.zeros(room, dtype=np.int64)

    with pytest.raises(ValueError, match=message):
        kernel.count_pairs(b"text", table, classes, first, counts)

    assert not counts.any()


def test_counts_that_cannot_be_written_are_an_error(kernel: ModuleType) -> None:
    with pytest.raises(TypeError, match="read-write"):
        kernel.count_pairs(b"", CLASS_TABLE, CLASSES, 0, bytes(8 * CLASSES**2))
