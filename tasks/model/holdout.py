"""Choose the training rows to hold out, to detect over-fitting: drawn from each class in proportion, or the last ones.

Drawn rows are a fair sample of the split in any order; the last rows of a split sorted by class are of one class only.
Copies of an image stay on the same side: a copy among the fitted rows would give away the answer.

In a split of several parts, each image is drawn by itself, by a digest of its pixels (`Choice`). So copies stay on the
same side across parts without comparing them, and each part's choice is known from the part alone; the number of rows
held out of a class is in proportion only up to chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from storage.datasets.catalog import Dataset
from storage.datasets.training import TrainingConfig
from storage.errors import TrainingFailed
from storage.formats import arrays, members, split_rows
from storage.records import Normalization, PartSums, Split
from storage.runtime.prefetch import prefetch
from tasks.model.sides import LABELS

MOST_IN_MEMORY = 32
"""Parts whose choice is in memory, a byte for each row."""


def choose(dataset: Dataset, train: Split, config: TrainingConfig) -> np.ndarray:
    """Return whether each row of `train` is held out, bool of shape (rows,).

    Raises:
        TrainingFailed: no row is left to fit or of some class, or none is held out although `config` has patience.
        DamagedEntry: the split cannot be read.
    """
    held_rows = train.rows - fitted_rows(train.rows, config.validation_fraction)
    if config.held_out == "tail":
        labels, held = split_rows.labels(train), tail(train.rows, held_rows)
    elif held_rows:
        labels, digests = _surveyed(train)
        held = drawn(labels, digests, held_rows, config.seed)
    else:
        labels, held = split_rows.labels(train), tail(train.rows, 0)
    check(dataset, config, *(np.bincount(labels[side], minlength=LABELS) for side in (~held, held)))
    return held


@dataclass(frozen=True)
class Choice:
    """Which rows of one part of a split are held out: the last ones, or each image that its digest selects."""

    last: int = 0
    """How many of its last rows."""
    fraction: float = 0.0
    """The share of images that digests select; 0 if it is the last rows."""
    seed: int = 0

    def of(self, images: np.ndarray, first: int, rows: int) -> np.ndarray:
        """Return whether each of some images is held out, bool of shape (n,).

        The digest is BLAKE2b (64 bits) of the pixels, keyed by the seed: equal images are on the same side, others as
        if at random.

        Args:
            images: uint8 of shape (n, height, width).
            first: the number of the first of them in the part.
            rows: of the part.
        """
        if not self.fraction:
            return np.arange(first, first + len(images)) >= rows - self.last
        key, pixels = self.seed.to_bytes(8, "little"), images.reshape(len(images), -1)
        digests = b"".join(hashlib.blake2b(row.data, digest_size=8, key=key).digest() for row in pixels)
        selected: np.ndarray = np.frombuffer(digests, "<u8") < np.uint64(int(self.fraction * 2**64))
        return selected


def choices(train: Split, parts: Sequence[Split], config: TrainingConfig) -> list[Choice]:
    """Return the choice for each part of a training split."""
    if config.held_out == "stratified":
        seed = config.seed if config.validation_fraction else 0
        return [Choice(fraction=config.validation_fraction, seed=seed)] * len(parts)
    left, found = fitted_rows(train.rows, config.validation_fraction), []
    for part in parts:
        found.append(Choice(last=part.rows - min(left, part.rows)))
        left -= min(left, part.rows)
    return found


def fitted_rows(rows: int, validation_fraction: float) -> int:
    """Return how many of `rows` training rows to fit weights to, by the rule of Keras's `validation_split`.

    The number may differ by a few if the held-out rows are drawn at random.
    """
    return int(rows * (1 - validation_fraction)) if validation_fraction else rows


def tail(rows: int, held_rows: int) -> np.ndarray:
    """Choose the last `held_rows` of `rows` rows, as Keras's `validation_split` does."""
    return np.arange(rows) >= rows - held_rows


def drawn(labels: np.ndarray, digests: np.ndarray, held_rows: int, seed: int) -> np.ndarray:
    """Choose about `held_rows` rows at random, in proportion from each class.

    Rows with equal digests are chosen together or not at all. At least one row of each class is fitted and, if the
    class has two different images, at least one is held out; so the result may have a few rows more or fewer.

    Args:
        labels: uint8 of shape (rows,).
        digests: of the images, int64 of shape (rows,).
        held_rows: at least 1, at most all rows.

    Returns:
        bool of shape (rows,): whether each row is held out.
    """
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    sizes = np.diff(starts, append=len(labels))
    # An image with several labels counts as the label of its first row.
    kinds = labels[order[starts]]
    # The numbers after the seed keep this stream separate from those of weights, shards and orders.
    images = np.random.Generator(np.random.PCG64([seed, 0, 0, 2])).permutation(len(starts))
    by_class = images[np.argsort(kinds[images], kind="stable")]
    ends = np.cumsum(np.bincount(kinds, minlength=LABELS))
    chosen = np.zeros(len(starts), bool)
    for quota, those in zip(_quotas(labels, held_rows), np.split(by_class, ends[:-1]), strict=True):
        chosen[_taken(those, sizes[those], quota)] = True
    held = np.empty(len(labels), bool)
    held[order] = np.repeat(chosen, sizes)
    for label in np.setdiff1d(labels, labels[~held]):
        held[digests == digests[labels == label][0]] = False
    return held


def _quotas(labels: np.ndarray, held_rows: int) -> np.ndarray:
    """Return how many rows of each label to hold out: in proportion, by largest remainders, at least 1."""
    counts = np.bincount(labels, minlength=LABELS)
    quotas, rests = np.divmod(held_rows * counts, len(labels))
    quotas[np.argsort(-rests, kind="stable")[: held_rows - quotas.sum()]] += 1
    return np.maximum(quotas, counts > 0)


def _taken(images: np.ndarray, sizes: np.ndarray, quota: int) -> np.ndarray:
    """Return which of a class's `images` to hold out: up to `quota` rows in total, at least one image, never all."""
    images, sizes = images[:-1], sizes[:-1]
    if not len(images):
        return images
    small = sizes <= quota
    if not small.any():
        return images[[sizes.argmin()]]
    return images[small][np.cumsum(sizes[small]) <= quota]


def _surveyed(train: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the label of each row, uint8, and the digest of its image, int64: BLAKE2b, 64 bits."""
    labels, digests = bytearray(), bytearray()
    for block, of_block in prefetch(split_rows.blocks(train)):
        rows = block.reshape(len(block), -1)
        digests += b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
        labels += of_block.tobytes()
    return np.frombuffer(labels, np.uint8), np.frombuffer(digests, "<i8")


def check(dataset: Dataset, config: TrainingConfig, fitted: np.ndarray, held: np.ndarray) -> None:
    """Check that there are rows to fit weights to, of every class, and rows held out if they are needed.

    Args:
        fitted: the number of fitted rows by label, integers of shape (256,).
        held: that of held-out rows.

    Raises:
        TrainingFailed: there are none.
    """
    rows, fraction = int(fitted.sum() + held.sum()), config.validation_fraction
    if not fitted.any():
        raise TrainingFailed(
            f"{dataset.name}: expected at least 1 row to fit weights to; found {rows:,} training rows, of which a "
            f"validation_fraction of {fraction:g} leaves 0; lower validation_fraction or add rows"
        )
    if config.patience is not None and not held.any():
        raise TrainingFailed(
            f"{dataset.name}: expected held-out rows, because patience is {config.patience}; found {rows:,} training "
            f"rows, of which a validation_fraction of {fraction:g} holds out 0; raise validation_fraction or add rows"
        )
    missing = np.flatnonzero((held > 0) & (fitted == 0))
    if len(missing):
        names = [dataset.classes[label] if label < len(dataset.classes) else f"label {label}" for label in missing]
        why, remedy = (
            ("these are the last ones of the split", "--set held_out=stratified")
            if config.held_out == "tail"
            else ("they are few, and chance chose them", f"another seed, such as --set seed={config.seed + 1}")
        )
        raise TrainingFailed(
            f"{dataset.name}: expected rows of every class to fit weights to; found all rows of "
            f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''} held out, because {why}; hold out rows of every "
            f"class, with {remedy}"
        )


def write(file: Path, held: np.ndarray) -> None:
    """Write a choice as one bit per row; equal choices give equal bytes."""
    arrays.write(file, {"held_out": np.packbits(held)})


def read(file: Path, rows: int) -> np.ndarray:
    """Read the choice for a split of `rows` rows, bool of shape (rows,).

    Raises:
        DamagedEntry: the file does not hold such a choice.
    """
    packed = arrays.read(file, {"held_out": (np.uint8, ((rows + 7) // 8,))})["held_out"]
    return np.unpackbits(packed, count=rows).astype(bool)


def held(normalization: Normalization, train: Split) -> np.ndarray | HeldParts:
    """Return the choice of `normalization` for its split: bool of shape (rows,) or, if the split has parts, by part.

    Raises:
        DamagedEntry: it cannot be read.
    """
    if train.parts:
        return HeldParts(normalization, list(split_rows.parts(train)))
    return read(normalization.held_out, train.rows)


class HeldParts:
    """Which rows of each part of a training split are held out: in files, of which few are in memory at a time.

    Args:
        normalization: of a split in parts.
        parts: the parts.

    Raises:
        DamagedEntry: the list of parts cannot be read.
    """

    def __init__(self, normalization: Normalization, parts: Sequence[Split]) -> None:
        self._parts, self._sums = parts, list(members.read(normalization.entry, PartSums))
        self.rows = normalization.held_out_rows
        """Number of held-out rows in all."""
        self.of = lru_cache(MOST_IN_MEMORY)(self._read)

    def rows_of(self, number: int) -> int:
        """Return how many rows of a part are held out."""
        return self._sums[number].held_out_rows

    def _read(self, number: int) -> np.ndarray:
        """Return whether each row of a part is held out, bool of shape (rows of the part,).

        Raises:
            DamagedEntry: its file does not hold such a choice.
        """
        return read(self._sums[number].held_out, self._parts[number].rows)
