"""Find the test images that are in the training split, equal or almost: a test of those measures memory.

The distance of two images is the square root of the sum of their squared pixel differences, divided by the contrast of
the test image: the same root for its differences from its own mean. So it depends neither on the size of the images nor
on whether what is drawn is bright or dark. 0 are equal images; 1 is as far as a blank image.

The search is exact: a grid of cell means gives a lower bound of the distance, and only pairs below the limit by that
bound are compared pixel by pixel. The bound: by Cauchy and Schwarz, the squared differences within a cell sum up to at
least the squared difference of its means times its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from storage.formats import split_rows
from storage.records import Split
from storage.runtime import cancellation
from storage.runtime.prefetch import prefetch
from tasks.auditing.cells import Cells, grid
from tasks.auditing.survey import digests
from tasks.auditing.tables import NearDuplicates

NEAR = 0.125
"""The largest distance of near-duplicates.

The nearest different images of the two splits of MNIST are 0.139 apart, of digits 0.188: pairs of plain strokes. An
image of MNIST that is saved as JPEG of quality 75 is 0.07 from itself, at most 0.11; one that is a tenth darker 0.11.
Shifted by a pixel it is 0.66 away, and is not found.
"""
PAIRS_AT_MOST = 1 << 36
"""The most pairs of a test and a training image to compare, minutes of work; with more, a sample of test images is."""
CELLS = 8
"""The most cells of a side of the grid for the lower bound."""

_ROUNDING = 4 * CELLS**2 * np.finfo(np.float32).eps
"""Relative rounding error that a sum of so many products in float32 does not exceed; bounds are lowered by it."""
_TEST_BYTES = 1 << 26
"""Pixels of test images in memory; the training split is read once for as many."""
_TEST_ROWS, _TILE_BYTES = 512, 1 << 25
"""Test images compared with a block of training images at a time, and memory for the pixels of each side."""


@dataclass(frozen=True)
class Search:
    """The near-duplicates found, and how much was compared."""

    found: NearDuplicates
    compared: int
    """Number of test images that were compared, or found to be equal to a training image."""


@dataclass
class _Nearest:
    """The nearest training row so far of each of some test rows, of those within the limit."""

    rows: np.ndarray
    """The test rows."""
    images: np.ndarray
    """uint8, shape (n, height, width)."""
    contrast: np.ndarray
    """float64, shape (n,): squared, see the module."""
    squared: np.ndarray
    """float64, shape (n,): the squared distance of the nearest; at first, the limit, which counts as not found."""
    train_row: np.ndarray
    """int64, shape (n,); -1: none within the limit."""


def search(
    train: Split, test: Split, train_digests: np.ndarray, show: Callable[[int, int], None], pairs: int = PAIRS_AT_MOST
) -> Search:
    """Return each test image that is in the training split, equal or within `NEAR`, with the nearest training image.

    The work grows with test rows times training rows. Memory: about 30 bytes for each row of both splits, and a
    fixed amount.

    Args:
        train_digests: of the training images, see `survey.digests`.
        show: called with the pairs compared and in total.
        pairs: if there are more, only as many test images, evenly spaced, are compared with all training images. Equal
            images are always found.

    Raises:
        DamagedEntry: a split cannot be read.
        Cancelled: the run is being ended.
    """
    equal = _equal(test, train_digests)
    others = np.flatnonzero(equal < 0)
    most = max(1, pairs // train.rows)
    if len(others) > most:
        others = others[np.arange(most) * len(others) // most]
    known = np.flatnonzero(equal >= 0)
    parts = [(known, equal[known], np.zeros(len(known)))]
    total, done = len(others) * train.rows, 0
    for nearest in _batches(test, others):

        def shown(train_rows: int, nearest: _Nearest = nearest, done: int = done) -> None:
            show(done + len(nearest.rows) * train_rows, total)

        _compare(nearest, train, shown)
        done += len(nearest.rows) * train.rows
        hits = np.flatnonzero(nearest.train_row >= 0)
        distance = np.sqrt(nearest.squared[hits] / nearest.contrast[hits])
        parts.append((nearest.rows[hits], nearest.train_row[hits], distance))
    test_row, train_row, distance = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((test_row, distance))
    test_row, train_row = test_row[order], train_row[order]
    labels = split_rows.labels(test)[test_row], split_rows.labels(train)[train_row]
    found = NearDuplicates(test_row, train_row, distance[order].astype(np.float32), *labels)
    return Search(found, len(known) + len(others))


def _equal(test: Split, train_digests: np.ndarray) -> np.ndarray:
    """Return the first training row with the same image for each test row, int64 of shape (rows,); -1: none."""
    order = np.argsort(train_digests, kind="stable")
    ordered = train_digests[order]
    parts = [np.empty(0, np.int64)]
    for images, _ in _blocks(test):
        wanted = digests(images)
        place = np.searchsorted(ordered, wanted).clip(max=len(ordered) - 1)
        parts.append(np.where(ordered[place] == wanted, order[place], -1))
    return np.concatenate(parts)


def _batches(test: Split, rows: np.ndarray) -> Iterator[_Nearest]:
    """Yield the test images of `rows`, as many at a time as memory allows."""
    most = max(1, _TEST_BYTES // math.prod(test.image_shape))
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    first = count = 0
    for images, _ in _blocks(test):
        here = rows[(rows >= first) & (rows < first + len(images))]
        waiting.append((here, images[here - first]))
        count, first = count + len(here), first + len(images)
        if count >= most or first == test.rows:
            if count:
                yield _begun(*(np.concatenate(part) for part in zip(*waiting, strict=True)))
            waiting, count = [], 0


def _begun(rows: np.ndarray, images: np.ndarray) -> _Nearest:
    flat = images.reshape(len(images), -1)
    sums = flat.sum(axis=1, dtype=np.int64)
    squares = np.array([int(np.square(image, dtype=np.uint16).sum(dtype=np.int64)) for image in flat])
    contrast = squares - sums / flat.shape[1] * sums
    return _Nearest(rows, images, contrast, np.nextafter(NEAR**2 * contrast, np.inf), np.full(len(rows), -1))


def _compare(nearest: _Nearest, train: Split, show: Callable[[int], None]) -> None:
    """Compare the test images with all training images."""
    cells = grid(train.image_shape, CELLS)
    ours = _vectors(cells, nearest.images)
    first = 0
    with threadpool_limits(1, "blas"):
        for images, _ in _blocks(train):
            theirs = _vectors(cells, images)
            sizes = np.square(theirs).sum(axis=1)
            for start in range(0, len(ours), _TEST_ROWS):
                part = slice(start, start + _TEST_ROWS)
                limit = np.nextafter(nearest.squared[part].astype(np.float32), np.float32(np.inf))
                near = _bound(ours[part], theirs, sizes) < limit[:, None]
                if near.any():
                    rows, columns = (np.flatnonzero(near.any(axis=axis)) for axis in (1, 0))
                    _refine(nearest, start + rows, images, columns, first)
            first += len(images)
            show(first)


def _vectors(cells: Cells, images: np.ndarray) -> np.ndarray:
    """Return cell means such that their squared distance is at most that of the images: float32 of shape (n, cells)."""
    vectors: np.ndarray = (cells.means(images) - 127.5) * np.sqrt(cells.areas)
    return vectors.astype(np.float32)


def _bound(ours: np.ndarray, theirs: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return a lower bound of the squared distances of all pairs, float32 of shape (len(ours), len(theirs))."""
    own = np.square(ours).sum(axis=1, keepdims=True)
    bound: np.ndarray = (-2 * ours) @ theirs.T
    bound += own * np.float32(1 - _ROUNDING)
    bound += sizes * np.float32(1 - _ROUNDING)
    return bound


def _refine(nearest: _Nearest, rows: np.ndarray, images: np.ndarray, columns: np.ndarray, first: int) -> None:
    """Compare the test images `rows` with the training images `columns` of a block pixel by pixel.

    Args:
        first: the row of the first image of the block.
    """
    # Products and sums of whole numbers are exact in float64.
    at_once = max(1, _TILE_BYTES // (8 * math.prod(images.shape[1:])))
    for start in range(0, len(columns), at_once):
        those = columns[start : start + at_once]
        theirs = images[those].reshape(len(those), -1).astype(np.float64)
        sizes = np.square(theirs).sum(axis=1)
        for begin in range(0, len(rows), at_once):
            cancellation.check()
            these = rows[begin : begin + at_once]
            ours = nearest.images[these].reshape(len(these), -1).astype(np.float64)
            squared = np.square(ours).sum(axis=1, keepdims=True) - 2 * (ours @ theirs.T) + sizes
            best = squared.argmin(axis=1)
            distance = squared[np.arange(len(these)), best]
            # Not if it is as near as an earlier one: of several, the first is named.
            better = distance < nearest.squared[these]
            nearest.squared[these[better]] = distance[better]
            nearest.train_row[these[better]] = first + those[best[better]]


def _blocks(split: Split) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with closing(prefetch(split_rows.blocks(split))) as blocks:
        for block in blocks:
            cancellation.check()
            yield block
