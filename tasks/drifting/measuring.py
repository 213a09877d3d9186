"""Measure each image: what the tests of drift compare instead of 784 pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tasks.slicing.measures import contrasts, roughness, slants

MEASURES = {
    "ink": "mean pixel value",
    "contrast": "standard deviation of the pixel values",
    "darkest": "lowest pixel value, in steps of 16",
    "brightest": "highest pixel value, in steps of 16",
    "roughness": "mean difference between neighbouring pixels",
    "slant": "how far the ink leans, in degrees",
    "distance": "root mean square difference from the nearest mean image of a class",
}
"""The measures of an image, and what they are."""

STEP = 16
"""Grey levels that count as one, where all images have the same value: a change by one level is no drift."""
_SIDE = 14
"""The most pixels a side of a reduced image: strokes are some pixels wide, and 28 pixels are a common size."""
_PIECE_PIXELS = 1 << 20
"""How many pixels are converted to float32 at a time: 4 MB."""


@dataclass(frozen=True)
class Measured:
    """The measures of some images."""

    values: dict[str, np.ndarray]
    """By the names of `MEASURES`, float64 of shape (n,); NaN where an image has no such measure."""
    reduced: np.ndarray
    """float32, shape (n, pixels), 0-255: the images, reduced to at most 14 pixels a side."""


def measured(images: np.ndarray, means: np.ndarray, own: tuple[np.ndarray, np.ndarray] | None = None) -> Measured:
    """Measure images.

    Args:
        images: uint8, shape (n, height, width).
        means: the mean images of the classes, float32 of shape (classes, height × width).
        own: if the means are of these images: the place in `means` of each, and the number of images behind each mean.
            An image is then left out of its own mean, which it would pull towards itself.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in MEASURES}
    reduced, start = [np.empty((0, math.prod(_shape(images))), np.float32)], 0
    for piece in _pieces(images):
        pixels = piece.astype(np.float32)
        flat = pixels.reshape(len(piece), -1)
        found["ink"].append(flat.mean(axis=1, dtype=np.float64))
        found["contrast"].append(contrasts(piece))
        found["darkest"].append(coarse(flat.min(axis=1)).astype(np.float64))
        found["brightest"].append(coarse(flat.max(axis=1)).astype(np.float64))
        found["roughness"].append(roughness(pixels))
        found["slant"].append(slants(piece))
        here = own and (own[0][start : start + len(piece)], own[1])
        found["distance"].append(_distance(flat, means, here))
        reduced.append(_reduced(pixels))
        start += len(piece)
    return Measured(
        {name: np.concatenate([np.empty(0), *values]) for name, values in found.items()}, np.concatenate(reduced)
    )


def class_means(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return the mean images of the classes that occur, float32 of shape (classes, pixels), and `own` of `measured`."""
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), math.prod(images.shape[1:])))
    start = 0
    for piece in _pieces(images):
        member = (places[start : start + len(piece)] == np.arange(len(counts))[:, None]).astype(np.float32)
        sums += member @ piece.reshape(len(piece), -1).astype(np.float32)
        start += len(piece)
    return (sums / counts[:, None]).astype(np.float32), (places, counts)


def coarse(values: np.ndarray) -> np.ndarray:
    """Return pixel values in steps of 16, of the same type and shape."""
    steps: np.ndarray = np.floor(values / STEP) * STEP
    return steps


def _pieces(images: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(1, _PIECE_PIXELS // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), rows):
        yield images[start : start + rows]


def _distance(flat: np.ndarray, means: np.ndarray, own: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    if not len(means):
        return np.full(len(flat), np.nan)
    squares = (flat**2).sum(axis=1)[:, None] - 2 * flat @ means.T + (means**2).sum(axis=1)
    if own is not None:
        # Without x, the mean of the n images of its class is n / (n - 1) times as far from x.
        places, counts = own
        rows = np.arange(len(flat))
        alone = counts[places] < 2
        squares[rows, places] *= np.where(alone, np.inf, (counts / np.maximum(counts - 1, 1))[places] ** 2)
    nearest: np.ndarray = np.sqrt(np.maximum(squares.min(axis=1), 0) / flat.shape[1]).astype(np.float64)
    return np.where(np.isfinite(nearest), nearest, np.nan)


def _shape(images: np.ndarray) -> tuple[int, int]:
    height, width = images.shape[1:]
    return -(-height // _step(height)), -(-width // _step(width))


def _step(side: int) -> int:
    return max(1, -(-side // _SIDE))


def _reduced(pixels: np.ndarray) -> np.ndarray:
    """Return the means of squares of pixels, float32 of shape (n, squares)."""
    for axis in (1, 2):
        side = pixels.shape[axis]
        starts = np.arange(0, side, _step(side))
        sizes = np.diff([*starts, side]).astype(np.float32)
        pixels = np.add.reduceat(pixels, starts, axis=axis) / np.expand_dims(sizes, (0, 3 - axis))
    return pixels.reshape(len(pixels), -1).astype(np.float32, copy=False)
