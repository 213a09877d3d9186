"""The rows that a training passes over: all in memory or, if they exceed the memory budget, in shards or by part.

Every epoch passes over all fitted rows in a random order. In memory, all orders are equally likely. In shards, each row
is assigned to a shard once, uniformly and independently of its place in the split; each epoch draws the order of the
shards and the order of the rows in each. So any single epoch is as random as in memory, even if the split is sorted by
class; only the assignment to shards stays the same. `benchmarks/shuffling.py` measures the effect.

The rows of a split in parts are not copied into shards: they may be more than a disk holds. Each epoch draws an order
of blocks of rows of all parts, reads them again, and shuffles the rows of a window. So windows are as random as shards
only if the rows of a block are like those of others; in a split sorted by class, they are not.
"""

from __future__ import annotations

import errno
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from storage.datasets.training import TrainingConfig
from storage.errors import TrainingFailed
from storage.formats import parquet, split_rows
from storage.formats.parquet import ROW_GROUP
from storage.objects.cache import cache_size
from storage.records import Split
from storage.runtime import memory
from storage.runtime.prefetch import prefetch
from storage.runtime.ranged import Ranged
from tasks.model import network
from tasks.ui.progress import Progress, advance

SCORED_AT_ONCE = 2048
"""Rows per call when scoring; bounds the memory for activations."""

_COPIES = 4
"""Copies of a shard's pixels in memory: the current shard, the next as read and as a tensor, and working space."""
_OPEN = 64
"""Files elsewhere of which the end, that describes the rest, is in memory."""
_SHARE_OF_CACHE = 0.5
"""The share of the cache that the parts of a split may take, to be fetched once instead of in each epoch."""
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
        """Yield the rows from `start` up to, not including, `stop`, in any order, as tensors like those of `Window`."""


class Held(Protocol):
    """Which rows of each part of a split are held out."""

    @property
    def rows(self) -> int:
        """How many, in all parts."""

    def rows_of(self, number: int, /) -> int:
        """Return how many rows of a part are held out."""

    def of(self, number: int, /) -> np.ndarray:
        """Return whether each row of a part is held out, bool of shape (rows of the part,)."""


@contextmanager
def opened(dataset: str, split: Split, config: TrainingConfig, held: np.ndarray | Held, folder: Path) -> Iterator[Rows]:
    """Open the rows of `split` for training, for the duration of the block.

    Args:
        held: whether each row is held out, bool of shape (rows,) or by part; an epoch passes over the others.
        folder: for an unnamed temporary file of the pixels, if they do not fit in memory.

    Raises:
        TrainingFailed: not even one batch fits in the memory allowed.
        DamagedEntry: the split cannot be read.
        OSError: there is no space for the file.
    """
    fitted = split.rows - (int(held.sum()) if isinstance(held, np.ndarray) else held.rows)
    size = rows_at_once(dataset, split, config, fitted)
    if size >= split.rows:
        every = held if isinstance(held, np.ndarray) else np.concatenate([*map(held.of, range(split.parts))])
        yield InMemory(*_all(split, every), fitted, config.seed)
        return
    if not isinstance(held, np.ndarray):
        yield InParts(Parts(tuple(split_rows.parts(split)), size, fitted, config.seed), held)
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
        for window in prefetch((self._window(epoch, shard) for shard in self._shards.order(epoch)), most=1):
            yield window
            memory.give_back()

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


@dataclass(frozen=True)
class Parts:
    """The order in which epochs pass over a split in parts."""

    parts: tuple[Split, ...]
    size: int
    """Rows of each window but the last, which has the remaining rows."""
    fitted: int
    seed: int
    block: int = ROW_GROUP
    """Rows of a part that are drawn and read together: a row group, as parts are written."""

    def order(self, epoch: int) -> Iterator[tuple[int, int]]:
        """Yield part and first row of all blocks of all parts, in the order of an epoch."""
        counts = [math.ceil(part.rows / self.block) for part in self.parts]
        firsts = np.cumsum([0, *counts])
        for block in row_order(self.seed, epoch, int(firsts[-1])):
            part = int(np.searchsorted(firsts, block, side="right")) - 1
            yield part, int(block - firsts[part]) * self.block

    def random(self, epoch: int) -> np.random.Generator:
        """Return the source of the orders of rows in the blocks and windows of an epoch, in their order."""
        # The third number keeps this stream separate from the order of the blocks, which has none, or 0.
        return np.random.Generator(np.random.PCG64([self.seed, epoch, 1]))


class InParts:
    """The rows of a split in parts, which each epoch reads again, in an order of blocks drawn from all parts.

    A window is in memory while the next is read. Held-out rows are among the others, so to score them takes another
    pass over the parts that have any.
    """

    def __init__(self, order: Parts, held: Held) -> None:
        self._order, self._held = order, held
        self._pixels = math.prod(order.parts[0].image_shape)
        self._source = lru_cache(_OPEN)(lambda number: order.parts[number].source)
        self._fetched = self._fit_in_cache()

    @property
    def lengths(self) -> set[int]:
        """How many rows a window passes over: see `Rows`."""
        size, fitted = self._order.size, self._order.fitted
        return {min(size, fitted), fitted % size or min(size, fitted)}

    def windows(self, epoch: int) -> Iterator[Window]:
        """Yield all fitted rows, in the order of an epoch: see `Rows`."""
        passed, fitted, reported = 0, self._order.fitted, -math.inf
        for window in prefetch(self._windows(epoch), most=1):
            yield window
            memory.give_back()
            passed += len(window.order)
            if time.monotonic() - reported >= _PROGRESS_SECONDS or passed == fitted:
                reported = time.monotonic()
                advance(Progress(f"epoch {epoch}", passed, fitted, "rows"))

    def pieces(self, start: int, stop: int) -> Iterator[tuple[Any, Any]]:
        """Yield rows in the order of the split: see `Rows`."""
        for images, labels in prefetch(self._chosen(start, stop)):
            for first in range(0, len(labels), SCORED_AT_ONCE):
                yield _tensors(images[first : first + SCORED_AT_ONCE], labels[first : first + SCORED_AT_ONCE])

    def _windows(self, epoch: int) -> Iterator[Window]:
        left, random = self._order.fitted, self._order.random(epoch)
        waiting: list[tuple[np.ndarray, np.ndarray]] = []
        for part, first in self._order.order(epoch):
            fitted = np.flatnonzero(~self._held.of(part)[first : first + self._order.block])
            # A window that ends within a block takes any rows of it.
            waiting.append(self._read(part, first, random.permutation(fitted)))
            while left and sum(len(labels) for _, labels in waiting) >= (length := min(self._order.size, left)):
                tensors = _tensors(*self._taken(waiting, length))
                yield Window(*tensors, random.permutation(length).astype(np.int32))
                left -= length

    def _taken(self, waiting: list[tuple[np.ndarray, np.ndarray]], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Take the first `length` rows out of blocks that are waiting."""
        images, labels = np.empty((length, self._pixels), np.uint8), np.empty(length, np.uint8)
        filled = 0
        while filled < length:
            block, of_block = waiting.pop(0)
            taken = min(len(block), length - filled)
            images[filled : filled + taken], labels[filled : filled + taken] = block[:taken], of_block[:taken]
            if taken < len(block):
                waiting.insert(0, (block[taken:], of_block[taken:]))
            filled += taken
        return images, labels

    def _chosen(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield images and labels of the rows with these numbers, where held-out rows come after all fitted ones."""
        fitted, held_out = 0, self._order.fitted
        for number, part in enumerate(self._order.parts):
            held_here = self._held.rows_of(number)
            fitted_here = part.rows - held_here
            if not (_overlap(fitted, fitted_here, start, stop) or _overlap(held_out, held_here, start, stop)):
                fitted, held_out = fitted + fitted_here, held_out + held_here
                continue
            for first in range(0, part.rows, self._order.block):
                held = self._held.of(number)[first : first + self._order.block]
                places = np.where(held, held_out + np.cumsum(held) - 1, fitted + np.cumsum(~held) - 1)
                yield self._read(number, first, np.flatnonzero((places >= start) & (places < stop)))
                held_block = int(np.count_nonzero(held))
                fitted, held_out = fitted + len(held) - held_block, held_out + held_block

    def _read(self, part: int, first: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows of a block, which are numbered from its first row on: images of shape (n, pixels), and labels."""
        if not len(rows):
            return np.empty((0, self._pixels), np.uint8), np.empty(0, np.uint8)
        # The cache looks after its files: it may have removed one that was there before.
        source = self._order.parts[part].file if self._fetched else self._source(part)
        images, labels = zip(*parquet.blocks(source, first, first + self._order.block), strict=True)
        block = images[0] if len(images) == 1 else np.concatenate(images)
        of_block = labels[0] if len(labels) == 1 else np.concatenate(labels)
        return block.reshape(len(block), -1)[rows], of_block[rows]

    def _fit_in_cache(self) -> bool:
        """Return whether all parts can be files of this machine, because they are or because the cache is large enough.

        That changes where they are read, but never what.
        """
        sizes = (source.size for part in self._order.parts if isinstance(source := part.source, Ranged))
        return sum(sizes) <= cache_size() * _SHARE_OF_CACHE


def _overlap(first: int, count: int, start: int, stop: int) -> bool:
    return max(first, start) < min(first + count, stop)


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
