"""Accuracy on the test images with little and with much ink, and on those that lean to the left and to the right."""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks import wilson
from tasks.reporting.measures import Measures

_QUARTERS = {
    "ink": ("least ink", "less ink", "more ink", "most ink"),
    "slant": ("most to the left", "less to the left", "less to the right", "most to the right"),
}


def slices(measures: Measures | None, right: np.ndarray | None) -> list[dict[str, Any]]:
    """Return rows, right answers and accuracy with its interval of each quarter of the test images.

    Args:
        measures: of the test images.
        right: bool, shape (rows,): whether the model named the image correctly.

    Returns:
        By ink and then by slant, the lowest quarter first. Images that cannot be measured are in no slice; where
        many images have one value, there are fewer quarters.
    """
    if measures is None or right is None or len(right) != len(measures.ink) or not len(right):
        return []
    found = []
    for name, values in (("ink", measures.ink), ("slant", measures.slant)):
        found += _quarters(name, values, right)
    return found


def weakest(found: list[dict[str, Any]]) -> str:
    """Say which slice does worst, and whether that is more than chance may explain."""
    if not found:
        return "Ink and slant of the test images cannot be read."
    worst = min(found, key=lambda slice_: (slice_["accuracy"], slice_["by"]))
    others = [s for s in found if s["by"] == worst["by"] and s is not worst]
    apart = any(worst["high"] < s["low"] for s in others)
    said = f"The weakest quarter is {worst['by']}: {worst['name']}, at {worst['accuracy']:.2%}"
    if apart:
        return f"{said}; that is more below another quarter than their intervals allow for."
    return f"{said}; the intervals of the quarters overlap, so that may be chance."


def _quarters(by: str, values: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    known = np.isfinite(values)
    values, right = values[known], right[known]
    if not len(values):
        return []
    edges = np.quantile(values, (0.25, 0.5, 0.75))
    quarter = np.searchsorted(edges, values, side="left")
    found = []
    for number, name in enumerate(_QUARTERS[by]):
        within = quarter == number
        if rows := int(within.sum()):
            correct = int(right[within].sum())
            low, high = wilson.interval(correct, rows)
            found.append(
                {
                    "by": by,
                    "name": name,
                    "from": float(values[within].min()),
                    "to": float(values[within].max()),
                    "rows": rows,
                    "correct": correct,
                    "accuracy": correct / rows,
                    "low": low,
                    "high": high,
                }
            )
    return found
