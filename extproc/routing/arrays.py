"""The array types of the estimator, by their mathematical names."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
"""One-dimensional array of floats."""

Matrix = npt.NDArray[np.float64]
"""Two-dimensional array of floats."""
