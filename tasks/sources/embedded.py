"""Write the embedded data set, real digits shipped with scikit-learn, as IDX archives."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from storage.datasets.catalog import Dataset
from storage.files import make_folder, write_bytes
from storage.formats import idx
from storage.runtime import imports

TEST_ROWS = 360
_SEED = 0


def digits() -> dict[str, np.ndarray]:
    """Return the four arrays of the data set by role.

    Images are uint8 of shape (rows, 8, 8), 0-16; labels uint8 of shape (rows,), 0-9. The 1,797 rows are sorted by
    writer, so they are shuffled, stratified by class, before the last 360 become the test split.
    """
    # It takes data frames where pandas is installed, and imports it for that.
    with imports.without("pandas"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    bunch = load_digits()
    train, test, train_labels, test_labels = train_test_split(
        bunch.images.astype(np.uint8),
        bunch.target.astype(np.uint8),
        test_size=TEST_ROWS,
        random_state=_SEED,
        stratify=bunch.target,
    )
    return {"train-images": train, "train-labels": train_labels, "test-images": test, "test-labels": test_labels}


def write(dataset: Dataset, inbox: Path) -> None:
    """Write those archives of the embedded `dataset` that are not yet in `inbox`."""
    missing = [spec for spec in dataset.archives if not (inbox / spec.file).is_file()]
    if not missing:
        return
    make_folder(inbox)
    arrays = digits()
    for spec in missing:
        # mtime 0, so that the bytes do not depend on the time of writing.
        write_bytes(inbox / spec.file, gzip.compress(idx.encode(arrays[spec.role]), mtime=0))
