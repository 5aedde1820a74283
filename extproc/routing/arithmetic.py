"""Loops over a text's bytes and over an estimate's matrix, in C if possible.

The functions in NumPy are the specification and the fallback if the C kernel was not
built. Tests compare the two implementations on arbitrary inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from extproc.c_modules import check_interface
from extproc.routing.arrays import Matrix, Vector
from extproc.routing.byte_classes import CLASS_TABLE, CLASSES, ROW, ByteClass
from extproc.routing.regressors import NO_TERM, Places

try:
    from extproc.routing import _kernel

    check_interface(_kernel, 1)
except ImportError:  # not built, or from an older source
    _kernel = None  # type: ignore[assignment]

COUNTED_BY = "numpy" if _kernel is None else "C kernel"
"""Name of the implementation in use, for display."""

# The product of this number and a byte needs 16 bits. It is an array because NumPy is
# slower with a scalar.
_ROW = np.array(ROW, dtype=np.uint16)


def count_terms_with_numpy(text: bytes, places: Places, terms: Vector) -> Sequence[int]:
    """Count the pairs of byte classes in a text, by term.

    Args:
        text: treated as if it followed a newline.
        places: the term of each pair.
        terms: counts by term; each pair adds 1 to its term, in place.

    Returns:
        The number of bytes in each class.
    """
    classes = np.frombuffer((b"\n" + text).translate(CLASS_TABLE), dtype=np.uint8)
    pairs = classes[:-1] * _ROW
    pairs += classes[1:]
    cells = places.cells.take(pairs)
    counts = np.bincount(cells, minlength=len(places.cell_terms))
    by_term = np.bincount(places.cell_terms, counts, minlength=NO_TERM + 1)
    terms += by_term[: len(terms)]
    totals: list[int] = np.add.reduceat(counts, places.first_cells).tolist()
    return totals


def count_repeats_with_numpy(text: bytes, period: int, least: int) -> Sequence[int]:
    """Count the bytes in long stretches that repeat with a period.

    Args:
        text: bytes to search.
        period: distance in bytes from each byte to its repetition, at least 1.
        least: length in bytes of the shortest stretch to count, at least 1.

    Returns:
        The number of bytes in such stretches, by the class of a stretch's first byte.
    """
    values = np.frombuffer(text, dtype=np.uint8)
    differs = np.flatnonzero(values[period:] != values[:-period])
    starts = np.zeros(len(differs) + 1, dtype=np.intp)
    starts[1:] = differs + 1
    lengths = np.append(differs, max(0, len(values) - period)) - starts
    long = lengths >= least
    first = values[starts[long]].tobytes().translate(CLASS_TABLE)
    of_class = np.frombuffer(first, dtype=np.uint8)
    by_class = np.bincount(of_class, weights=lengths[long], minlength=CLASSES)
    totals: list[int] = by_class.astype(np.int64).tolist()
    return totals


def quadratic_form_with_numpy(matrix: Matrix, x: Vector) -> float:
    """Return ``x' M x`` for a symmetric matrix M."""
    return float(x.dot(matrix.dot(x)))


_BLOCK_TERMS = 48


def invert_positive(matrix: Matrix) -> Matrix:
    """Return the inverse of a symmetric, positive definite matrix.

    It is the product of the inverse of the Cholesky factor with itself, which is as
    exact as LAPACK's general inverse and takes less time. (Inversion by blocks of the
    matrix itself is faster still, but its error grows with the square of the condition
    number: 0.7 % of a coefficient's deviation after 2,600 prompts.)

    Raises:
        numpy.linalg.LinAlgError: the matrix is not positive definite.
    """
    factor = np.asarray(np.linalg.cholesky(matrix), dtype=np.float64)
    root = _invert_lower(factor)
    inverse: Matrix = root.T @ root
    return inverse


def _invert_lower(triangle: Matrix) -> Matrix:
    size = len(triangle)
    if size <= _BLOCK_TERMS:
        return np.asarray(np.linalg.inv(triangle), dtype=np.float64)
    half = size // 2
    first = _invert_lower(triangle[:half, :half])
    last = _invert_lower(triangle[half:, half:])
    inverse = np.zeros_like(triangle)
    inverse[:half, :half] = first
    inverse[half:, :half] = -last @ (triangle[half:, :half] @ first)
    inverse[half:, half:] = last
    return inverse


def family_variance_with_numpy(
    coefficients: Matrix, variances: Vector, x: Vector, most: float
) -> float:
    """Return the variance of ``x . w`` around and between families, at most ``most``.

    Args:
        coefficients: one row for each of two or more families.
        variances: variance of each coefficient around the families.
        x: the terms of a prompt.
        most: upper limit of the result.
    """
    within = float(variances.dot(x * x))
    if within >= most:
        return most  # much is learned by now: skip the families
    tokens = coefficients.dot(x)
    apart = tokens - float(tokens.sum()) / len(tokens)
    between = float(apart.dot(apart)) / (len(tokens) - 1)
    return min(most, within + between)


def _count_terms_with_kernel(
    text: bytes, places: Places, terms: Vector
) -> Sequence[int]:
    return _kernel.count_terms(
        text, CLASS_TABLE, places.terms, CLASSES, ByteClass.NEWLINE, terms
    )


def _count_repeats_with_kernel(text: bytes, period: int, least: int) -> Sequence[int]:
    return _kernel.count_repeats(text, CLASS_TABLE, CLASSES, period, least)


if _kernel is None:
    count_terms = count_terms_with_numpy
    count_repeats = count_repeats_with_numpy
    quadratic_form = quadratic_form_with_numpy
    family_variance = family_variance_with_numpy
else:
    count_terms = _count_terms_with_kernel
    count_repeats = _count_repeats_with_kernel
    quadratic_form = _kernel.quadratic_form
    family_variance = _kernel.family_variance
