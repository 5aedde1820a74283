"""The optional C kernel: see _kernel.c; the specification is arithmetic.py."""

import numpy as np
import numpy.typing as npt

def count_terms(
    text: bytes,
    table: bytes,
    places: npt.NDArray[np.uint16],
    classes: int,
    first: int,
    terms: npt.NDArray[np.float64],
    /,
) -> list[int]:
    """Count the pairs of byte classes of a text by term.

    Args:
        text: taken to follow a byte of the class ``first``; below 4 GiB.
        table: the class of each byte, below ``classes``.
        places: the term of each pair; a number that is no term's counts nowhere.
        classes: from 1 to 64.
        first: a class.
        terms: each pair adds 1 to its term.

    Returns:
        The bytes of the text in each class.

    Raises:
        ValueError: an argument is out of range, or does not fit the others.
    """

def count_repeats(
    text: bytes, table: bytes, classes: int, period: int, least: int, /
) -> list[int]:
    """Count the bytes that repeat the byte ``period`` before them, in long stretches.

    Args:
        text: what is looked at.
        table: the class of each byte, below ``classes``.
        classes: from 1 to 64.
        period: at least 1.
        least: bytes of the shortest stretch that counts, at least 1.

    Returns:
        The bytes by the class of their stretch's first one.

    Raises:
        ValueError: an argument is out of range.
    """

def quadratic_form(
    matrix: npt.NDArray[np.float64], x: npt.NDArray[np.float64], /
) -> float:
    """Return ``x' M x`` of a symmetric matrix, of whose two halves one is read.

    Raises:
        ValueError: the matrix is not of the vector's size, or that above 512.
    """
