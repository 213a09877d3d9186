"""What the expectations look at instead of pixels: a small table with one row per image, and two smaller ones.

784 pixel columns would cost Great Expectations minutes; these tables cost it milliseconds. Columns of the
image table are int64 or float64, the two types it does not walk through in Python.

Images are read block by block and turned to float32 in pieces of a few MB, so memory grows by about 100
bytes per row of a split, whatever the size of its images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage import parquet
from storage.catalog import Dataset
from storage.records import Split, SplitName

Table = dict[str, np.ndarray]

IMAGE_COLUMNS: dict[str, type] = {
    "index": np.int64,  # row number in the split, from 0
    "label": np.int64,  # 0-255, as the archive has it
    "pixel_min": np.int64,  # 0-255
    "pixel_max": np.int64,  # 0-255
    "mean": np.float64,  # of the pixels, 0-255
    "ink": np.float64,  # share of pixels that are not 0
    "digest": np.int64,  # BLAKE2b of the pixels, 64 bits: equal images have equal digests
    "blank": np.int64,  # 1: all pixels have one value
    "duplicate": np.int64,  # 1: the image occurs earlier in the same split
    "conflict": np.int64,  # 1: the image occurs in the same split with another label too
    "leaked": np.int64,  # 1: a test image that occurs in the training split
    "centroid_hit": np.int64,  # 1: of all class means of the training split, that of the label is nearest
}

_MEASURED = ("label", "pixel_min", "pixel_max", "mean", "ink", "digest", "blank", "centroid_hit")
"""The columns that each image has by itself; the others compare it with its split."""

_PIECE_PIXELS = 1 << 20
"""How many pixels are turned to float32 at a time: 4 MB, which stays in a processor's cache."""


@dataclass(frozen=True)
class Centroids:
    """The mean image of each class that has images."""

    labels: np.ndarray
    """int64, shape (n,), ascending: the classes that have images."""
    means: np.ndarray
    """float32, shape (n, pixels), 0-255."""

    def nearest(self, images: np.ndarray) -> np.ndarray:
        """Return the label whose mean is nearest (least squares) to each of `images`; -1 where there are no means.

        Args:
            images: uint8, shape (rows, pixels).

        Returns:
            int64, shape (rows,).
        """
        if not len(self.labels):
            return np.full(len(images), -1)
        # |x - c|² without |x|², which is the same for every c, halved and negated: the largest is the nearest.
        scores = images.astype(np.float32) @ self.means.T - (self.means**2).sum(axis=1) / 2
        nearest: np.ndarray = self.labels[scores.argmax(axis=1)]
        return nearest


def tables(train: Split, test: Split) -> dict[SplitName, Table]:
    """Return the image table of both splits, its columns as in `IMAGE_COLUMNS`; the centroids are the training split's.

    Raises:
        DamagedEntry: a Parquet file cannot be read.
    """
    means = centroids(parquet.blocks(train.file), train.classes)
    of_train = images(parquet.blocks(train.file), means)
    of_test = images(parquet.blocks(test.file), means, known=of_train["digest"])
    return {"train": of_train, "test": of_test}


def centroids(blocks: Iterable[tuple[np.ndarray, np.ndarray]], classes: int) -> Centroids:
    """Return the mean image of each class, from blocks as `storage.parquet.blocks` yields them.

    Labels that are no class are left out. The sums are exact, so the order of the blocks changes nothing.
    """
    sums, counts = np.zeros((classes, 1)), np.zeros(classes, np.int64)
    for flat, labels in _pieces(blocks):
        # A piece has at most 65,536 rows of at most 255: the sums are whole numbers below 2²⁴, exact in float32.
        member = (labels == np.arange(classes)[:, None]).astype(np.float32)
        sums = sums + (member @ flat.astype(np.float32)).astype(np.float64)
        counts += np.bincount(labels, minlength=256)[:classes]
    present = np.flatnonzero(counts)
    return Centroids(present, (sums[present] / counts[present, None]).astype(np.float32))


def images(blocks: Iterable[tuple[np.ndarray, np.ndarray]], means: Centroids, known: np.ndarray | None = None) -> Table:
    """Return the image table of one split.

    Args:
        blocks: as `storage.parquet.blocks` yields them.
        means: what `centroid_hit` is measured against.
        known: int64, the digests that `leaked` looks for; without it, nothing is leaked.
    """
    pieces = [_piece(flat, labels, means) for flat, labels in _pieces(blocks)]
    measured = {
        name: np.concatenate([np.empty(0, IMAGE_COLUMNS[name]), *(piece[name] for piece in pieces)])
        for name in _MEASURED
    }
    digests = measured["digest"]
    leaked = np.isin(digests, np.empty(0, np.int64) if known is None else known)
    table = measured | _repeats(digests, measured["label"])
    table |= {"index": np.arange(len(digests)), "leaked": leaked.astype(np.int64)}
    return {name: table[name] for name in IMAGE_COLUMNS}


def class_table(labels: np.ndarray, classes: int) -> Table:
    """Return one row per class: `index` (its label), `rows`, `share` of all rows, `imbalance`.

    `imbalance` is the rows of the largest class / the rows of this one, infinite for a class without rows.
    """
    rows = class_counts(labels, classes)
    with np.errstate(divide="ignore", invalid="ignore"):
        share, imbalance = rows / max(len(labels), 1), np.where(rows > 0, rows.max() / rows, np.inf)
    return {"index": np.arange(classes), "rows": rows, "share": share, "imbalance": imbalance}


def class_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the rows of each class, int64 of shape (classes,); labels that are no class are left out."""
    return np.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes)


def archive_table(dataset: Dataset, splits: Iterable[Split], summaries: Mapping[SplitName, Table]) -> Table:
    """Return one row per split: what the manifest declares beside what decode recorded and the file holds.

    What the manifest does not declare is missing (None).
    """
    found = [_archive_row(dataset, split, parquet.metadata(split.file), summaries[split.name]) for split in splits]
    names = found[0].keys()
    return {"index": np.arange(len(found))} | {name: np.array([row[name] for row in found], object) for name in names}


def _archive_row(dataset: Dataset, split: Split, footer: Mapping[str, Any], summary: Table) -> dict[str, Any]:
    row: dict[str, Any] = {
        "split": split.name,
        "rows_declared": dataset.rows.get(split.name),
        "rows_decoded": split.rows,
        "rows_found": len(summary["label"]),
        "shape_declared": _times(dataset.image_shape),
        "shape_found": _times(footer["image_shape"]),
        "content_decoded": split.digest,
        "content_found": footer["digest"],
    }
    for kind in ("images", "labels"):
        role = f"{split.name}-{kind}"
        row[f"{kind}_declared"] = dataset.archive(role).payload_sha256
        row[f"{kind}_found"] = split.sources.get(role, "none")
    return row


def _pieces(blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images of shape (rows, pixels) and their labels, at most `_PIECE_PIXELS` pixels or one row at a time."""
    for block, labels in blocks:
        flat = block.reshape(len(block), -1)
        rows = max(1, min(_PIECE_PIXELS // flat.shape[1], 1 << 16))
        for start in range(0, len(flat), rows):
            yield flat[start : start + rows], labels[start : start + rows]


def _piece(flat: np.ndarray, labels: np.ndarray, means: Centroids) -> dict[str, np.ndarray]:
    pixels = flat.shape[1]
    low, high = flat.min(axis=1), flat.max(axis=1)
    return {
        "label": labels,
        "pixel_min": low,
        "pixel_max": high,
        "mean": flat.sum(axis=1, dtype=np.int64) / pixels,
        "ink": np.count_nonzero(flat, axis=1) / pixels,
        "digest": np.frombuffer(b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in flat), "<i8"),
        "blank": low == high,
        "centroid_hit": means.nearest(flat) == labels,
    }


def _repeats(digests: np.ndarray, labels: np.ndarray) -> Table:
    """Return the columns `duplicate` and `conflict`."""
    _, first, image = np.unique(digests, return_index=True, return_inverse=True)
    duplicate = np.ones(len(digests), np.int64)
    duplicate[first] = 0
    # Unique pairs of image and label: an image that has two of them has two labels.
    pairs = np.unique(np.stack([image, labels]), axis=1)
    labels_of_image = np.bincount(pairs[0], minlength=len(first)) if len(first) else np.empty(0, np.int64)
    return {"duplicate": duplicate, "conflict": (labels_of_image[image] > 1).astype(np.int64)}


def _times(shape: Iterable[int]) -> str:
    return "×".join(str(n) for n in shape)
