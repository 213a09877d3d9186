"""Exact sums of pixels, from which the statistics of the training images are made: whole numbers, so any order does."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tasks.model.scaling import Statistics


@dataclass(frozen=True)
class PixelSums:
    """Sums over rows of images."""

    rows: int
    pixels: np.ndarray
    """int64, shape (pixels,): the sum of each pixel, of 0-255."""
    squares: int
    """The sum of the squares of all pixels of all rows."""
    pixel_range: tuple[int, int] = (255, 0)
    """The darkest and the brightest pixel, 0-255; (255, 0) if there are no rows."""

    @staticmethod
    def none(pixels: int) -> PixelSums:
        """Return the sums of no rows."""
        return PixelSums(0, np.zeros(pixels, np.int64), 0)

    @staticmethod
    def of(pixels: np.ndarray) -> PixelSums:
        """Return the sums of images, uint8 of shape (rows, pixels)."""
        # 255 squared fits in 16 bits.
        squares = int(np.square(pixels, dtype=np.uint16).sum(dtype=np.int64))
        extremes = (int(pixels.min(initial=255)), int(pixels.max(initial=0)))
        return PixelSums(len(pixels), pixels.sum(axis=0, dtype=np.int64), squares, extremes)

    def __add__(self, other: PixelSums) -> PixelSums:
        (darkest, brightest), (dark, bright) = self.pixel_range, other.pixel_range
        return PixelSums(
            self.rows + other.rows,
            self.pixels + other.pixels,
            self.squares + other.squares,
            (min(darkest, dark), max(brightest, bright)),
        )

    def statistics(self) -> Statistics:
        """Return mean and standard deviation of the rows, at least one, scaled as `((x / 255) - 0.5) * 2`.

        The standard deviation is over all pixels of all rows around their overall mean, like `numpy.std` of the whole
        array.
        """
        count, total = self.rows * len(self.pixels), int(self.pixels.sum())
        # Python divides integers of any size and rounds to the nearest float64.
        variance = (count * self.squares - total * total) / (count * count)
        mean = 2 * self.pixels / (255 * self.rows) - 1
        return Statistics(mean, 2 / 255 * math.sqrt(variance), self.pixel_range)


def total(sums: Iterable[PixelSums], pixels: int) -> PixelSums:
    """Return the sum of `sums`, of images of `pixels` pixels."""
    return sum(sums, PixelSums.none(pixels))
