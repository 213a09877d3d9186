"""The quarantine: bad rows are set aside, named and kept; the rest is a split like any other."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage import released
from storage.datasets.catalog import Dataset
from storage.errors import DamagedEntry, DataRefused, FormatError, StoreError, ValidationFailed
from storage.formats import parquet, quarantined
from storage.records import Archive, FolderEntry, Quarantine, Split, SplitName
from storage.store import Store
from tasks.decoding.writing import write_split
from tasks.quarantine import quarantine, set_aside
from tasks.validate import validate
from tests.conftest import TinyFactory, bars

ALL = '[quarantine]\nchecks = ["blank", "duplicate", "conflict", "leaked", "label"]\nmax_share = 0.5\n'


def bad() -> dict[str, np.ndarray]:
    """Arrays of `tiny` in which one row of each kind is bad."""
    arrays = bars(120, 30, 3, (9, 7))
    images, labels, tests = arrays["train-images"], arrays["train-labels"], arrays["test-images"]
    images[5] = 0
    images[10], labels[10] = images[9], labels[9]
    images[20], labels[20] = images[19], (labels[19] + 1) % 3
    labels[30] = 77
    tests[7], arrays["test-labels"][7] = images[100], labels[100]
    return arrays


REASONS = {
    ("train", 5): "blank",
    ("train", 10): "duplicate",
    ("train", 19): "conflict",
    ("train", 20): "duplicate, conflict",
    ("train", 30): "label",
    ("test", 7): "leaked",
}


def decoded(dataset: Dataset, folder: Path) -> tuple[Split, Split]:
    folder.mkdir(exist_ok=True)

    def split(name: SplitName) -> Split:
        images, labels = (
            Archive(
                FolderEntry(dataset.source or folder),
                f"{name}-{kind}",
                dataset.archive(f"{name}-{kind}").file,
                0,
                "",
                "",
            )
            for kind in ("images", "labels")
        )
        return write_split(dataset, name, images, labels, folder)

    return split("train"), split("test")


@dataclasses.dataclass(frozen=True)
class Made:
    """A data set, its splits, and what was set aside of them."""

    dataset: Dataset
    splits: tuple[Split, Split]
    record: Quarantine


Maker = Callable[..., Made]


@pytest.fixture
def made(tiny: TinyFactory, tmp_path: Path) -> Maker:
    def make(manifest: str = ALL, arrays: dict[str, np.ndarray] | None = None, **named: Any) -> Made:
        dataset = tiny(arrays=bad() if arrays is None else arrays, manifest=manifest)
        splits, folder = decoded(dataset, tmp_path / "splits"), tmp_path / "aside"
        folder.mkdir(exist_ok=True)
        return Made(dataset, splits, set_aside(dataset, splits, folder, **named))

    return make


def rows_of(record: Quarantine) -> dict[tuple[str, int], str]:
    return {(row.split, row.row): ", ".join(row.reasons) for row, _ in quarantined.read(record.file)}


def test_each_bad_row_is_set_aside_with_its_reasons(made: Maker):
    record = made().record
    assert rows_of(record) == REASONS
    assert record.set_aside == {"train": 5, "test": 1}
    assert record.reasons["train"] == {"blank": 1, "duplicate": 2, "conflict": 2, "leaked": 0, "label": 1}
    assert record.reasons["test"] == {"blank": 0, "duplicate": 0, "conflict": 0, "leaked": 1, "label": 0}


@pytest.mark.parametrize("check", ["blank", "duplicate", "conflict", "leaked", "label"])
def test_only_the_named_checks_set_rows_aside(check: str, made: Maker):
    record = made(f'[quarantine]\nchecks = ["{check}"]\nmax_share = 0.5\n').record
    assert rows_of(record) == {place: check for place, reasons in REASONS.items() if check in reasons}


def test_what_is_left_is_every_other_row_in_the_same_order(made: Maker):
    result, arrays = made(), bad()
    for split in result.splits:
        aside = [row for name, row in REASONS if name == split.name]
        rest = result.record.rest(split)
        images, labels = parquet.read(rest.file)
        assert (images == np.delete(arrays[f"{split.name}-images"], aside, axis=0)).all()
        assert (labels == np.delete(arrays[f"{split.name}-labels"], aside)).all()
        assert (rest.rows, rest.set_aside) == (len(labels), len(aside))
        kept = np.delete(np.arange(split.rows), aside).tolist()
        assert quarantined.archive_rows(rest, range(rest.rows)) == kept
        assert rest.digest != split.digest


def test_the_file_has_picture_row_label_reason_and_the_form_of_hugging_face(made: Maker):
    result = made()
    table = pq.read_table(result.record.file).to_pylist()
    for row in table:
        picture = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        assert (picture == bad()[f"{row['split']}-images"][row["row"]]).all()
        assert row["label"] == bad()[f"{row['split']}-labels"][row["row"]]
        assert row["class"] == (f"bar {row['label']}" if row["label"] < 3 else "")


def test_a_split_without_a_bad_row_stays_as_it_is(made: Maker, tiny: TinyFactory):
    result = made(arrays={})
    assert [result.record.rest(split) for split in result.splits] == list(result.splits)
    assert not result.record.left
    assert rows_of(result.record) == {}


def test_the_same_rows_give_the_same_digest_whatever_the_reason(made: Maker):
    first = made('[quarantine]\nchecks = ["duplicate"]\nmax_share = 0.5\n')
    again = made('[quarantine]\nchecks = ["duplicate", "leaked"]\nmax_share = 0.6\n')
    assert first.record.rest(first.splits[0]).digest == again.record.rest(again.splits[0]).digest


def test_suspect_labels_are_set_aside_if_they_are_named(made: Maker):
    suspects = [3, 5]
    named = '[quarantine]\nchecks = ["blank", "suspect"]\nmax_share = 0.5\n'
    assert rows_of(made(named, suspects=suspects).record) == {("train", 3): "suspect", ("train", 5): "blank, suspect"}
    not_named = made('[quarantine]\nchecks = ["blank"]\nmax_share = 0.5\n', suspects=suspects)
    assert rows_of(not_named.record) == {("train", 5): "blank"}


def test_a_released_row_stays(made: Maker):
    digests = {(row.split, row.row): row.digest for row, _ in quarantined.read(made().record.file)}
    result = made(free={digests["train", 10], digests["test", 7]})
    assert rows_of(result.record).keys() == REASONS.keys() - {("train", 10), ("test", 7)}
    assert result.record.released == 2
    assert result.record.rest(result.splits[1]) == result.splits[1]


def test_what_is_left_passes_the_checks_that_the_whole_would_fail(store: Store, made: Maker):
    result = made(ALL + "[rows]\ntrain = 120\ntest = 30\n")
    nothing = dataclasses.replace(result.dataset.quarantine, checks=())
    whole = dataclasses.replace(result.dataset, rows={}, quarantine=nothing)
    with pytest.raises(ValidationFailed, match=r"set these rows aside with --quarantine label,blank,leaked, or, if"):
        validate.fn(store, whole, *result.splits)
    validate.fn(store, result.dataset, *(result.record.rest(split) for split in result.splits))


def test_a_refusal_says_to_end_the_release_of_rows_that_are_bad(store: Store, made: Maker):
    result = made('[quarantine]\nchecks = ["blank", "label"]\nmax_share = 0.5\n')
    digest = next(row.digest for row, _ in quarantined.read(result.record.file) if "blank" in row.reasons)
    folder = result.record.entry.folder.parent / "again"
    folder.mkdir()
    record = set_aside(result.dataset, result.splits, folder, free={digest})
    with pytest.raises(
        ValidationFailed,
        match=r"end the release of these rows \(`idxflow quarantine release tiny DIGEST --undo`\), "
        r"set these rows aside with --quarantine blank,label,leaked, or, if",
    ):
        validate.fn(store, result.dataset, *(record.rest(split) for split in result.splits))


def test_rows_of_a_refusal_have_their_numbers_in_the_archive(store: Store, made: Maker):
    arrays = bad()
    arrays["train-images"][[40, 119]] = 9
    result = made('[quarantine]\nchecks = ["label", "leaked"]\nmax_share = 0.5\n', arrays)
    with pytest.raises(ValidationFailed, match=r"no image is blank.* at rows 5, 40, 119;"):
        validate.fn(store, result.dataset, *(result.record.rest(split) for split in result.splits))


@pytest.mark.remedies("tasks.quarantine:_check_limit")
def test_more_bad_rows_than_the_limit_are_refused(made: Maker):
    with pytest.raises(DataRefused, match=r"at most 1% of the 120 rows of train .* found 5 \(4\.17%: 1 blank, 2 dup"):
        made(ALL.replace("0.5", "0.01"))
    assert made(ALL.replace("0.5", "0.05")).record.set_aside["train"] == 5


def test_a_split_is_never_set_aside_whole(made: Maker):
    arrays = bad() | {"test-images": np.zeros((30, 9, 7), np.uint8)}
    with pytest.raises(DataRefused, match=r"30 rows of test .* found 30 \(100\.00%"):
        made(ALL.replace("0.5", "1"), arrays)


def test_labels_that_are_no_class_are_set_aside_however_they_are_written(made: Maker):
    arrays = bars(120, 30, 3, (9, 7))
    arrays |= {name: arrays[name].astype(">i4") + 10 for name in ("train-labels", "test-labels")}
    arrays["train-labels"][[4, 50]] = -1, 70_000
    rules = "label_base = 10\n"
    with pytest.raises(FormatError, match="expected labels 10, 11, 12; found -1 at row 4"):
        made(rules, arrays)
    result = made(rules + '[quarantine]\nchecks = ["label"]\nmax_share = 0.5\n', arrays)
    assert rows_of(result.record) == {("train", 4): "label", ("train", 50): "label"}


def test_the_step_is_reused_until_its_rules_or_the_released_rows_change(store: Store, made: Maker):
    result = made()

    def step(dataset: Dataset = result.dataset) -> tuple[bool, str]:
        done = quarantine.fn(store, dataset, *result.splits)
        return done.step.reused, done.step.summary

    assert step() == (False, "5 of train, 1 of test set aside: blank 1, duplicate 2, conflict 2, leaked 1, label 1")
    assert step()[0]
    rules = dataclasses.replace(result.dataset.quarantine, checks=("blank",))
    assert step(dataclasses.replace(result.dataset, quarantine=rules)) == (False, "1 of train set aside: blank 1")
    digest = next(row.digest for row, _ in quarantined.read(result.record.file))
    assert released.release(store, "tiny", {digest: "a comment"}) == 1
    assert released.release(store, "tiny", {digest: "again"}) == 0
    assert step() == (
        False,
        "4 of train, 1 of test set aside: duplicate 2, conflict 2, leaked 1, label 1, 1 released",
    )
    assert released.take_back(store, "tiny", [digest]) == 1
    assert step()[0]


@pytest.mark.remedies("storage.released:_lines", "storage.released:_lines:2")
def test_the_list_of_released_rows_may_be_edited_but_must_be_readable(store: Store):
    path = Path(released.where(store, "tiny"))
    path.mkdir(parents=True)
    with pytest.raises(StoreError, match="expected the list of released rows; found Is a directory; correct or remove"):
        released.read(store, "tiny")
    path.rmdir()
    text = "# by hand\n\n" + "a" * 32 + "  # row 3\n  " + "B" * 32 + "\n"
    # A line of blanks must not take minutes.
    for line in ("b" * 31, "b" * 33, "g" * 32, "b" * 32 + " x", " " * 1_000_000 + "x"):
        path.write_text(f"{text}{line}\n")
        with pytest.raises(StoreError, match=f"expected a row digest .* found '{line[:40]}' in line 5; correct or rem"):
            released.read(store, "tiny")
    path.write_text(text)
    assert released.read(store, "tiny") == ("a" * 32, "b" * 32)
    released.take_back(store, "tiny", ["a" * 32])
    assert path.read_text() == "# by hand\n\n  " + "B" * 32 + "\n"
    assert released.take_back(store, "tiny", ["b" * 32]) == 1
    assert path.read_text() == "# by hand\n\n"


@pytest.mark.remedies("storage.formats.quarantined:read")
def test_another_file_in_its_place_is_damage(tmp_path: Path, made: Maker):
    other = tmp_path / "quarantine.parquet"
    other.write_bytes(made().splits[0].file.read_bytes())
    with pytest.raises(DamagedEntry, match=r"expected the rows in quarantine as Parquet; .* remove .*, then run again"):
        list(quarantined.read(other))
