"""Splits in parts, in a real store, for tests that need no archives."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from storage.datasets.catalog import Dataset
from storage.files import canonical
from storage.formats import members, parquet
from storage.records import FolderEntry, Split, SplitName
from storage.store import Plan, Store

ROW_GROUP = 16


def in_parts(
    store: Store, dataset: Dataset, name: SplitName, images: np.ndarray, labels: np.ndarray, sizes: Sequence[int]
) -> Split:
    """Return a split with a part of each size, each in an entry of its own; it begins with the first of the rows."""
    ends = np.cumsum(sizes)
    parts = [
        in_one_file(store, dataset, name, images[end - size : end], labels[end - size : end])
        for end, size in zip(ends, sizes, strict=True)
    ]
    digest = hashlib.sha256(canonical([part.digest for part in parts])).hexdigest()

    def make(folder: Path) -> Split:
        members.write(folder, parts)
        rows, shape, classes = int(ends[-1]), dataset.image_shape, len(dataset.classes)
        return Split(FolderEntry(folder), name, rows, shape, classes, digest, {}, parts=len(parts))

    return store.get_or_make(Plan(dataset.name, "decode", name, {"parts": digest}), Split, make, str).record


def in_one_file(store: Store, dataset: Dataset, name: SplitName, images: np.ndarray, labels: np.ndarray) -> Split:
    """Return a split without parts, which can also be the part of another one."""
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()

    def make(folder: Path) -> Split:
        record = Split(FolderEntry(folder), name, len(labels), dataset.image_shape, len(dataset.classes), digest, {})
        with parquet.Writer(record.file, record.image_shape, dataset.classes) as writer:
            for start in range(0, len(labels), ROW_GROUP):
                writer.write(images[start : start + ROW_GROUP], labels[start : start + ROW_GROUP])
            footer = {"image_shape": record.image_shape, "rows": len(labels), "digest": digest, "sources": {}}
            writer.close(footer)
        return record

    return store.get_or_make(Plan(dataset.name, "decode", f"{name} part", {"rows": digest}), Split, make, str).record
