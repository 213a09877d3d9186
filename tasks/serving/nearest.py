"""The training images nearest to an image: an exact search over as many rows as fit into a bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from storage.formats import split_rows
from storage.records import Split

MAX_BYTES = 1 << 26
"""Of the pixels that are kept: 67 MB, which holds all of MNIST's training split."""
_AT_ONCE = 4096
"""Rows that are compared at a time."""


@dataclass(frozen=True)
class Near:
    """A training image near another one."""

    row: int
    """Its position in the training split, from 0."""
    label: int
    distance: float
    """Euclidean distance of the pixels, 0-255 each."""
    image: np.ndarray
    """uint8 of shape (height, width)."""


@dataclass(frozen=True)
class TrainingRows:
    """Training images in memory."""

    images: np.ndarray
    """uint8 of shape (n, height, width)."""
    labels: np.ndarray
    """uint8 of shape (n,)."""
    rows: np.ndarray
    """Positions in the training split, int64 of shape (n,), ascending."""
    total: int
    """Rows of the training split, of which these are all, or blocks at even distances."""

    def nearest(self, image: np.ndarray, count: int) -> list[Near]:
        """Return the nearest images, the nearest one first; of two at the same distance, the earlier row.

        Exact: squared distances of bytes are whole numbers, which float64 represents up to 2**53.

        Args:
            image: uint8 of shape (height, width).
            count: how many.
        """
        asked = image.reshape(-1).astype(np.float64)
        squares = np.concatenate([_squares(block, asked) for block in _blocks(self.images)])
        order = np.argsort(squares, kind="stable")[:count]
        return [Near(int(self.rows[n]), int(self.labels[n]), float(np.sqrt(squares[n])), self.images[n]) for n in order]


def read(split: Split, most_bytes: int = MAX_BYTES) -> TrainingRows:
    """Return the rows of a split; if they take more than `most_bytes`, blocks at even distances over the whole split.

    Raises:
        DamagedEntry: the split cannot be read.
    """
    images, labels, rows = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for start, pixels, classes in _read(split, most_bytes):
        images.append(pixels)
        labels.append(classes)
        rows.append(np.arange(start, start + len(pixels)))
    return TrainingRows(np.concatenate(images), np.concatenate(labels), np.concatenate(rows), split.rows)


def _read(split: Split, most_bytes: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the first row, the images and the labels of each block."""
    start, room, first = 0, most_bytes, next(split_rows.blocks(split))
    step = _step(split.rows, first[0], most_bytes)
    if step == 1:
        for images, labels in split_rows.blocks(split):
            yield start, images, labels
            start += len(images)
        return
    for start in range(0, split.rows, step * len(first[0])):
        images, labels = next(split_rows.blocks(split, start))
        count = min(len(images), max(1, room // images[0].nbytes))
        yield start, images[:count], labels[:count]
        room -= count * images[0].nbytes
        if room <= 0:
            return


def _step(rows: int, block: np.ndarray, most_bytes: int) -> int:
    """Return which blocks are read: 1 for all, 2 for every second one, and so on."""
    return max(1, -(-rows * int(block[0].nbytes) // most_bytes))


def _blocks(images: np.ndarray) -> Iterator[np.ndarray]:
    flat = images.reshape(len(images), -1)
    for start in range(0, len(flat), _AT_ONCE):
        yield flat[start : start + _AT_ONCE]


def _squares(block: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the squared distance of each row: |x|² - 2xy + |y|²."""
    values = block.astype(np.float64)
    found: np.ndarray = np.einsum("ij,ij->i", values, values) - 2 * (values @ asked) + asked @ asked
    return found
