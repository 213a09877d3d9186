"""Shrink images to a few cells, each the mean of its pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cells:
    """A grid over images of one size. Its cells have as equal heights and widths as whole pixels allow."""

    image_shape: tuple[int, int]
    shape: tuple[int, int]
    """Rows and columns of cells."""

    @property
    def areas(self) -> np.ndarray:
        """Pixels of each cell, int64 of shape (cells,), in row-major order."""
        heights, widths = (
            np.diff(_edges(pixels, cells), append=pixels)
            for pixels, cells in zip(self.image_shape, self.shape, strict=True)
        )
        return np.multiply.outer(heights, widths).ravel()

    def means(self, images: np.ndarray) -> np.ndarray:
        """Return the mean of each cell, float64 of shape (n, cells), 0-255, for uint8 images (n, height, width)."""
        sums = images
        for axis, (pixels, cells) in enumerate(zip(self.image_shape, self.shape, strict=True), start=1):
            sums = np.add.reduceat(sums, _edges(pixels, cells), axis=axis, dtype=np.int64)
        means: np.ndarray = sums.reshape(len(images), math.prod(self.shape)) / self.areas
        return means


def grid(image_shape: tuple[int, int], most: int) -> Cells:
    """Return a grid of at most `most` by `most` cells; smaller images have a cell for each pixel."""
    height, width = image_shape
    return Cells(image_shape, (min(height, most), min(width, most)))


def _edges(pixels: int, cells: int) -> np.ndarray:
    """Return the first pixel of each cell."""
    return np.arange(cells) * pixels // cells
