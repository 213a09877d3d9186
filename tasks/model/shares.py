"""Take a share of the fitted rows, and all held-out rows, to train on fewer rows: a learning curve needs that."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from storage.datasets.catalog import Dataset
from storage.formats import parquet, split_rows
from storage.records import FilesEntry, FolderEntry, Normalization, Split
from tasks.model import holdout

_HELD_OUT = "held_out.npz"


def taken(
    dataset: Dataset, split: Split, normalization: Normalization, share: float, seed: int, folder: Path
) -> tuple[Split, Normalization]:
    """Write a share of the fitted rows, and all held-out ones, into `folder`; return them as a split of one file.

    The rows are drawn from each class in proportion, at least one; with the same seed, a larger share has all rows of a
    smaller one. The statistics stay those of all fitted rows.

    Args:
        share: above 0, less than 1.
        folder: gets `train.parquet` and `held_out.npz`; see `removed`.

    Raises:
        DamagedEntry: the split cannot be read.
    """
    held, kept = holdout.held(normalization, split), list[np.ndarray]()
    file = FolderEntry(folder).path(f"{split.name}.parquet")
    with parquet.Writer(file, split.image_shape, dataset.classes) as writer:
        for number, (first, part) in enumerate(split_rows.numbered(split)):
            of_part = held[first : first + part.rows] if isinstance(held, np.ndarray) else held.of(number)
            chosen = of_part | drawn(split_rows.labels(part), of_part, share, (seed, number))
            start = 0
            for images, labels in split_rows.blocks(part):
                here = chosen[start : start + len(labels)]
                writer.write(images[here], labels[here])
                start += len(labels)
            kept.append(of_part[chosen])
        of_all = np.concatenate(kept)
        writer.close({"image_shape": split.image_shape, "rows": len(of_all)})
    holdout.write(folder / _HELD_OUT, of_all)
    files = {path.name: path for path in (normalization.file, folder / _HELD_OUT)}
    rows = Split(FolderEntry(folder), split.name, len(of_all), split.image_shape, split.classes, "", {})
    held_rows = int(of_all.sum())
    statistics = Normalization(
        FilesEntry(normalization.entry.key, str(folder), files),
        normalization.rows,
        normalization.mean_of_means,
        normalization.std,
        normalization.digest,
        normalization.pixel_range,
        held_rows,
    )
    return rows, statistics


def removed(folder: Path) -> None:
    """Remove what `taken` has written, if it has."""
    for name in ("train.parquet", _HELD_OUT):
        (folder / name).unlink(missing_ok=True)


def drawn(labels: np.ndarray, held: np.ndarray, share: float, stream: tuple[int, int]) -> np.ndarray:
    """Draw a share of the fitted rows of each class; return which rows those are, bool of shape (rows,).

    Args:
        labels: uint8 of shape (rows,).
        held: whether each row is held out, bool of shape (rows,).
        stream: the seed, and the number of the part that the rows are.
    """
    # The numbers between keep this stream separate from those of weights, shards, orders and held-out rows.
    random = np.random.Generator(np.random.PCG64([stream[0], 0, 0, 3, stream[1]]))
    chosen = np.zeros(len(labels), bool)
    order = random.permutation(len(labels))
    for label in np.unique(labels):
        rows = order[(labels[order] == label) & ~held[order]]
        chosen[rows[: math.ceil(share * len(rows))]] = True
    return chosen
