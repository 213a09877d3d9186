"""The rows that a training passes over: all in memory or, if they exceed the memory budget, in shards.

Every epoch passes over all fitted rows in a random order. In memory, all orders are equally likely. In shards, each row
is assigned to a shard once, uniformly and independently of its place in the split; each epoch draws the order of the
shards and the order of the rows in each. So any single epoch is as random as in memory, even if the split is sorted by
class; only the assignment to shards stays the same. `benchmarks/shuffling.py` measures the effect.
"""

from __future__ import annotations

import errno
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from storage.datasets.training import TrainingConfig
from storage.errors import TrainingFailed
from storage.formats import split_rows
from storage.records import Split
from storage.runtime.prefetch import prefetch
from tasks.model import network
from tasks.ui.progress import Progress, advance

SCORED_AT_ONCE = 2048
"""Rows per call when scoring; bounds the memory for activations."""

_COPIES = 4
"""Copies of a shard's pixels in memory: the current shard, the next as read and as a tensor, and working space."""
_PROGRESS_SECONDS = 0.2


@dataclass(frozen=True)
class Window:
    """Rows in memory at the same time, and the order to pass over them."""

    images: Any
    """Tensor, uint8 of shape (n, pixels), 0-255."""
    labels: Any
    """Tensor, int32 of shape (n,)."""
    order: np.ndarray
    """int32, shape (rows to pass over,): indices into `images` and `labels`."""


class Rows(Protocol):
    """The rows of a training split: the fitted ones, then those held out."""

    @property
    def lengths(self) -> set[int]:
        """How many rows a window passes over: one number, or two if the last shard is shorter."""

    def windows(self, epoch: int) -> Iterator[Window]:
        """Yield all fitted rows in the order of epoch `epoch` (from 1), in as few windows as memory allows.

        The order depends only on the seed and the epoch, so a resumed training gives the same result as an
        uninterrupted one. All windows but one have a multiple of the batch size.
        """

    def pieces(self, start: int, stop: int) -> Iterator[tuple[Any, Any]]:
        """Yield the rows from `start` up to, not including, `stop`, as tensors like those of `Window`."""


@contextmanager
def opened(dataset: str, split: Split, config: TrainingConfig, held: np.ndarray, folder: Path) -> Iterator[Rows]:
    """Open the rows of `split` for training, for the duration of the block.

    Args:
        held: whether each row is held out, bool of shape (rows,); an epoch passes over the others.
        folder: for an unnamed temporary file of the pixels, if they do not fit in memory.

    Raises:
        TrainingFailed: not even one batch fits in the memory allowed.
        DamagedEntry: the split cannot be read.
        OSError: there is no space for the file.
    """
    fitted = split.rows - int(held.sum())
    size = rows_at_once(dataset, split, config, fitted)
    if size >= split.rows:
        yield InMemory(*_all(split, held), fitted, config.seed)
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        yield InShards(split, held, Shards(fitted, size, config.seed), file)


def rows_at_once(dataset: str, split: Split, config: TrainingConfig, fitted: int) -> int:
    """Return the maximum number of rows in a window: all of the split, or a multiple of the batch size.

    Raises:
        TrainingFailed: not even one batch fits in the memory allowed.
    """
    pixels = math.prod(split.image_shape)
    most = config.memory_bytes // (_COPIES * pixels)
    if split.rows <= most:
        return split.rows
    if most < config.batch_size:
        raise TrainingFailed(
            f"{dataset}: expected memory for a batch of {config.batch_size:,} images of {pixels:,} pixels; found "
            f"{config.memory}, enough for {most:,}; give more with --memory, or lower batch_size"
        )
    shards = math.ceil(fitted / (most - most % config.batch_size))
    return math.ceil(fitted / shards / config.batch_size) * config.batch_size


class InMemory:
    """All rows of a split, in memory.

    Args:
        images: uint8 of shape (rows, pixels), 0-255; held-out rows come last.
        labels: uint8 of shape (rows,).
        fitted: how many of the rows, from the first, an epoch passes over.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, fitted: int, seed: int) -> None:
        self._fitted, self._seed = fitted, seed
        self._images, self._labels = _tensors(images, labels)

    @property
    def lengths(self) -> set[int]:
        """How many rows a window passes over: see `Rows`."""
        return {self._fitted}

    def windows(self, epoch: int) -> Iterator[Window]:
        """Yield all fitted rows at once: see `Rows`."""
        yield Window(self._images, self._labels, row_order(self._seed, epoch, self._fitted))

    def pieces(self, start: int, stop: int) -> Iterator[tuple[Any, Any]]:
        """Yield rows in their order: see `Rows`."""
        for first in range(start, stop, SCORED_AT_ONCE):
            rows = slice(first, min(first + SCORED_AT_ONCE, stop))
            yield self._images[rows], self._labels[rows]


@dataclass(frozen=True)
class Shards:
    """The assignment of fitted rows to shards."""

    rows: int
    size: int
    """Rows of each shard but the last, which has the remaining rows."""
    seed: int

    @property
    def count(self) -> int:
        return math.ceil(self.rows / self.size)

    def length(self, shard: int) -> int:
        """Return the number of rows of a shard."""
        return min(self.size, self.rows - shard * self.size)

    def assigned(self) -> np.ndarray:
        """Return the shard of each row, int32 of shape (rows,); all assignments are equally likely."""
        # The fourth number keeps this stream separate from those of the initial weights.
        random = np.random.Generator(np.random.PCG64([self.seed, 0, 0, 1]))
        places = np.arange(self.rows, dtype=np.int32)
        random.shuffle(places)
        return places // np.int32(self.size)

    def order(self, epoch: int) -> list[int]:
        """Return the order of the shards in an epoch."""
        return [int(shard) for shard in row_order(self.seed, epoch, self.count)]

    def order_within(self, epoch: int, shard: int) -> np.ndarray:
        """Return the order of the rows of a shard in an epoch, int32."""
        # The third number keeps this stream separate from the order of the shards, which has none, or 0.
        random = np.random.Generator(np.random.PCG64([self.seed, epoch, 1 + shard]))
        return random.permutation(self.length(shard)).astype(np.int32)


class InShards:
    """The rows of a split in a file: the fitted rows, divided into shards, then the held-out rows.

    One shard is in memory while the next is prefetched.
    """

    def __init__(self, split: Split, held: np.ndarray, shards: Shards, file: IO[bytes]) -> None:
        self._split, self._shards, self._file = split, shards, file
        self._pixels = math.prod(split.image_shape)
        self._labels = np.empty(split.rows, np.uint8)
        self._deal(held)

    @property
    def lengths(self) -> set[int]:
        """How many rows a window passes over: see `Rows`."""
        return {self._shards.length(shard) for shard in range(self._shards.count)}

    def windows(self, epoch: int) -> Iterator[Window]:
        """Yield the shards one by one: see `Rows`."""
        yield from prefetch((self._window(epoch, shard) for shard in self._shards.order(epoch)), most=1)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[Any, Any]]:
        """Yield rows in the order of the file: see `Rows`."""
        firsts = range(start, stop, SCORED_AT_ONCE)
        yield from prefetch(_tensors(*self._read(first, min(first + SCORED_AT_ONCE, stop))) for first in firsts)

    def _deal(self, held: np.ndarray) -> None:
        """Write each row into its shard; the held-out rows form one more shard after the others."""
        count, size = self._shards.count, self._shards.size
        places = np.full(self._split.rows, count, np.int32)
        places[~held] = self._shards.assigned()
        filled = np.append(np.arange(count) * size, self._shards.rows)
        rows_read, reported = 0, -math.inf
        for images, labels in prefetch(split_rows.blocks(self._split)):
            here = places[rows_read : rows_read + len(labels)]
            by_place = np.argsort(here, kind="stable")
            ends = np.cumsum(np.bincount(here, minlength=count + 1))
            for place, rows in enumerate(np.split(by_place, ends[:-1])):
                self._write(int(filled[place]), images[rows], labels[rows])
                filled[place] += len(rows)
            rows_read += len(here)
            if time.monotonic() - reported >= _PROGRESS_SECONDS or rows_read == self._split.rows:
                reported = time.monotonic()
                advance(Progress("shuffle", rows_read, self._split.rows, "rows"))

    def _write(self, place: int, images: np.ndarray, labels: np.ndarray) -> None:
        self._labels[place : place + len(labels)] = labels
        self._file.seek(place * self._pixels)
        self._file.write(np.ascontiguousarray(images).data)

    def _window(self, epoch: int, shard: int) -> Window:
        start = shard * self._shards.size
        tensors = _tensors(*self._read(start, start + self._shards.length(shard)))
        return Window(*tensors, self._shards.order_within(epoch, shard))

    def _read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        images = np.empty((stop - start, self._pixels), np.uint8)
        self._file.seek(start * self._pixels)
        if self._file.readinto(images.data) != images.nbytes:  # type: ignore[attr-defined]
            raise OSError(errno.EIO, f"rows of {images.nbytes:,} bytes have fewer", "the file of shards")
        return images, self._labels[start:stop]


def _all(split: Split, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((split.rows, math.prod(split.image_shape)), np.uint8)
    labels = np.empty(split.rows, np.uint8)
    start, filled = 0, [0, split.rows - int(held.sum())]
    for image_block, label_block in prefetch(split_rows.blocks(split)):
        here = held[start : start + len(label_block)]
        for side, chosen in enumerate((~here, here)):
            rows = slice(filled[side], filled[side] + int(chosen.sum()))
            images[rows] = image_block.reshape(len(label_block), -1)[chosen]
            labels[rows] = label_block[chosen]
            filled[side] = rows.stop
        start += len(label_block)
    return images, labels


def row_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """Return the order in which epoch `epoch` (from 1) takes `rows` rows: int32 of shape (rows,)."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows).astype(np.int32)


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    tf = network.tensorflow()
    return tf.constant(images), tf.constant(labels, tf.int32)
