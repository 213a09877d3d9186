"""Divide the rows of a split into slices, and count them: by class, by quantile of a measure, by values of a column.

The report and the gate divide by this, so a slice has the same rows in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.slicing.columns import Column

MOST_VALUES = 64
"""The most different values of a column that each are a slice; a column with more is divided by quantile."""


@dataclass(frozen=True)
class Cut:
    """One way to divide rows: each number belongs to at most one slice."""

    by: str
    names: tuple[str, ...]
    limits: tuple[float, ...]
    """Ascending: the number of each slice, or with quantiles the highest number of each slice but the last."""
    by_quantile: bool = False

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """Return the place in `names` of the slice of each number, int64 of shape (n,); -1: it is in none."""
        places = np.searchsorted(self.limits, numbers, side="left")
        if self.by_quantile:
            places[~np.isfinite(numbers)] = -1
        else:
            known = np.array(self.limits)
            places[known[places.clip(max=len(known) - 1)] != numbers] = -1
        return places


def by_class(names: Sequence[str]) -> Cut:
    """Return the slices of the classes with these names, for labels as numbers."""
    return Cut("class", tuple(f"class {name}" for name in names), tuple(range(len(names))))


def by_quantile(by: str, values: Column, parts: int) -> Cut | None:
    """Return slices of as many rows each as can be: equal numbers stay together, so that there may be fewer.

    Args:
        by: what the numbers are.
        values: float64, of all rows. Those that are not finite are in no slice.
        parts: how many slices.

    Returns:
        The slices, the lowest first; they end at the quantiles that `numpy.quantile` has. None without finite numbers.
    """
    last = sum(int(np.isfinite(numbers).sum()) for numbers in values.blocks()) - 1
    if last < 0:
        return None
    below = [last * number // parts for number in range(1, parts)]
    ranked = values.ranked([rank for first in below for rank in (first, min(first + 1, last))])
    shares = [last * number % parts / parts for number in range(1, parts)]
    pairs = zip(ranked[::2], ranked[1::2], shares, strict=True)
    limits = tuple(float(np.quantile([low, high], share)) for low, high, share in pairs)
    return Cut(by, tuple(quantile_name(by, number, parts) for number in range(1, parts + 1)), limits, by_quantile=True)


def by_value(by: str, values: Column, parts: int) -> Cut | None:
    """Return a slice for each number that occurs, or those of `by_quantile` if there are more than `MOST_VALUES`.

    Args:
        by: what the numbers are.
        values: float64, whole numbers, of all rows.
        parts: how many slices, if there are too many numbers.
    """
    found: set[float] = set()
    for numbers in values.blocks():
        found.update(np.unique(numbers).tolist())
        if len(found) > MOST_VALUES:
            return by_quantile(by, values, parts)
    known = tuple(sorted(found))
    return Cut(by, tuple(f"{by} = {value:.0f}" for value in known), known)


def quantile_name(by: str, number: int, parts: int) -> str:
    """Return the name of a slice by quantile: its number, counted from 1 for the lowest."""
    return f"{by} quantile {number} of {parts}"


class Tally:
    """Counts the rows of each slice by kind, such as right and wrong, with the lowest and the highest number of each.

    Args:
        cut: the slices.
        kinds: how many kinds of rows there are.
    """

    def __init__(self, cut: Cut, kinds: int) -> None:
        self.cut = cut
        self.counts = np.zeros((len(cut.names), kinds), np.int64)
        """Shape (slices, kinds)."""
        self.lowest = np.full(len(cut.names), np.inf)
        self.highest = np.full(len(cut.names), -np.inf)

    def add(self, numbers: np.ndarray, kinds: np.ndarray) -> None:
        """Count rows.

        Args:
            numbers: by which they are divided, shape (n,).
            kinds: of each row, whole numbers from 0, of the same shape.
        """
        places = self.cut.places(numbers)
        inside = places >= 0
        places, numbers = places[inside], numbers[inside]
        cells = places * self.counts.shape[1] + kinds[inside]
        self.counts += np.bincount(cells, minlength=self.counts.size).reshape(self.counts.shape)
        np.minimum.at(self.lowest, places, numbers)
        np.maximum.at(self.highest, places, numbers)
