"""Splits in parts are checked part by part: the verdict is that of the same rows in one file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.datasets.catalog import Dataset
from storage.records import Done, Split, Validation
from storage.store import Store
from tasks.checking import measuring
from tasks.validate import validate
from tests.conftest import TinyFactory, bars
from tests.support.scattered_workers import ScatteredWorkers
from tests.support.split_in_parts import in_one_file, in_parts

TRAIN, TEST = 210, 70
CUTS = {1: ((TRAIN,), (TEST,)), 2: ((100, 110), (64, 6)), 7: ((30,) * 7, (1, 2, 3, 4, 20, 30, 10))}
LIMITS = "[limits]\n" + "".join(
    f"{limit} = 0.5\n" for limit in ("max_blank", "max_duplicates", "max_conflicts", "max_leaked")
)


def arrays() -> dict[str, np.ndarray]:
    """Rows with all kinds of repetitions, within parts and across them."""
    found = bars(TRAIN, TEST, 3, (9, 7))
    train, test, labels = found["train-images"], found["test-images"], found["train-labels"]
    # Twice, and three times, with the same label and with another one.
    train[[150, 200]], labels[[150, 200]] = train[5], labels[5]
    train[[31, 209]] = train[30]
    train[60:63] = train[60]
    train[[7, 8, 100, 190]] = 0
    test[[3, 65]] = train[[2, 150]]
    test[[9, 69]] = test[8]
    test[40] = 0
    found["test-labels"][[4, 68]] = (9, 255)
    return found


@pytest.fixture
def dataset(tiny: TinyFactory) -> Dataset:
    return tiny(arrays=arrays(), manifest=LIMITS)


def cut(store: Store, dataset: Dataset, parts: int) -> tuple[Split, Split]:
    """Return both splits in so many parts; 0: in one file."""
    found, splits = arrays(), []
    for number, name in enumerate(("train", "test")):
        rows = found[f"{name}-images"], found[f"{name}-labels"]
        if parts:
            splits.append(in_parts(store, dataset, name, *rows, CUTS[parts][number]))  # type: ignore[arg-type]
        else:
            splits.append(in_one_file(store, dataset, name, *rows))  # type: ignore[arg-type]
    return splits[0], splits[1]


def verdict(store: Store, dataset: Dataset, splits: tuple[Split, Split]) -> Done[Validation]:
    """Validate, whether it passes or not."""
    try:
        return validate.fn(store, dataset, *splits)
    except Exception as error:
        return Done(error.validation, error.step)  # type: ignore[attr-defined]


def table(validation: Validation) -> pa.Table:
    if not validation.parts:
        return pq.read_table(validation.summary)
    return pa.concat_tables(
        pq.read_table(part.table) for name in ("train", "test") for part in measuring.of(validation, name)
    )


@pytest.fixture
def scattered() -> Iterator[ScatteredWorkers]:
    workers = ScatteredWorkers()
    yield workers
    workers.close()


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_any_number_of_parts_gives_the_checks_and_the_table_of_one_file(store: Store, dataset: Dataset, parts: int):
    whole = verdict(store, dataset, cut(store, dataset, 0)).record
    result = verdict(store, dataset, cut(store, dataset, parts)).record
    assert result.parts == 2 * parts
    assert (result.checks, result.class_counts, result.passed) == (whole.checks, whole.class_counts, whole.passed)
    assert result.means.read_bytes() == whole.means.read_bytes()
    assert table(result).equals(table(whole))
    assert {check.column for check in result.checks if not check.passed} == {"label"}
    found = {(check.table, check.column): check.rows for check in result.checks if check.rows}
    assert found[("train", "duplicate")] == (8, 31, 61, 62, 100, 150, 190, 200, 209)
    assert found[("train", "conflict")][:2] == (7, 8)
    assert found[("test", "leaked")] == (3, 40, 65)
