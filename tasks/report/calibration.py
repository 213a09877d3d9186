"""Measure whether the model is right as often as its probabilities predict.

Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger 2017: On Calibration of Modern Neural Networks, ICML, PMLR 70,
1321-1330: 15 bins of equal width over the probability of the predicted class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.slicing.columns import Column, together

BINS = 15
_GOOD, _FAIR = 0.02, 0.05


def calibration(sure: Column | None, right: Column | None) -> dict[str, Any] | None:
    """Return the calibration curve and the expected calibration error.

    Args:
        sure: the probability of the predicted class of each row, 0-1, float32.
        right: whether each prediction is right, bool.

    Returns:
        `ece`, the mean over all rows of the difference between accuracy and confidence of their bin, in [0, 1]; `bins`
        without the empty ones, each (low, high]; `sentence`. None if there are no rows, or a probability is not finite.
    """
    counted = _counted(sure, right)
    if counted is None:
        return None
    total = int(counted.rows.sum())
    bins, error = [], 0.0
    for number, (rows, correct, confidence) in enumerate(
        zip(counted.rows.tolist(), counted.correct.tolist(), counted.sure.tolist(), strict=True)
    ):
        if rows:
            accuracy, confidence = correct / rows, min(confidence / rows, 1.0)
            error += rows / total * abs(accuracy - confidence)
            bins.append(
                {
                    "low": number / BINS,
                    "high": (number + 1) / BINS,
                    "rows": rows,
                    "confidence": confidence,
                    "accuracy": accuracy,
                }
            )
    surer = counted.sure.sum() / total > counted.correct.sum() / total
    return {"ece": error, "sentence": _sentence(error, bool(surer)), "bins": bins}


@dataclass(frozen=True)
class _Counted:
    """Sums over the rows of each bin, of shape (BINS,)."""

    rows: np.ndarray
    correct: np.ndarray
    sure: np.ndarray
    """float64; exact up to two million rows: probabilities of at least 1/256 with 24 bits are multiples of 2**-32."""


def _counted(sure: Column | None, right: Column | None) -> _Counted | None:
    rows, correct, sums = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64), np.zeros(BINS)
    for here, is_right in together(sure, right) or ():
        if not np.isfinite(here).all():
            return None
        # Rounding can leave probabilities slightly above 1.
        place = np.clip(np.ceil(here.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
        rows += np.bincount(place, minlength=BINS)
        correct += np.bincount(place[is_right], minlength=BINS)
        sums += np.bincount(place, here, minlength=BINS)
    return _Counted(rows, correct, sums) if rows.any() else None


def _sentence(error: float, surer: bool) -> str:
    amount = f"on average, its confidence and its accuracy differ by {100 * error:.2f} points"
    if error < _GOOD:
        return f"The model is well calibrated: {amount} (expected calibration error)."
    much = "somewhat" if error < _FAIR else "clearly"
    way = "overconfident" if surer else "underconfident"
    return f"The model is {much} {way}: {amount} (expected calibration error)."
