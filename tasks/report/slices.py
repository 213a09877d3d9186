"""Accuracy on slices of the test images: from little to much ink, and from leaning left to leaning right."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.gate import wilson
from tasks.report.columns import Column, together
from tasks.report.measures import Measures

_QUARTERS = {
    "ink": ("least ink", "second quarter", "third quarter", "most ink"),
    "slant": ("furthest left", "second quarter", "third quarter", "furthest right"),
}


def slices(measures: Measures | None, right: Column | None) -> list[dict[str, Any]]:
    """Return rows, right answers and accuracy with its confidence interval for each quarter of the test images.

    Args:
        measures: of the test images.
        right: bool: whether the model predicted the image correctly.

    Returns:
        By ink and then by slant, the lowest quarter first. Images that cannot be measured are in no slice; if many
        images have the same value, there are fewer quarters.
    """
    if measures is None or right is None or together(measures.ink, measures.slant, right) is None:
        return []
    return [*_quarters("ink", measures.ink, right), *_quarters("slant", measures.slant, right)]


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


def _quarters(by: str, values: Column, right: Column) -> list[dict[str, Any]]:
    edges = _edges(values)
    if not edges:
        return []
    found = [_Quarter() for _ in _QUARTERS[by]]
    for numbers, is_right in zip(values.blocks(), right.blocks(), strict=True):
        finite = np.isfinite(numbers)
        numbers, is_right = numbers[finite], is_right[finite]
        place = np.searchsorted(edges, numbers, side="left")
        for number, quarter in enumerate(found):
            quarter.add(numbers[place == number], is_right[place == number])
    return [_said(by, name, quarter) for name, quarter in zip(_QUARTERS[by], found, strict=True) if quarter.rows]


def _edges(values: Column) -> list[float]:
    """Return the quartiles of the finite numbers, as `numpy.quantile` does; empty if there are none."""
    last = sum(int(np.isfinite(numbers).sum()) for numbers in values.blocks()) - 1
    if last < 0:
        return []
    below = [last * number // 4 for number in (1, 2, 3)]
    ranked = values.ranked([rank for first in below for rank in (first, min(first + 1, last))])
    shares = [last * number % 4 / 4 for number in (1, 2, 3)]
    pairs = zip(ranked[::2], ranked[1::2], shares, strict=True)
    return [float(np.quantile([low, high], share)) for low, high, share in pairs]


@dataclass
class _Quarter:
    rows: int = 0
    correct: int = 0
    low: float = math.inf
    high: float = -math.inf

    def add(self, numbers: np.ndarray, is_right: np.ndarray) -> None:
        if len(numbers):
            self.rows, self.correct = self.rows + len(numbers), self.correct + int(is_right.sum())
            self.low, self.high = min(self.low, float(numbers.min())), max(self.high, float(numbers.max()))


def _said(by: str, name: str, quarter: _Quarter) -> dict[str, Any]:
    low, high = wilson.interval(quarter.correct, quarter.rows)
    return {
        "by": by,
        "name": name,
        "from": quarter.low,
        "to": quarter.high,
        "rows": quarter.rows,
        "correct": quarter.correct,
        "accuracy": quarter.correct / quarter.rows,
        "low": low,
        "high": high,
    }
