"""The interval of a share, without SciPy, whose import costs a second."""

from __future__ import annotations

import math
from statistics import NormalDist

CONFIDENCE = 0.95


def interval(correct: int, rows: int) -> tuple[float, float]:
    """Return the 95% Wilson score interval of `correct` of `rows`, in [0, 1]; everything where there are no rows.

    Source: E. B. Wilson 1927, Journal of the American Statistical Association 22, 209-212.
    """
    if not rows:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, spread = correct / rows, z * z / rows
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / rows + spread / (4 * rows)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
