"""Accuracy on slices of the test images: from little to much ink, and from leaning left to leaning right."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.gate import wilson
from tasks.slicing import cuts
from tasks.slicing.columns import Column, together

_QUARTERS = {
    "ink": ("least ink", "second quarter", "third quarter", "most ink"),
    "slant": ("furthest left", "second quarter", "third quarter", "furthest right"),
}


@dataclass(frozen=True)
class Measures:
    """Measures of each image of a split, in order."""

    ink: Column
    """float64: mean pixel value, 0-255."""
    slant: Column
    """float64: degrees, above 0 leaning to the right like `/`; NaN if the ink has no height."""


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
    cut = cuts.by_quantile(by, values, len(_QUARTERS[by]))
    if cut is None:
        return []
    tally = cuts.Tally(cut, 2)
    for numbers, is_right in zip(values.blocks(), right.blocks(), strict=True):
        tally.add(numbers, is_right.astype(np.int64))
    ends = zip(tally.lowest.tolist(), tally.highest.tolist(), strict=True)
    named = zip(_QUARTERS[by], tally.counts.tolist(), ends, strict=True)
    return [_said(by, name, wrong + correct, correct, of) for name, (wrong, correct), of in named if wrong + correct]


def _said(by: str, name: str, rows: int, correct: int, ends: tuple[float, float]) -> dict[str, Any]:
    low, high = wilson.interval(correct, rows)
    return {
        "by": by,
        "name": name,
        "from": ends[0],
        "to": ends[1],
        "rows": rows,
        "correct": correct,
        "accuracy": correct / rows,
        "low": low,
        "high": high,
    }
