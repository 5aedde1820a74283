"""The optional C kernel (_kernel.c). Its specification is arithmetic.py."""

import numpy as np
import numpy.typing as npt

INTERFACE: int
"""Version of the functions' arguments and results."""

def count_terms(
    text: bytes,
    table: bytes,
    places: npt.NDArray[np.uint16],
    classes: int,
    first: int,
    terms: npt.NDArray[np.float64],
    /,
) -> list[int]:
    """Count the pairs of byte classes in a text, by term.

    Args:
        text: treated as if it followed a byte of class ``first``.
        table: class of each byte, below 64.
        places: index of each pair's term, with 64 pairs for each first class; a pair
            with an index above all terms is not counted.
        classes: number of classes, 1 to 64.
        first: a class.
        terms: counts by term; each pair adds 1 to its term, in place.

    Returns:
        The number of bytes in each class.

    Raises:
        ValueError: an argument is out of range, or its size does not match the others.
    """

def count_repeats(
    text: bytes, table: bytes, classes: int, period: int, least: int, /
) -> list[int]:
    """Count the bytes in long stretches that repeat with a period.

    Args:
        text: bytes to search.
        table: class of each byte, below 64.
        classes: number of classes, 1 to 64.
        period: distance in bytes from each byte to its repetition, at least 1.
        least: length in bytes of the shortest stretch to count, at least 1.

    Returns:
        The number of bytes, by the class of the first byte of their stretch.

    Raises:
        ValueError: an argument is out of range.
    """

def quadratic_form(
    matrix: npt.NDArray[np.float64], x: npt.NDArray[np.float64], /
) -> float:
    """Return ``x' M x`` for a symmetric matrix M; only its lower triangle is read.

    Raises:
        ValueError: the matrix does not match the size of x, or x has over 512 elements.
    """

def family_variance(
    coefficients: npt.NDArray[np.float64],
    variances: npt.NDArray[np.float64],
    x: npt.NDArray[np.float64],
    most: float,
    /,
) -> float:
    """Return the variance of ``x . w`` around and between families, at most ``most``.

    Args:
        coefficients: one row for each of 2 to 64 families, as long as ``x``.
        variances: variance of each coefficient around the families.
        x: at most 512 elements.
        most: upper limit of the result.

    Raises:
        ValueError: the sizes do not match, or are out of range.
    """
