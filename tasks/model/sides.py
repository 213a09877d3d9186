"""The fitted and the held-out rows as two samples: how many of each label, and how bright their images are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.formats import arrays

LABELS = 256
"""The values that a label can have."""
_EXPECTED: arrays.Expected = {
    "labels": (np.int64, (2, LABELS)),
    "mean": (np.float64, (2,)),
    "variance": (np.float64, (2,)),
}


@dataclass(frozen=True)
class Sample:
    """The brightness of images: the mean pixel of each, 0-255."""

    rows: int
    mean: float
    variance: float

    @staticmethod
    def of(brightness: np.ndarray) -> Sample:
        """Return the sample of the values of an array of shape (rows,), at least one."""
        mean, variance = brightness.mean(dtype=np.float64), np.var(brightness, dtype=np.float64)
        return Sample(len(brightness), float(mean), float(variance))


@dataclass(frozen=True)
class Sides:
    """The fitted rows, and then the held-out ones; there is at least one of each."""

    labels: np.ndarray
    """int64, shape (2, 256): number of rows by label."""
    brightness: tuple[Sample, Sample] | None
    """None if unknown."""


def of_rows(labels: np.ndarray, held: np.ndarray, brightness: np.ndarray | None) -> Sides | None:
    """Return the two sides of rows, or None if one of them is empty.

    Args:
        labels: uint8 of shape (rows,).
        held: whether each row is held out, bool of shape (rows,).
        brightness: the mean pixel of each image, of shape (rows,), if it is known.
    """
    if not held.any() or held.all():
        return None
    counts = np.stack([np.bincount(labels[side], minlength=LABELS) for side in (~held, held)])
    known = brightness is not None and len(brightness) == len(held)
    samples = (Sample.of(brightness[~held]), Sample.of(brightness[held])) if known and brightness is not None else None
    return Sides(counts, samples)


def write(file: Path, labels: np.ndarray, sums: tuple[tuple[int, int], tuple[int, int]], pixels: int) -> None:
    """Write both sides, from exact sums.

    Args:
        labels: as in `Sides`.
        sums: as `storage.records.PartSums.brightness`, over all rows.
        pixels: of an image.
    """
    rows = [int(count) for count in labels.sum(axis=1)]
    values = [_moments(count, *of_side, pixels) for count, of_side in zip(rows, sums, strict=True)]
    mean, variance = np.array(values, np.float64).T
    arrays.write(file, {"labels": labels, "mean": mean.copy(), "variance": variance.copy()})


def read(file: Path) -> Sides | None:
    """Read what `write` wrote; None if a side is empty.

    Raises:
        DamagedEntry: the file does not hold it.
    """
    values = arrays.read(file, _EXPECTED)
    rows = values["labels"].sum(axis=1).tolist()
    if not all(rows):
        return None
    fitted, held = (
        Sample(count, float(mean), float(variance))
        for count, mean, variance in zip(rows, values["mean"], values["variance"], strict=True)
    )
    return Sides(values["labels"], (fitted, held))


def _moments(rows: int, total: int, squares: int, pixels: int) -> tuple[float, float]:
    """Return mean and variance of the mean pixel; Python divides integers of any size and rounds once."""
    if not rows:
        return 0.0, 0.0
    return total / (rows * pixels), (rows * squares - total * total) / (rows * rows * pixels * pixels)
