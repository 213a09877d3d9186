"""Splits in parts are checked part by part: the verdict is that of the same rows in one file."""

from __future__ import annotations

import re
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.datasets.catalog import Dataset
from storage.errors import DamagedEntry, ValidationFailed
from storage.files import read_json
from storage.formats import arrays as arrays_file
from storage.formats import members, sorted_columns, split_rows
from storage.records import Check, Done, FolderEntry, Split, SplitName, Validation
from storage.runtime.cancellation import Cancelled
from storage.store import ENTRY, FOLDERS, Plan, Store, discard
from storage.verify import verify
from storage.workers.current import using
from storage.workers.here import Here
from tasks.checking import comparing, measuring, repeats, surveys
from tasks.validate import validate
from tests.conftest import TinyFactory, bars, write_tiny
from tests.support.cloud_stores import Cloud
from tests.support.memory import peak
from tests.support.scattered_workers import ScatteredWorkers
from tests.support.split_in_parts import in_one_file, in_parts
from tests.support.stores import fingerprint
from tests.support.tampering import reseal

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


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_tiny(tmp_path_factory.mktemp("tiny"), arrays=arrays(), manifest=LIMITS)


@pytest.fixture(scope="module")
def whole(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Validation:
    """The verdict on both splits in one file each."""
    store = empty(tmp_path_factory)
    return verdict(store, dataset, cut(store, dataset, 0)).record


@pytest.fixture(scope="module")
def seven(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Done[Validation]]:
    """The verdict on both splits in seven parts each, for tests that change nothing in its store."""
    store = empty(tmp_path_factory)
    return store, verdict(store, dataset, cut(store, dataset, 7))


def empty(folders: pytest.TempPathFactory) -> Store:
    store = Store(folders.mktemp("module") / "store")
    store.prepare()
    return store


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


def arrays_of(name: SplitName) -> tuple[np.ndarray, np.ndarray]:
    found = arrays()
    return found[f"{name}-images"], found[f"{name}-labels"]


def of_all_rows(validation: Validation) -> tuple[Check, ...]:
    """The checks without those that are asked of each part."""
    return tuple(check for check in validation.checks if check.column != "unrelated")


class Alive:
    """How many numbers of the arrays that a function returns are alive at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def watching(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            result = function(*arguments)
            columns = result[-1] if isinstance(result, tuple) else result
            for values in columns.values():
                self.now += values.size
                weakref.finalize(values, self.less, values.size)
            self.most = max(self.most, self.now)
            return result

        return watched

    def less(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_any_number_of_parts_gives_the_checks_and_the_table_of_one_file(
    store: Store, dataset: Dataset, whole: Validation, seven: tuple[Store, Done[Validation]], parts: int
):
    result = (seven[1] if parts == 7 else verdict(store, dataset, cut(store, dataset, parts))).record
    assert result.parts == 2 * parts
    assert (of_all_rows(result), result.class_counts, result.passed) == (whole.checks, whole.class_counts, whole.passed)
    assert len(result.checks) == len(whole.checks) + 2
    assert result.means.read_bytes() == whole.means.read_bytes()
    assert table(result).equals(table(whole))
    assert {check.column for check in result.checks if not check.passed} == {"label"}
    found = {(check.table, check.column): check.rows for check in result.checks if check.rows}
    assert found[("train", "duplicate")] == (8, 31, 61, 62, 100, 150, 190, 200, 209)
    assert found[("train", "conflict")][:2] == (7, 8)
    assert found[("test", "leaked")] == (3, 40, 65)


@pytest.mark.parametrize("name", ["train", "test"])
def test_labels_that_are_exchanged_in_one_part_are_found_and_named(store: Store, tiny: TinyFactory, name: SplitName):
    found, sizes = bars(600, 600, 3, (9, 7)), (250, 100, 250)
    labels = found[f"{name}-labels"][250:350]
    np.random.default_rng(0).shuffle(labels)
    dataset = tiny(arrays=found)
    train, test = (
        in_parts(store, dataset, split, found[f"{split}-images"], found[f"{split}-labels"], sizes)
        for split in ("train", "test")
    )
    with pytest.raises(ValidationFailed, match=r"labels of every part belong to its images, .* at row 250") as refused:
        validate.fn(store, dataset, train, test)
    assert [(check.table, check.rows) for check in refused.value.validation.failures] == [(name, (250,))]
    # The same rows in one file pass: most labels are right.
    whole = (
        in_one_file(store, dataset, split, found[f"{split}-images"], found[f"{split}-labels"])
        for split in ("train", "test")
    )
    assert validate.fn(store, dataset, *whole).record.passed


def test_a_part_of_one_class_or_of_few_rows_is_not_blamed(store: Store, tiny: TinyFactory):
    found = bars(600, 60, 3, (9, 7))
    order = np.argsort(found["train-labels"], kind="stable")
    sorted_by_class = found["train-images"][order], found["train-labels"][order]
    sizes = (int((found["train-labels"] == 0).sum()), 10, 590 - int((found["train-labels"] == 0).sum()))
    dataset = tiny(arrays=found)
    train = in_parts(store, dataset, "train", *sorted_by_class, sizes)
    test = in_parts(store, dataset, "test", found["test-images"], found["test-labels"], (50, 10))
    assert validate.fn(store, dataset, train, test).record.failures == ()


def test_one_split_may_be_in_parts_and_the_other_in_one_file(store: Store, dataset: Dataset, whole: Validation):
    (train, test), parts = cut(store, dataset, 0), cut(store, dataset, 2)
    for splits in ((parts[0], test), (train, parts[1])):
        result = verdict(store, dataset, splits).record
        assert (result.parts, of_all_rows(result)) == (3, whole.checks)
        assert table(result).equals(table(whole))


def test_parts_in_object_storage_are_checked_like_those_in_a_folder(store: Store, dataset: Dataset, tmp_path: Path):
    here = verdict(store, dataset, cut(store, dataset, 2)).record
    cloud = Cloud(tmp_path / "cloud")
    try:
        remote = cloud.machine()
        remote.prepare()
        there = verdict(remote, dataset, cut(remote, dataset, 2))
        assert there.record.digest == here.digest
        assert table(there.record).equals(table(here))
        # Another machine finds all of it, and has nothing to do.
        again = verdict(cloud.machine("other"), dataset, cut(cloud.machine("other"), dataset, 2))
        assert again.step.reused
        assert again.step.summary.endswith(", in 4 parts")
    finally:
        cloud.close()


def test_a_part_that_is_not_as_recorded_is_refused(store: Store, dataset: Dataset):
    train, test = cut(store, dataset, 2)

    def make(folder: Path) -> Split:
        first, second = split_rows.parts(test)
        members.write(folder, [first, replace(second, digest="f" * 64)])
        return replace(test, entry=FolderEntry(folder), digest="e" * 64, rows=71)

    other = store.get_or_make(Plan("tiny", "decode", "test", {"parts": "other"}), Split, make, str).record
    checks = verdict(store, dataset, (train, other)).record.checks
    failed = {check.column: check.observed for check in checks if check.table == "archives" and not check.passed}
    digest = [*split_rows.parts(test)][1].digest
    assert failed == {
        "rows_found": "1 of 2 splits, 50%: 70 instead of 71",
        "content_found": f"1 of 2 splits, 50%: {digest[:12]}… instead of eeeeeeeeeeee…",
    }


def test_workers_in_any_order_write_the_same_bytes(
    seven: tuple[Store, Done[Validation]], dataset: Dataset, tmp_path: Path
):
    store, here = seven
    elsewhere = Store(tmp_path / "elsewhere")
    elsewhere.prepare()
    workers = ScatteredWorkers()
    try:
        with using(workers):
            there = verdict(elsewhere, dataset, cut(elsewhere, dataset, 7))
    finally:
        workers.close()
    assert there.record.digest == here.record.digest
    assert fingerprint(elsewhere) == fingerprint(store)
    assert {"survey train": 7, "compare images": 1, "measure images": 14}.items() <= dict(workers.seen).items()


def made(store: Store) -> Counter[str]:
    """Return how many entries of validations there are, by subject."""
    entries = store.entries("tiny", "validate").glob(f"*/{ENTRY}")
    return Counter(read_json(path)["subject"] or "verdict" for path in entries)


@pytest.mark.parametrize(
    ("grown", "again"),
    [
        ("train", {"train part survey": 1, "train part": 8, "test part": 7}),
        ("test", {"test part survey": 1, "test part": 8}),
    ],
)
def test_of_an_appended_part_only_itself_is_surveyed(
    seven: tuple[Store, Done[Validation]], dataset: Dataset, tmp_path: Path, grown: SplitName, again: dict[str, int]
):
    first, store = seven[1], Store(shutil.copytree(seven[0].root, tmp_path / "store"))
    splits = {split.name: split for split in cut(store, dataset, 7)}
    assert first.step.summary.endswith(", in 14 parts, 14 new")
    before, images = made(store), np.random.default_rng(1).integers(0, 255, (12, 9, 7), np.uint8)
    rows = [np.concatenate(both) for both in zip(arrays_of(grown), (images, np.arange(12) % 3), strict=True)]
    sizes = (*CUTS[7][grown == "test"], 12)
    splits[grown] = in_parts(store, dataset, grown, rows[0], rows[1].astype(np.uint8), sizes)
    second = verdict(store, dataset, (splits["train"], splits["test"]))
    assert second.step.summary.endswith(f", in 15 parts, {again['test part'] + again.get('train part', 0)} new")
    reduced = {f"{grown} survey": 1, "bucket": 1, "repeats": 1, "verdict": 1}
    assert made(store) - before == Counter(again | reduced)
    third = verdict(store, dataset, (splits["train"], splits["test"]))
    assert (third.step.reused, third.step.summary.endswith(", in 15 parts")) == (True, True)
    assert third.record == second.record


def test_a_damaged_result_of_a_part_is_made_again_and_nothing_else(store: Store, dataset: Dataset):
    splits = cut(store, dataset, 2)
    first, before = verdict(store, dataset, splits), fingerprint(store)
    files = [*store.entries("tiny", "validate").glob("*/*")]
    names = {path.name for path in files}
    assert names == {
        *("images.parquet", "rows.npz", "sums.npz", "repeats.parquet", "parts.jsonl"),
        *("summary.parquet", "findings.json", "tallies.npz", "means.npz", ENTRY),
    }
    damaged = [next(path for path in files if path.name == name) for name in sorted(names)]
    for path in damaged:
        path.chmod(0o644)
        path.write_bytes(b"#" + path.read_bytes()[1:])
    # Of a folder whose list of files is damaged, nothing else is known.
    assert len(verify(store).damage) >= len({path.parent for path in damaged})
    again = verdict(store, dataset, splits)
    assert again.record == first.record
    assert fingerprint(store) == before
    assert not verify(store).findings


def test_the_reason_is_what_was_there_before_the_run(store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    # What the run makes of parts are entries of the same step, and newer than all that was there.
    monkeypatch.setattr("storage.store.LOOKED_AT", 3)
    splits = cut(store, dataset, 2)
    first = verdict(store, dataset, splits).step
    assert (first.reason, first.summary.endswith(", in 4 parts, 4 new")) == ("first run", True)
    looser = replace(dataset, limits=replace(dataset.limits, max_blank=0.6))
    again = verdict(store, looser, splits).step
    assert (again.reason, again.summary.endswith(", in 4 parts, 4 new")) == ("max_blank 0.5 → 0.6", True)


class Ending(Here):
    """A run that is cancelled while it measures the sixth part."""

    def each(self, function: Callable[[Any], Any], items: Sequence[Any], doing: str) -> Iterator[tuple[int, Any]]:
        for done, result in enumerate(super().each(function, items, doing)):
            if doing == "measure images" and done == 5:
                raise Cancelled
            yield result


def test_a_run_goes_on_with_the_parts_that_a_cancelled_one_has_left(store: Store, dataset: Dataset):
    splits = cut(store, dataset, 7)
    with using(Ending()), pytest.raises(Cancelled):
        validate.fn(store, dataset, *splits)
    step = verdict(store, dataset, splits).step
    assert (step.reused, step.summary.endswith(", in 14 parts, 8 new"), step.reason) == (False, True, "8 new parts")
    assert not verify(store).findings


def test_the_list_of_a_verdict_names_all_that_it_consists_of(store: Store, dataset: Dataset):
    record = verdict(store, dataset, cut(store, dataset, 2)).record
    listed = members.keys(record.entry)
    others = {path.parent.name for path in store.entries("tiny", "validate").glob(f"*/{ENTRY}")} - {record.entry.key}
    assert sorted(listed) == sorted(others)


def test_images_are_found_in_any_number_of_buckets(
    store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    splits = cut(store, dataset, 7)
    compared = comparing.compare(store, "tiny", splits)
    monkeypatch.setattr(repeats, "BUCKET_IMAGES", 10)
    in_many = comparing.compare(store, "tiny", splits)
    assert (compared.repeats.buckets, in_many.repeats.buckets) == (1, 32)
    for number, survey in enumerate([*compared.train.of_parts(), *compared.test.of_parts()]):
        said = compared.repeats.said(number, survey.images)
        np.testing.assert_array_equal(said, in_many.repeats.said(number, survey.images))
        assert said.any() or number not in (0, 1)


def test_images_with_half_of_the_digest_in_common_are_different():
    images = {
        "digest": np.array([5, 5, 6, 5, 6]),
        "more": np.array([1, 2, 3, 1, 4]),
        "label": np.array([0, 1, 0, 1, 1], np.uint8),
        "mixed": np.zeros(5, np.uint8),
    }
    said = repeats.compare_images(images, np.array([False, False, False, False, True]))
    assert said.tolist() == [repeats.CONFLICT, 0, 0, repeats.AGAIN | repeats.CONFLICT, 0]


def test_what_is_in_memory_at_a_time_does_not_grow_with_the_parts(
    store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
):
    """100 parts of 20 rows: sums are added one part after the other, and a bucket holds its share of the images."""
    random = np.random.default_rng(2)
    images, labels = random.integers(0, 255, (2000, 9, 7), np.uint8), random.integers(0, 3, 2000).astype(np.uint8)
    train = in_parts(store, dataset, "train", images, labels, (20,) * 100)
    test = in_parts(store, dataset, "test", images[:20], labels[:20], (20,))
    monkeypatch.setattr(repeats, "BUCKET_IMAGES", 300)
    sums, found = Alive(), Alive()
    monkeypatch.setattr(arrays_file, "read", sums.watching(arrays_file.read))
    monkeypatch.setattr(sorted_columns, "between", found.watching(sorted_columns.between))
    compared = comparing.compare(store, "tiny", (train, test))
    assert (compared.train.parts, compared.train.rows, compared.repeats.buckets) == (100, 2000, 8)
    assert compared.train.labels().tolist()[:3] == np.bincount(labels).tolist()
    # Two arrays of a part, while those of the one before are still there.
    assert sums.most <= 2 * 2 * max(256, 3 * 63)
    assert found.most <= len(surveys.IMAGES) * 2 * 300
    assert sum(compared.repeats.said(100, 20) & repeats.LEAKED > 0) == 20


def some_images(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Return columns of different images, as a survey has them."""
    digests = np.random.default_rng(seed).integers(-(1 << 62), 1 << 62, (2, rows))
    return {"digest": digests[0], "more": digests[1], "label": np.zeros(rows, np.uint8)}


class Surveyed:
    """The survey of a split, of which only the different images of each part are there."""

    def __init__(self, folder: Path, rows: int, seeds: Sequence[int]) -> None:
        self.parts, self._parts = len(seeds), list[surveys.PartSurvey]()
        for seed in seeds:
            entry = FolderEntry(folder / str(seed))
            entry.folder.mkdir(parents=True)
            columns = some_images(rows, seed) | {"mixed": np.zeros(rows, np.uint8)}
            sorted_columns.write(entry.folder / "images.parquet", columns, surveys.IMAGES)
            self._parts.append(surveys.PartSurvey(entry, rows, rows))

    def of_parts(self) -> Iterator[surveys.PartSurvey]:
        yield from self._parts


def test_a_bucket_takes_few_bytes_of_each_image(tmp_path: Path):
    def compared(rows: int) -> int:
        train, test = (Surveyed(tmp_path / str(rows), rows, seeds) for seeds in ((1, 2), (3, 4)))
        item = repeats._Item(nothing, nothing, train, test, number=0, of=1)  # type: ignore[arg-type]
        return peak(lambda: repeats._compare(item, tmp_path))

    nothing: Any = None
    few, many = 10_000, 40_000
    assert compared(many) - compared(few) < 36 * 4 * (many - few)


def test_a_survey_takes_few_bytes_of_each_row():
    def surveyed(rows: int) -> int:
        columns = some_images(rows, 1)
        # NumPy's arrays that were there before are not counted.
        return peak(lambda: surveys._different(columns))

    few, many = 10_000, 40_000
    assert surveyed(many) - surveyed(few) < 42 * (many - few)


def unreadable(store: Store, name: str, subject: str) -> None:
    """Replace a file of one entry, and have the description of the entry fit it."""
    paths = store.entries("tiny", "validate").glob(f"*/{name}")
    path = next(path for path in paths if read_json(path.parent / ENTRY)["subject"] == subject)
    for file in path.parent.iterdir():
        file.chmod(0o644)
    path.write_bytes(b"[]")
    reseal(path.parent)


@pytest.mark.remedies("storage.formats.sorted_columns:between", "tasks.checking.measuring:look")
def test_what_cannot_be_read_although_its_digest_fits_is_named_and_made_again(
    store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
):
    splits = cut(store, dataset, 2)
    first = verdict(store, dataset, splits)
    for name, subject in (("images.parquet", "test part survey"), ("findings.json", "train part")):
        unreadable(store, name, subject)
        # So that it is read.
        monkeypatch.setattr(repeats, "BUCKET_IMAGES", 100)
        discard(first.record.entry.folder)  # type: ignore[attr-defined]
        with pytest.raises(DamagedEntry) as error:
            validate.fn(store, dataset, *splits)
        remove = re.search(
            rf": expected .*; .*; remove (\S+/{FOLDERS['validate']}/\w+), then run again$", str(error.value)
        )
        assert remove
        discard(Path(remove[1]))
        assert verdict(store, dataset, splits).record == first.record
