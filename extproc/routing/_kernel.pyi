"""The optional C kernel: see _kernel.c."""

import numpy as np
import numpy.typing as npt

def count_pairs(
    text: bytes,
    table: bytes,
    classes: int,
    first: int,
    counts: npt.NDArray[np.int64],
    /,
) -> None:
    """Add to counts[classes * a + b] how often class b follows class a in a text.

    Args:
        text: taken to follow a byte of the class ``first``.
        table: the class of each byte, below ``classes``.
        classes: from 1 to 64.
        counts: classes * classes integers of 64 bits.

    Raises:
        ValueError: an argument is out of range, or does not fit the others.
    """
