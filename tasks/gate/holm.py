"""The correction of p-values for their number, without SciPy, whose import takes a second."""

from __future__ import annotations

import numpy as np


def corrected(p: np.ndarray) -> np.ndarray:
    """Return p-values corrected for their number: those of at most a rate bound the chance of any false alarm by it.

    That holds however the tests depend on each other.

    Args:
        p: in [0, 1], shape (tests,).

    Source: S. Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    found = np.empty(len(p))
    found[order] = np.minimum(stepped, 1)
    return found
