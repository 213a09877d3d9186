"""Bad rows of splits in parts are set aside part by part: the same rows, for the same reasons, as from one file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from storage import released
from storage.datasets.catalog import Dataset
from storage.errors import DataRefused
from storage.formats import members, quarantined, split_rows
from storage.ledger import Ledger
from storage.records import Audit, FolderEntry, Quarantine, Split
from storage.retention import collect
from storage.store import ENTRY, Store
from storage.verify import verify
from tasks.auditing.tables import NearDuplicates, Suspects
from tasks.quarantine import quarantine
from tasks.validate import validate
from tests.conftest import TinyFactory, bars
from tests.support.cloud_stores import Cloud
from tests.support.split_in_parts import in_one_file, in_parts
from tests.support.stores import fingerprint

ALL = '[quarantine]\nchecks = ["blank", "duplicate", "conflict", "leaked", "label"]\nmax_share = 0.5\n'
TRAIN, TEST = 120, 30
SIZES = {"train": (30, 4, 6, 50, 3, 24, 3), "test": (2, 20, 8)}


def arrays() -> dict[str, np.ndarray]:
    """Rows of which one of each kind is bad; of three parts of the training split, all are."""
    found = bars(TRAIN, TEST, 3, (9, 7))
    images, labels, tests = found["train-images"], found["train-labels"], found["test-images"]
    images[5] = 0
    images[[30, 31, 32, 33]], labels[[30, 31, 32, 33]] = images[8], labels[8]
    images[70], labels[70] = images[19], (labels[19] + 1) % 3
    images[90:93] = images[117:] = 0
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


def arrays_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    found = arrays()
    return found[f"{name}-images"], found[f"{name}-labels"]


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


def keys(split: Split) -> list[str]:
    return [part.entry.key for part in split_rows.parts(split)]


def test_only_parts_with_bad_rows_are_written_anew(store: Store, dataset: Dataset):
    train, test = splits(store, dataset)
    record = quarantine.fn(store, dataset, train, test).record
    # Of the second, the fifth and the last part nothing is left: their rows count with their neighbours.
    assert [part.rows for part in split_rows.parts(record.rest(train))] == [28, 6, 48, 24]
    assert [part.set_aside for part in split_rows.parts(record.rest(train))] == [2, 4, 2, 6]
    assert [part.rows for part in split_rows.parts(record.rest(test))] == [19, 7]
    assert not {*keys(record.rest(train)), *keys(record.rest(test))} & {*keys(train), *keys(test)}
    fewer = dataclasses.replace(dataset.quarantine, checks=("label",))
    step = quarantine.fn(store, dataset, train, test).step
    assert (step.reused, step.summary.rpartition(", ")[2]) == (True, "in 10 parts")
    done = quarantine.fn(store, dataclasses.replace(dataset, quarantine=fewer), train, test)
    # Two parts have the same content, and so the same entry.
    assert done.step.summary == "1 of train set aside: label 1, in 10 parts, 9 new"
    assert done.step.reason == "9 new parts"
    label = done.record
    same = [before == after for before, after in zip(keys(train), keys(label.rest(train)), strict=True)]
    assert same == [True, True, True, False, True, True, True]
    assert label.rest(test) == test


def test_what_is_left_in_parts_passes_the_checks(store: Store, dataset: Dataset):
    both = splits(store, dataset)
    record = quarantine.fn(store, dataset, *both).record
    train, test = (record.rest(split) for split in both)
    result = validate.fn(store, dataset, train, test).record
    assert not [check for check in result.checks if not check.passed and check.column != "centroid_hit"]
    assert [sum(result.class_counts[split.name]) for split in (train, test)] == [train.rows, test.rows]


def test_released_rows_and_suspect_labels_are_those_of_one_file(store: Store, dataset: Dataset):
    folder = store.root / "audit"
    folder.mkdir()
    flagged = np.array([110, 2, 60])
    numbers = (flagged, *(np.ones(3, kind) for kind in [*Suspects.KINDS.values()][1:5]), np.array([True, False, True]))
    Suspects(*numbers).write(folder / "suspects.parquet")
    NearDuplicates.none().write(folder / "near_duplicates.parquet")
    audit = Audit(FolderEntry(folder), "audited", 120, 0, 3, 2, 30, 30, 0, 0, 0.1, 5, 0)
    first = quarantine.fn(store, dataset, *splits(store, dataset)).record
    free = [row.digest for row in rows_of(first) if (row.split, row.row) in {("train", 31), ("test", 7)}]
    released.release(store, "tiny", dict.fromkeys(free, "good"))
    rules = dataclasses.replace(dataset.quarantine, checks=(*dataset.quarantine.checks, "suspect"))
    changed = dataclasses.replace(dataset, quarantine=rules)
    expected, record = (
        quarantine.fn(store, changed, *splits(store, changed, whole), audit).record for whole in (True, False)
    )
    assert (record.released, record.reasons) == (expected.released, expected.reasons)
    assert record.released > 1
    assert rows_of(record) == rows_of(expected)
    assert [row.row for row in rows_of(record) if "suspect" in row.reasons] == [60, 110]


def test_the_limit_is_for_the_whole_split(store: Store, dataset: Dataset):
    both = splits(store, dataset)
    for share in (0.1, 0.05):
        changed = dataclasses.replace(dataset, quarantine=dataclasses.replace(dataset.quarantine, max_share=share))
        with pytest.raises(DataRefused) as expected:
            quarantine.fn(store, changed, *splits(store, dataset, whole=True))
        with pytest.raises(DataRefused) as error:
            quarantine.fn(store, changed, *both)
        assert str(error.value) == str(expected.value)


def test_a_damaged_result_of_a_part_is_made_again(store: Store, dataset: Dataset):
    both = splits(store, dataset)
    first, before = quarantine.fn(store, dataset, *both), fingerprint(store)
    for name in ("bad.npz", "quarantine.parquet", "train.parquet", "parts.jsonl", "images.parquet"):
        made = (path for step in ("quarantine", "validate") for path in store.entries("tiny", step).glob(f"*/{name}"))
        path = next(path for path in made if '"step": "decode"' not in (path.parent / ENTRY).read_text())
        path.chmod(0o644)
        path.write_bytes(b"#" + path.read_bytes()[1:])
    assert verify(store).damage
    again = quarantine.fn(store, dataset, *both)
    assert again.record == first.record
    assert fingerprint(store) == before
    assert not verify(store).findings


def test_an_unchanged_run_finds_all_of_it(store: Store, dataset: Dataset):
    both = splits(store, dataset)
    first = quarantine.fn(store, dataset, *both)
    before = fingerprint(store)
    again = quarantine.fn(store, dataset, *both)
    assert (again.step.reused, again.record) == (True, first.record)
    assert fingerprint(store) == before
    listed = {*members.keys(again.record.entry)}
    # The surveys are in the folder of another step.
    surveys = {path.parent.name for path in store.entries("tiny", "validate").glob(f"*/{ENTRY}")}
    reasons = {path.parent.name for path in store.entries("tiny", "quarantine").glob("*/bad.npz")}
    assert surveys | reasons < listed
    assert {*keys(again.record.rest(both[0])), *keys(again.record.rest(both[1]))} < listed


def test_gc_keeps_what_the_next_run_looks_for(store: Store, dataset: Dataset):
    both = splits(store, dataset)
    done = quarantine.fn(store, dataset, *both)
    left = [done.record.rest(split) for split in both]
    checked = validate.fn(store, dataset, *left)
    steps = [{"step": step.step, "subject": "", "key": step.key} for step in (done.step, checked.step)]
    steps += [{"step": "decode", "subject": split.name, "key": split.entry.key} for split in both]
    Ledger(store, "tiny").append("runs", "run", {"state": "kept", "report": None, "steps": steps})
    unlisted = in_one_file(store, dataset, "test", *(values[:3] for values in arrays_of("test"))).entry.key
    assert [entry.name.key for entry in collect(store, "tiny", keep_last=1).entries] == [unlisted]
    assert not verify(store).findings
    before = fingerprint(store)
    assert quarantine.fn(store, dataset, *both).step.reused
    assert validate.fn(store, dataset, *left).step.reused
    assert fingerprint(store) == before


def test_parts_in_object_storage_are_divided_like_those_in_a_folder(store: Store, dataset: Dataset, tmp_path: Path):
    expected = quarantine.fn(store, dataset, *splits(store, dataset)).record
    cloud = Cloud(tmp_path / "cloud")
    try:
        remote = cloud.machine()
        remote.prepare()
        both = splits(remote, dataset)
        record = quarantine.fn(remote, dataset, *both).record
        assert rows_of(record) == rows_of(expected)
        for split, in_folder in zip(both, splits(store, dataset), strict=True):
            for mine, theirs in zip(contents(record.rest(split)), contents(expected.rest(in_folder)), strict=True):
                np.testing.assert_array_equal(mine, theirs)
    finally:
        cloud.close()
