"""The C kernel's results equal NumPy's on any bytes; the tests need a compiler."""

from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing import arithmetic
from extproc.routing.arithmetic import (
    count_repeats_with_numpy,
    count_terms_with_numpy,
    family_variance_with_numpy,
    quadratic_form_with_numpy,
)
from extproc.routing.arrays import Vector
from extproc.routing.byte_classes import CLASS_TABLE, CLASSES, ROW, ByteClass
from extproc.routing.regressors import (
    TEXT_PLACES,
    TOOLS_PLACES,
    VECTOR_TERMS,
    Places,
)

from ..c_modules import compiled

SOURCE = Path(arithmetic.__file__).with_name("_kernel.c")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return compiled(SOURCE, tmp_path_factory.mktemp("kernel"))


TEXTS = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=300).map(str.encode),
    st.integers(0, 5000).map(
        lambda size: b"the 12 dogs, (and) {more}\n" * (size // 20)
    ),
)


def count(kernel: ModuleType, text: bytes, places: Places, terms: Vector) -> list[int]:
    found = kernel.count_terms(
        text, CLASS_TABLE, places.terms, CLASSES, int(ByteClass.NEWLINE), terms
    )
    assert type(found) is list
    return found


@given(TEXTS, st.sampled_from([TEXT_PLACES, TOOLS_PLACES]))
def test_both_count_alike(kernel: ModuleType, text: bytes, places: Places) -> None:
    ours, theirs = np.ones(len(VECTOR_TERMS)), np.ones(len(VECTOR_TERMS))

    classes = count(kernel, text, places, ours)

    assert classes == list(count_terms_with_numpy(text, places, theirs))
    assert ours.tolist() == theirs.tolist()


def test_counts_are_added(kernel: ModuleType) -> None:
    terms = np.zeros(3)
    table = bytes(byte & 1 for byte in range(256))
    places = np.full(ROW * ROW, 9, dtype=np.uint16)
    places[[0, 1, ROW + 1]] = 0, 1, 2

    for _ in range(2):
        classes = kernel.count_terms(b"\0\1\0\1\1", table, places, 2, 0, terms)
        assert classes == [2, 3]

    assert terms.tolist() == [2, 4, 2]


@pytest.mark.parametrize("size", [65_534, 65_535, 65_536, 140_001])
@pytest.mark.parametrize("unit", [b"e", b"a ", b"a\n7"])
def test_long_texts_are_counted_in_full(
    kernel: ModuleType, size: int, unit: bytes
) -> None:
    text = (unit * size)[:size]
    ours, theirs = np.zeros(len(VECTOR_TERMS)), np.zeros(len(VECTOR_TERMS))

    classes = count(kernel, text, TEXT_PLACES, ours)

    assert classes == list(count_terms_with_numpy(text, TEXT_PLACES, theirs))
    assert ours.tolist() == theirs.tolist()


@given(st.binary(min_size=256, max_size=256), st.binary(max_size=40))
def test_any_table_stays_within_the_counts(
    kernel: ModuleType, table: bytes, text: bytes
) -> None:
    """Classes of 64 and more count as their remainder, so no count is out of range."""
    terms = np.zeros(5)

    classes = kernel.count_terms(text, table, PLACES, ROW, 0, terms)

    assert sum(classes) == terms[0] == len(text)


PLACES = np.zeros(ROW * ROW, dtype=np.uint16)


@pytest.mark.parametrize(
    ("table", "places", "classes", "first", "message"),
    [
        (CLASS_TABLE, PLACES, 0, 0, "classes"),
        (CLASS_TABLE, PLACES, ROW + 1, 0, "classes"),
        (CLASS_TABLE, PLACES, CLASSES, CLASSES, "first"),
        (CLASS_TABLE, PLACES, CLASSES, -1, "first"),
        (CLASS_TABLE[:255], PLACES, CLASSES, 0, "table: expected 256"),
        (CLASS_TABLE, PLACES[1:], CLASSES, 0, "places"),
        (CLASS_TABLE, PLACES.astype(np.uint8), CLASSES, 0, "places"),
    ],
)
def test_counting_with_arguments_that_do_not_fit_is_an_error(
    kernel: ModuleType,
    table: bytes,
    places: npt.NDArray[np.uint16],
    classes: int,
    first: int,
    message: str,
) -> None:
    terms = np.zeros(5)

    with pytest.raises(ValueError, match=message):
        kernel.count_terms(b"text", table, places, classes, first, terms)

    assert not terms.any()


def test_terms_that_cannot_be_written_are_an_error(kernel: ModuleType) -> None:
    with pytest.raises(TypeError, match="read-write"):
        kernel.count_terms(b"", CLASS_TABLE, PLACES, CLASSES, 0, bytes(8))
    with pytest.raises(ValueError, match="terms"):
        kernel.count_terms(b"", CLASS_TABLE, PLACES, CLASSES, 0, bytearray(9))


REPEATED = st.lists(
    st.tuples(st.binary(max_size=9), st.integers(0, 40)), max_size=6
).map(lambda parts: b"".join(unit * times for unit, times in parts))


@given(TEXTS | REPEATED, st.integers(1, 48), st.integers(1, 20))
def test_both_find_the_same_repeats(
    kernel: ModuleType, text: bytes, period: int, least: int
) -> None:
    found = kernel.count_repeats(text, CLASS_TABLE, CLASSES, period, least)

    assert found == list(count_repeats_with_numpy(text, period, least))


def test_repeats_are_counted_by_class(kernel: ModuleType) -> None:
    text = b"=" * 30 + b"no" + b"7" * 20 + b"\n" * 5

    found = kernel.count_repeats(text, CLASS_TABLE, CLASSES, 1, 16)

    assert {ByteClass(i): n for i, n in enumerate(found) if n} == {
        ByteClass.RULE: 29,
        ByteClass.DIGIT: 19,
    }


@pytest.mark.parametrize(
    ("table", "classes", "period", "least", "message"),
    [
        (CLASS_TABLE, CLASSES, 0, 1, "period"),
        (CLASS_TABLE, CLASSES, 1, 0, "least"),
        (CLASS_TABLE[1:], CLASSES, 1, 1, "table"),
        (CLASS_TABLE, ROW + 1, 1, 1, "classes"),
    ],
)
def test_finding_repeats_with_arguments_that_do_not_fit_is_an_error(
    kernel: ModuleType,
    table: bytes,
    classes: int,
    period: int,
    least: int,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        kernel.count_repeats(b"text", table, classes, period, least)


@given(st.integers(0, 60), st.integers(0, 2**32), st.floats(0.0, 1.0))
def test_both_weigh_alike(
    kernel: ModuleType, size: int, seed: int, present: float
) -> None:
    random = np.random.default_rng(seed)
    roots = random.normal(size=(size, size))
    matrix = roots @ roots.T
    x = random.normal(size=size) * (random.random(size) < present)

    found = kernel.quadratic_form(matrix, x)

    assert found == pytest.approx(quadratic_form_with_numpy(matrix, x), rel=1e-9)


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [((2, 3), 2, "matrix"), ((3, 3), 2, "matrix"), ((1, 513), 513, "x: expected")],
)
def test_a_matrix_that_does_not_fit_is_an_error(
    kernel: ModuleType, shape: tuple[int, int], size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kernel.quadratic_form(np.zeros(shape), np.zeros(size))


@given(
    st.integers(2, 20),
    st.integers(1, 60),
    st.integers(0, 2**32),
    st.floats(0.0, 1.0),
    st.floats(0.0, 200.0),
)
def test_both_find_the_same_variance_of_families(
    kernel: ModuleType, rows: int, size: int, seed: int, present: float, most: float
) -> None:
    random = np.random.default_rng(seed)
    families = random.normal(size=(rows, size))
    variances = random.random(size)
    x = random.normal(size=size) * (random.random(size) < present)

    found = kernel.family_variance(families, variances, x, most)

    expected = family_variance_with_numpy(families, variances, x, most)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "variances", "size", "message"),
    [
        ((2, 3), 3, 2, "variances"),
        ((3, 3), 2, 2, "coefficients"),
        ((1, 2), 2, 2, "coefficients"),
        ((65, 2), 2, 2, "coefficients"),
        ((2, 0), 0, 0, "coefficients"),
        ((2, 513), 513, 513, "x: expected"),
    ],
)
def test_families_that_do_not_fit_are_an_error(
    kernel: ModuleType,
    shape: tuple[int, int],
    variances: int,
    size: int,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        kernel.family_variance(np.zeros(shape), np.zeros(variances), np.zeros(size), 1)
