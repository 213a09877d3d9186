"""Measure whether the model is right as often as its probabilities predict.

Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger 2017: On Calibration of Modern Neural Networks, ICML, PMLR 70,
1321-1330: 15 bins of equal width over the probability of the predicted class.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 15
_GOOD, _FAIR = 0.02, 0.05


def calibration(sure: np.ndarray | None, right: np.ndarray | None) -> dict[str, Any] | None:
    """Return the calibration curve and the expected calibration error.

    Args:
        sure: probabilities of the predicted classes, shape (rows,), 0-1.
        right: whether each prediction is right, bool of the same shape.

    Returns:
        `ece`, the mean over all rows of the difference between accuracy and confidence of their bin, in [0, 1]; `bins`
        without the empty ones, each (low, high]; `sentence`. None if there are no rows.
    """
    if sure is None or right is None or len(sure) != len(right) or not len(sure) or not np.isfinite(sure).all():
        return None
    # Rounding can leave probabilities slightly above 1.
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
    amount = f"on average, its confidence and its accuracy differ by {100 * error:.2f} points"
    if error < _GOOD:
        return f"The model is well calibrated: {amount} (expected calibration error)."
    much = "somewhat" if error < _FAIR else "clearly"
    way = "overconfident" if surer else "underconfident"
    return f"The model is {much} {way}: {amount} (expected calibration error)."
