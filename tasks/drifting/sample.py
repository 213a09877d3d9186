"""Draw a bounded sample of images from a stream of any length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

Blocks = Iterable[tuple[np.ndarray, np.ndarray | None]]
"""Images, uint8 of shape (n, height, width), with their classes, integers of shape (n,); None if they are unknown."""

MAX_ROWS = 20_000
"""The most images that are compared: more would hardly change a verdict, whose limits are sizes of effect."""
_MAX_BYTES = 1 << 26
_SEED = 20_001


@dataclass(frozen=True)
class Sample:
    """Some images of a source, each as likely to be among them as any other."""

    images: np.ndarray
    """uint8, shape (n, height, width), in the order of the source."""
    labels: np.ndarray | None
    """int64, shape (n,): the class of each; None if any is unknown."""
    rows: np.ndarray
    """int64, shape (n,): the place of each in the source, from 0."""
    total: int
    """The number of images in the source."""

    def __len__(self) -> int:
        return len(self.images)


def draw(blocks: Blocks, most: int = MAX_ROWS) -> Sample:
    """Draw at most `most` images, and at most 64 MB of them, in one pass; the same ones from the same source.

    Source: J. S. Vitter 1985, ACM Transactions on Mathematical Software 11, 37-57 (algorithm R).
    """
    generator = np.random.default_rng(_SEED)
    kept, rows, labels, total, is_labelled = _Kept(), np.empty(0, np.int64), np.empty(0, np.int64), 0, True
    for images, classes in blocks:
        size = _size(images, most)
        is_labelled &= classes is not None
        for first, piece, named in _pieces(images, classes, max(0, size - total)):
            places = _places(generator, total + first, len(piece), size)
            rows, labels = _put(rows, labels, places, (total + first, named))
            kept.put(piece, places, size)
        total += len(images)
    order = np.argsort(rows)
    return Sample(kept.images[order], labels[order] if is_labelled and total else None, rows[order], total)


def _size(images: np.ndarray, most: int) -> int:
    return max(1, min(most, _MAX_BYTES // max(1, images[0].nbytes if len(images) else 1)))


class _Kept:
    """The images that are kept so far."""

    def __init__(self) -> None:
        self._images: np.ndarray | None = None
        self._count = 0

    @property
    def images(self) -> np.ndarray:
        return np.empty((0, 1, 1), np.uint8) if self._images is None else self._images[: self._count]

    def put(self, images: np.ndarray, places: np.ndarray, size: int) -> None:
        """Keep images at their places; below 0: not at all."""
        if self._images is None:
            # Memory that is never written to is never taken.
            self._images = np.empty((size, *images.shape[1:]), np.uint8)
        wanted = places >= 0
        self._images[places[wanted]] = images[wanted]
        self._count = max(self._count, int(places.max(initial=-1)) + 1)


def _pieces(
    images: np.ndarray, classes: np.ndarray | None, room: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """Yield what fits into the room that is left, and the rest."""
    for start, stop in ((0, min(room, len(images))), (min(room, len(images)), len(images))):
        if stop > start:
            yield start, images[start:stop], None if classes is None else classes[start:stop]


def _places(generator: np.random.Generator, first: int, count: int, size: int) -> np.ndarray:
    """Return where to keep each of `count` images from number `first` on, int64 of shape (count,); -1: nowhere."""
    numbers = np.arange(first, first + count)
    if first + count <= size:
        return numbers
    # Image t takes the place of a random one with probability size / (t + 1).
    places = generator.integers(0, numbers + 1)
    return np.where(places < size, places, -1)


def _put(
    rows: np.ndarray, labels: np.ndarray, places: np.ndarray, new: tuple[int, np.ndarray | None]
) -> tuple[np.ndarray, np.ndarray]:
    first, named = new
    grown = max(len(rows), int(places.max(initial=-1)) + 1)
    rows, labels = (np.concatenate([old, np.zeros(grown - len(old), np.int64)]) for old in (rows, labels))
    wanted = np.flatnonzero(places >= 0)
    rows[places[wanted]] = first + wanted
    if named is not None:
        labels[places[wanted]] = named[wanted]
    return rows, labels
