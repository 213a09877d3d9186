"""Check the labels of a split before they are used."""

from __future__ import annotations

import numpy as np

from storage.datasets.catalog import Dataset
from storage.errors import DataRefused
from storage.records import Split


def check_labels(dataset: Dataset, split: Split, labels: np.ndarray, first: int = 0) -> None:
    """Check that every label is a class.

    Args:
        first: the number in the split of the row that the first label is of.

    Raises:
        DataRefused: a label is not a class.
    """
    if labels.max() >= len(dataset.classes):
        row = first + int(labels.argmax())
        raise DataRefused(
            f"{dataset.name}: expected labels from 0 to {len(dataset.classes) - 1}; row {row} of the "
            f"{split.name} split is {labels.max()}; correct the labels or the classes of the manifest"
        )
