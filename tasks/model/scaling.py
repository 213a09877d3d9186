"""Scale pixels with the statistics of the training images: the numbers, their file, and the arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.errors import DamagedEntry, made_again
from storage.formats import arrays


@dataclass(frozen=True)
class Statistics:
    """Mean of each pixel (float64, shape (pixels,), in [-1, 1]) and one standard deviation, of scaled pixels."""

    mean: np.ndarray
    std: float
    pixel_range: tuple[int, int] | None = None
    """The darkest and the brightest raw pixel, 0-255; None if not measured. Not saved in the file."""


def apply(images: np.ndarray, statistics: Statistics) -> np.ndarray:
    """Return `images` (uint8, shape (n, height, width)) scaled, centred and divided: float32, shape (n, pixels).

    Computes `(((x / 255) - 0.5) * 2 - mean) / std` as one multiplication and one addition (`scale_and_offset`), within
    1e-6 for a `std` typical of real images.
    """
    scale, offset = scale_and_offset(statistics)
    pixels: np.ndarray = np.multiply(images.reshape(len(images), -1), scale, dtype=np.float32)
    pixels += offset
    return pixels


def scale_and_offset(statistics: Statistics) -> tuple[np.float32, np.ndarray]:
    """Return the float32 factor and offsets that normalise a pixel of 0-255: `x * scale + offset[pixel]`."""
    return np.float32(2 / (255 * statistics.std)), ((-1 - statistics.mean) / statistics.std).astype(np.float32)


def read(file: Path, pixels: int) -> Statistics:
    """Read the statistics of images of `pixels` pixels.

    Raises:
        DamagedEntry: the file does not hold such statistics.
    """
    values = arrays.read(file, {"mean": (np.float64, (pixels,)), "std": (np.float64, ())})
    statistics = Statistics(values["mean"], float(values["std"]))
    if not np.isfinite(statistics.mean).all() or not 0 < statistics.std < math.inf:
        raise DamagedEntry(
            f"{file}: expected finite means and a standard deviation above 0; found others; {made_again(file)}"
        )
    return statistics


def write(file: Path, statistics: Statistics) -> str:
    """Write statistics and return the digest of the numbers; equal statistics give equal bytes."""
    values = {"mean": statistics.mean, "std": np.asarray(statistics.std, np.float64)}
    arrays.write(file, values)
    return arrays.digest(values)
