"""Read the training split once: its labels, digests and statistics, and small images to fit a network to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from storage.formats import parquet, split_rows
from storage.records import FolderEntry, Split
from storage.runtime import cancellation
from storage.runtime.prefetch import prefetch
from tasks.auditing.cells import grid
from tasks.model.scaling import Statistics

FITTED_SIDE = 32
"""The most pixels of a side of the images that the network is fitted to; larger images are shrunk to that."""


@dataclass(frozen=True)
class Survey:
    """What the audit needs to know about a training split: 9 bytes for each row."""

    split: Split
    """The rows of the split, with images of at most `FITTED_SIDE` pixels a side."""
    labels: np.ndarray
    """uint8 of shape (rows,)."""
    digests: np.ndarray
    """int64 of shape (rows,), of the images in their own size; see `digests`."""
    statistics: Statistics
    """Of the pixels of `split`. The standard deviation is 0 if all have one value."""


def surveyed(train: Split, folder: Path) -> Survey:
    """Read `train` once. Images above `FITTED_SIDE` are written into `folder`, shrunk.

    Raises:
        DamagedEntry: the split cannot be read.
        OSError: there is no space for the shrunk images.
        Cancelled: the run is being ended.
    """
    hashes = bytearray()

    def hashed() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with closing(prefetch(split_rows.blocks(train))) as blocks:
            for images, labels in blocks:
                cancellation.check()
                hashes.extend(digests(images).tobytes())
                yield images, labels

    cells = grid(train.image_shape, FITTED_SIDE)
    if cells.shape == train.image_shape:
        split, statistics = train, _statistics(hashed(), math.prod(train.image_shape))
    else:
        split = replace(train, entry=FolderEntry(folder), image_shape=cells.shape, parts=0)
        # As many names as there are label values: the writer wants names, and nobody reads them.
        with parquet.Writer(split.file, cells.shape, tuple(map(str, range(256)))) as writer:
            for images, labels in hashed():
                writer.write(np.rint(cells.means(images)).astype(np.uint8), labels)
            writer.close({"image_shape": cells.shape, "rows": train.rows})
        statistics = _statistics(split_rows.blocks(split), math.prod(cells.shape))
    return Survey(split, split_rows.labels(train), np.frombuffer(hashes, np.int64), statistics)


def digests(images: np.ndarray) -> np.ndarray:
    """Return the digest of each image, int64 of shape (n,), for uint8 images (n, height, width): BLAKE2b, 64 bits.

    Of a million images, two different ones have the same digest with a probability of 3 in a hundred million.
    """
    rows = images.reshape(len(images), -1)
    hashes = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return np.frombuffer(hashes, np.int64)


def _statistics(blocks: Iterator[tuple[np.ndarray, np.ndarray]], pixels: int) -> Statistics:
    """Return mean and standard deviation of the pixels, scaled as `((x / 255) - 0.5) * 2`. The sums are exact."""
    sums, squares, rows = np.zeros(pixels, np.int64), 0, 0
    for images, _ in blocks:
        flat = images.reshape(len(images), -1)
        sums += flat.sum(axis=0, dtype=np.int64)
        squares += int(np.square(flat, dtype=np.uint16).sum(dtype=np.int64))
        rows += len(images)
    count, total = rows * pixels, int(sums.sum())
    return Statistics(2 * sums / (255 * rows) - 1, 2 / 255 * math.sqrt((count * squares - total * total) / count**2))
