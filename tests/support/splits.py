"""Splits of arrays, and a store and a data set for them, for tests that need no archives."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from storage.formats import parquet
from storage.records import FolderEntry, Split, SplitName


def split_of(folder: Path, name: SplitName, images: np.ndarray, labels: np.ndarray, classes: int, group: int) -> Split:
    """Write a split with `group` rows in each row group."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    height, width = images.shape[1:]
    record = Split(FolderEntry(folder), name, len(images), (height, width), classes, digest, {})
    with parquet.Writer(record.file, (height, width), tuple(map(str, range(classes)))) as writer:
        for start in range(0, len(images), group):
            writer.write(images[start : start + group], labels[start : start + group])
        writer.close({"image_shape": [height, width], "rows": len(images)})
    return record


def handwritten() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: images as uint8 of shape (1797, 8, 8), 0-16, and labels as uint8."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.uint8)
