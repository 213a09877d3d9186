"""Whether the model is right as often as its probabilities say.

Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger 2017: On Calibration of Modern Neural Networks, ICML, PMLR 70,
1321-1330: bins of equal width over the probability of the answer, 15 of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 15
_GOOD, _FAIR = 0.02, 0.05


def calibration(sure: np.ndarray | None, right: np.ndarray | None) -> dict[str, Any] | None:
    """Return the calibration curve and the expected calibration error.

    Args:
        sure: what the model gave its answers, shape (rows,), 0-1.
        right: bool of the same shape.

    Returns:
        `ece`, the mean over all rows of how far accuracy and confidence of their bin are apart, in [0, 1]; `bins`
        without the empty ones, each (low, high]; `sentence`. None where there is nothing to count.
    """
    if sure is None or right is None or len(sure) != len(right) or not len(sure) or not np.isfinite(sure).all():
        return None
    # Rounding leaves probabilities a hair above 1.
    place = np.clip(np.ceil(sure.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    bins, error = [], 0.0
    for number in range(BINS):
        within = place == number
        if rows := int(within.sum()):
            accuracy = int(right[within].sum()) / rows
            confidence = float(min(sure[within].mean(dtype=np.float64), 1.0))
            error += rows / len(sure) * abs(accuracy - confidence)
            bins.append(
                {
                    "low": number / BINS,
                    "high": (number + 1) / BINS,
                    "rows": rows,
                    "confidence": confidence,
                    "accuracy": accuracy,
                }
            )
    surer = float(sure.mean(dtype=np.float64)) > float(right.mean())
    return {"ece": error, "sentence": _sentence(error, surer), "bins": bins}


def _sentence(error: float, surer: bool) -> str:
    amount = f"on average, its confidence and its accuracy are {100 * error:.2f} points apart"
    if error < _GOOD:
        return f"The model is well calibrated: {amount} (expected calibration error)."
    much = "somewhat" if error < _FAIR else "clearly"
    way = "overconfident" if surer else "underconfident"
    return f"The model is {much} {way}: {amount} (expected calibration error)."
