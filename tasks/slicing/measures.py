"""Measure images: how much ink they have, how far they lean and so on, and the mean image of each class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from tasks.slicing.columns import Column

Blocks = Iterable[tuple[np.ndarray, np.ndarray]]
"""As `storage.formats.parquet.blocks` yields them."""

_PIECE_PIXELS = 1 << 20
"""How many pixels are converted to float32 at a time: 4 MB."""


def measured(name: str, blocks: Blocks) -> Column:
    """Return a measure of each image, float64, in order; NaN where an image has none.

    Args:
        name: one of `MEASURES`.
        blocks: of a split.
    """
    measure = MEASURES[name]
    return Column((measure(piece) for images, _ in blocks for piece in _pieces(images)), np.float64)


def class_means(blocks: Blocks, classes: int) -> dict[int, np.ndarray]:
    """Return the mean image of each class that has images, float64 of shape (height, width), by label.

    Args:
        blocks: of a split.
        classes: labels from this number on are left out.
    """
    sums: dict[int, np.ndarray] = {}
    counts = np.zeros(256, np.int64)
    for images, labels in blocks:
        counts += np.bincount(labels, minlength=256)
        for label in np.unique(labels[labels < classes]).tolist():
            # Integers do not overflow: a row group has at most a few thousand rows of at most 255.
            here = np.add.reduce(images[labels == label], axis=0, dtype=np.uint32)
            sums[label] = sums.get(label, 0) + here.astype(np.int64)
    return {label: sums[label] / counts[label] for label in sorted(sums)}


def _pieces(images: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(1, _PIECE_PIXELS // max(images[0].size, 1)) if len(images) else 1
    for start in range(0, len(images), rows):
        yield images[start : start + rows]


def inks(images: np.ndarray) -> np.ndarray:
    """Return the mean pixel value of each of `images`, shape (n, height, width), float64 of shape (n,)."""
    means: np.ndarray = images.mean(axis=(1, 2), dtype=np.float64)
    return means


def contrasts(images: np.ndarray) -> np.ndarray:
    """Return the standard deviation of the pixel values of each of `images`, as `inks` does."""
    deviations: np.ndarray = images.std(axis=(1, 2), dtype=np.float64)
    return deviations


def roughness(images: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference between pixels side by side, and one above the other, as `inks` does."""
    pixels = images.astype(np.float32, copy=False)
    steps = [np.abs(np.diff(pixels, axis=axis)).reshape(len(pixels), -1) for axis in (1, 2)]
    count = sum(step.shape[1] for step in steps)
    total: np.ndarray = sum((step.sum(axis=1, dtype=np.float64) for step in steps), np.zeros(len(pixels)))
    return total / max(1, count)


def slants(images: np.ndarray) -> np.ndarray:
    """Return how far each of `images` (uint8, shape (n, height, width)) leans, in degrees, float64 of shape (n,).

    The slope of the ink is the ratio of central moments mu11 / mu02, used to deskew handwriting; the angle is its
    arctangent, with the sign reversed because rows count downwards. NaN if there is no ink, or all of it is in one row.

    Source: M.-K. Hu 1962, IRE Transactions on Information Theory 8, 179-187 (moments of images).
    """
    pixels = images.astype(np.float32)
    _, height, width = images.shape
    x, y = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)
    by_row = pixels.sum(axis=2, dtype=np.float64)
    first = (pixels @ x.astype(np.float32)).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = by_row.sum(axis=1)
        middle_x, middle_y = first.sum(axis=1) / total, by_row @ y / total
        away = y[None, :] - middle_y[:, None]
        mu11 = (away * (first - middle_x[:, None] * by_row)).sum(axis=1)
        mu02 = (away**2 * by_row).sum(axis=1)
        degrees: np.ndarray = np.where(mu02 > 1e-9 * total, -np.degrees(np.arctan(mu11 / mu02)), np.nan)
    return degrees


MEASURES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "ink": inks,
    "contrast": contrasts,
    "roughness": roughness,
    "slant": slants,
}
"""What `[slices]` of a manifest can divide images by (`storage.datasets.manifest.MEASURES`), each as `inks` does."""
