"""Bad rows of splits in parts are set aside part by part: the same rows, for the same reasons, as from one file."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from storage.datasets.catalog import Dataset
from storage.formats import quarantined, split_rows
from storage.records import Quarantine, Split
from storage.store import Store
from tasks.quarantine import quarantine
from tests.conftest import TinyFactory, bars
from tests.support.split_in_parts import in_one_file, in_parts

ALL = '[quarantine]\nchecks = ["blank", "duplicate", "conflict", "leaked", "label"]\nmax_share = 0.5\n'
TRAIN, TEST = 120, 30
SIZES = {"train": (30, 4, 6, 50, 3, 27), "test": (2, 20, 8)}


def arrays() -> dict[str, np.ndarray]:
    """Rows of which one of each kind is bad; of the second and the fifth part of the training split, all are."""
    found = bars(TRAIN, TEST, 3, (9, 7))
    images, labels, tests = found["train-images"], found["train-labels"], found["test-images"]
    images[5] = 0
    images[[30, 31, 32, 33]], labels[[30, 31, 32, 33]] = images[8], labels[8]
    images[70], labels[70] = images[19], (labels[19] + 1) % 3
    images[90:93] = 0
    labels[45] = 77
    tests[7], found["test-labels"][7] = images[100], labels[100]
    tests[[0, 1]] = 0
    tests[29] = 0
    return found


@pytest.fixture
def dataset(tiny: TinyFactory) -> Dataset:
    return tiny(arrays=arrays(), manifest=ALL)


def splits(store: Store, dataset: Dataset, whole: bool = False) -> tuple[Split, Split]:
    found = arrays()
    train, test = (
        in_one_file(store, dataset, name, found[f"{name}-images"], found[f"{name}-labels"])  # type: ignore[arg-type]
        if whole
        else in_parts(store, dataset, name, found[f"{name}-images"], found[f"{name}-labels"], sizes)  # type: ignore[arg-type]
        for name, sizes in SIZES.items()
    )
    return train, test


def rows_of(record: Quarantine) -> list[quarantined.SetAside]:
    return [row for row, _ in quarantined.read(record.file)]


def contents(split: Split) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*split_rows.blocks(split), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_the_same_rows_are_set_aside_as_from_one_file(store: Store, dataset: Dataset):
    whole, cut = splits(store, dataset, whole=True), splits(store, dataset)
    expected = quarantine.fn(store, dataset, *whole).record
    record = quarantine.fn(store, dataset, *cut).record
    for field in ("set_aside", "reasons", "released", "checks", "max_share"):
        assert getattr(record, field) == getattr(expected, field)
    assert rows_of(record) == rows_of(expected)
    assert pq.read_table(record.file).equals(pq.read_table(expected.file))
    for one, other in zip(cut, whole, strict=True):
        left, left_of_whole = record.rest(one), expected.rest(other)
        assert left.parts
        assert (left.rows, left.set_aside) == (left_of_whole.rows, left_of_whole.set_aside)
        for mine, theirs in zip(contents(left), contents(left_of_whole), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        numbers = range(left.rows)
        assert quarantined.archive_rows(left, numbers) == quarantined.archive_rows(left_of_whole, numbers)
