"""Accuracy on slices of the test images: from little to much ink, and from leaning left to leaning right."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from tasks.gate import wilson
from tasks.report.measures import Measures

_QUARTERS = {
    "ink": ("least ink", "second quarter", "third quarter", "most ink"),
    "slant": ("furthest left", "second quarter", "third quarter", "furthest right"),
}


def slices(measures: Measures | None, right: np.ndarray | None) -> list[dict[str, Any]]:
    """Return rows, right answers and accuracy with its confidence interval for each quarter of the test images.

    Args:
        measures: of the test images.
        right: bool, shape (rows,): whether the model predicted the image correctly.

    Returns:
        By ink and then by slant, the lowest quarter first. Images that cannot be measured are in no slice; if many
        images have the same value, there are fewer quarters.
    """
    if measures is None or right is None or len(right) != len(measures.ink) or not len(right):
        return []
    quarters = []
    for name, values in (("ink", measures.ink), ("slant", measures.slant)):
        quarters += _quarters(name, values, right)
    return quarters


def weakest(quarters: list[dict[str, Any]]) -> str:
    """Return a sentence on the slice with the lowest accuracy, and whether chance may explain it."""
    if not quarters:
        return "Ink and slant of the test images cannot be read."
    sides = Counter(slice_["by"] for slice_ in quarters)
    quarters = [slice_ for slice_ in quarters if sides[slice_["by"]] > 1]
    if not quarters:
        return "The test images differ too little in ink and slant to compare."
    worst = min(quarters, key=lambda slice_: (slice_["accuracy"], slice_["by"]))
    others = [s for s in quarters if s["by"] == worst["by"] and s is not worst]
    apart = any(worst["high"] < s["low"] for s in others)
    if worst["accuracy"] == max(s["accuracy"] for s in quarters):
        return f"All quarters have the same accuracy, {worst['accuracy']:.2%}."
    sentence = f"The weakest quarter is {worst['by']}: {worst['name']}, at {worst['accuracy']:.2%}"
    if apart:
        return f"{sentence}; its interval is below that of another quarter, so chance is an unlikely explanation."
    return f"{sentence}; its interval overlaps those of the other quarters, so that may be chance."


def _quarters(by: str, values: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    finite = np.isfinite(values)
    values, right = values[finite], right[finite]
    if not len(values):
        return []
    edges = np.quantile(values, (0.25, 0.5, 0.75))
    quarter = np.searchsorted(edges, values, side="left")
    quarters = []
    for number, name in enumerate(_QUARTERS[by]):
        within = quarter == number
        if rows := int(within.sum()):
            correct = int(right[within].sum())
            low, high = wilson.interval(correct, rows)
            quarters.append(
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
    return quarters
