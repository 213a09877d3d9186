"""Choose the training rows to hold out, to detect over-fitting: drawn from each class in proportion, or the last ones.

Drawn rows are a fair sample of the split in any order; the last rows of a split sorted by class are of one class only.
Copies of an image stay on the same side: a copy among the fitted rows would give away the answer.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from storage.datasets.catalog import Dataset
from storage.datasets.training import TrainingConfig
from storage.errors import TrainingFailed
from storage.formats import arrays, split_rows
from storage.records import Split
from storage.runtime.prefetch import prefetch

_LABELS = 256


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
    _check(dataset, config, labels, held)
    return held


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
    ends = np.cumsum(np.bincount(kinds, minlength=_LABELS))
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
    counts = np.bincount(labels, minlength=_LABELS)
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


def _check(dataset: Dataset, config: TrainingConfig, labels: np.ndarray, held: np.ndarray) -> None:
    rows, fraction = len(labels), config.validation_fraction
    if held.all():
        raise TrainingFailed(
            f"{dataset.name}: expected at least 1 row to fit weights to; found {rows:,} training rows, of which a "
            f"validation_fraction of {fraction:g} leaves 0; lower validation_fraction or add rows"
        )
    if config.patience is not None and not held.any():
        raise TrainingFailed(
            f"{dataset.name}: expected held-out rows, because patience is {config.patience}; found {rows:,} training "
            f"rows, of which a validation_fraction of {fraction:g} holds out 0; raise validation_fraction or add rows"
        )
    missing = np.setdiff1d(labels, labels[~held])
    if len(missing):
        names = [dataset.classes[label] if label < len(dataset.classes) else f"label {label}" for label in missing]
        raise TrainingFailed(
            f"{dataset.name}: expected rows of every class to fit weights to; found all rows of "
            f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''} held out, because these are the last ones of the "
            "split; hold out rows of every class, with --set held_out=stratified"
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
