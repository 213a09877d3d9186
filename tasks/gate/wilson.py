"""The confidence interval of a proportion, without SciPy, whose import takes a second."""

from __future__ import annotations

import math
from statistics import NormalDist

CONFIDENCE = 0.95


def interval(correct: int, rows: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the Wilson score interval of `correct` of `rows`, in [0, 1]; the whole range if there are no rows.

    Args:
        confidence: that the interval contains the true proportion, above 0. From 1 - 1e-16 on, where rounding leaves
            nothing of the error, it is the whole range, too.

    Source: E. B. Wilson 1927, Journal of the American Statistical Association 22, 209-212.
    """
    below = (1 + confidence) / 2
    if not rows or below >= 1:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(below)
    share, spread = correct / rows, z * z / rows
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / rows + spread / (4 * rows)) / (1 + spread)
    # At the extremes the two are equal except for rounding.
    return (middle - half if correct else 0.0), (middle + half if correct < rows else 1.0)
