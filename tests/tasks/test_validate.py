"""The gate: bad data is named and never passes, good data passes, and no verdict is worked out twice."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from expectations import suites, summary
from expectations.suites import Expectation, Suite
from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.errors import IdxflowError, ValidationFailed
from storage.records import Archive, Check, Done, FolderEntry, Split, SplitName, Validation
from storage.store import Store
from tasks.checking import image_table
from tasks.decoding.writing import write_split
from tasks.sources import embedded
from tasks.ui import artifacts
from tasks.ui.verdicts import refusal
from tasks.validate import judge, validate
from tests.conftest import TinyFactory, bars
from tests.support.listed_archives import write_listed

ROOT = Path(__file__).resolve().parents[2]
SIDE = 8

Arrays = dict[str, np.ndarray]
Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def splits(dataset: Dataset, source: Path, folder: Path) -> tuple[Split, Split]:
    """Decode both splits of `dataset` from the archives in `source`."""
    folder.mkdir(exist_ok=True)

    def archive(role: str) -> Archive:
        return Archive(FolderEntry(source), role, dataset.archive(role).file, 0, "", "")

    def split(name: SplitName) -> Split:
        return write_split(dataset, name, archive(f"{name}-images"), archive(f"{name}-labels"), folder)

    return split("train"), split("test")


def decoded(dataset: Dataset, tmp_path: Path) -> tuple[Split, Split]:
    assert dataset.source
    return splits(dataset, dataset.source, tmp_path / f"{dataset.name}-splits")


def verdict(dataset: Dataset, tmp_path: Path) -> Validation:
    (tmp_path / "verdict").mkdir(exist_ok=True)
    return judge(dataset, *decoded(dataset, tmp_path), tmp_path / "verdict")


def failed(checks: tuple[Check, ...]) -> dict[str, list[str]]:
    """Return the columns of the failed checks by table."""
    columns: dict[str, list[str]] = {}
    for c in checks:
        columns.setdefault(c.table, []).append(c.column)
    return columns


def test_a_test_image_in_the_training_split_is_refused(tiny: TinyFactory, tmp_path: Path):
    arrays = bars(120, 30, 3, (9, 7))
    arrays["test-images"][[5, 8]] = arrays["train-images"][[2, 5]]
    (leaked,) = verdict(tiny(arrays=arrays), tmp_path).failures
    assert (leaked.column, leaked.rows, leaked.observed) == ("leaked", (5, 8), "2 of 30 rows, 6.667%")


def test_an_image_that_occurs_twice_is_a_warning(tiny: TinyFactory, tmp_path: Path):
    arrays = bars(120, 30, 3, (9, 7))
    arrays["test-images"][7] = arrays["test-images"][4]
    record = verdict(tiny(arrays=arrays), tmp_path)
    assert record.passed
    assert [(w.column, w.rows) for w in record.warnings] == [("duplicate", (7,))]


def test_each_warning_is_named_in_a_line_also_of_a_verdict_that_is_reused(
    tiny: TinyFactory, tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
):
    arrays = bars(120, 30, 3, (9, 7))
    arrays["test-images"][7] = arrays["test-images"][4]
    dataset = tiny(arrays=arrays)
    for reused in (False, True):
        caplog.clear()
        step = validate.fn(store, dataset, *decoded(dataset, tmp_path)).step
        assert (step.reused, step.summary.endswith("passed, 1 warning")) == (reused, True)
        (line,) = (one.getMessage() for one in caplog.records if one.levelname == "WARNING")
        assert line == (
            "tiny: warning: test (t10k-images-idx3-ubyte.gz): no image occurs twice, expected at most 1%, "
            "found 1 of 30 rows, 3.333% at row 7 (the manifest sets the limit in [limits] max_duplicates)"
        )


def test_an_image_with_two_labels_is_a_warning(tiny: TinyFactory, tmp_path: Path):
    arrays = bars(120, 30, 3, (9, 7))
    arrays["train-images"][7] = arrays["train-images"][3]
    record = verdict(tiny(arrays=arrays), tmp_path)
    assert record.passed
    assert [(w.column, w.rows) for w in record.warnings] == [("conflict", (3, 7))]


def test_a_large_class_is_a_warning(tiny: TinyFactory, tmp_path: Path):
    arrays = bars(120, 30, 3, (9, 7))
    rows = np.r_[np.flatnonzero(arrays["train-labels"] == 0), np.arange(30)]
    arrays |= {role: arrays[role][rows] for role in ("train-images", "train-labels")}
    arrays["train-images"][:40, 8] = np.arange(40)[:, None]
    record = verdict(tiny(arrays=arrays), tmp_path)
    assert record.passed
    assert [(w.column, w.observed) for w in record.warnings] == [("imbalance", "5 (classes 1, 2)")]


def test_pixels_that_never_vary_are_accepted(tiny: TinyFactory, tmp_path: Path):
    arrays = bars(120, 30, 3, (9, 7))
    for role in ("train-images", "test-images"):
        arrays[role][:, :, 3] = 17
    record = verdict(tiny(arrays=arrays), tmp_path)
    assert record.passed
    assert not record.warnings


@pytest.mark.parametrize("rows", [1, 2])
def test_too_few_rows_are_refused_in_words(rows: int, tiny: TinyFactory, tmp_path: Path):
    dataset = tiny(train=rows, test=rows)
    message = refusal(dataset, verdict(dataset, tmp_path))
    assert (
        f"train (train-images-idx3-ubyte.gz): enough rows for every class, expected at least 3, found {rows}" in message
    )
    assert "every class is present, expected all of 0 to 2, found class" in message


def test_one_row_per_class_is_enough(tiny: TinyFactory, tmp_path: Path):
    assert verdict(tiny(train=3, test=3), tmp_path).passed


def test_other_bytes_than_the_published_are_refused(tiny: TinyFactory, tmp_path: Path):
    dataset = tiny(manifest=f'[archives.test-labels]\npayload_sha256 = "{"0" * 64}"\n')
    (failure,) = verdict(dataset, tmp_path).failures
    assert (failure.table, failure.column) == ("archives", "labels_found")
    assert failure.observed.endswith("instead of 000000000000…")


def test_a_file_of_another_run_is_refused(tiny: TinyFactory, tmp_path: Path):
    dataset = tiny()
    train, test = decoded(dataset, tmp_path)
    record = judge(dataset, train, replace(test, digest="f" * 64, rows=31), tmp_path)
    assert failed(record.failures) == {"archives": ["rows_found", "content_found"]}


def test_clean_mnist_passes_without_a_warning(mnist_dir: Path, tmp_path: Path):
    mnist = replace(catalog.find("mnist"), ink="bright")
    record = judge(mnist, *splits(mnist, mnist_dir, tmp_path / "splits"), tmp_path)
    assert failed(tuple(c for c in record.checks if not c.passed)) == {}
    assert record.passed
    assert [sum(record.class_counts[name]) for name in ("train", "test")] == [60_000, 10_000]


@pytest.fixture
def digits(tmp_path: Path) -> tuple[Dataset, Split, Split]:
    dataset = catalog.find("digits")
    embedded.write(dataset, tmp_path / "inbox")
    return dataset, *splits(dataset, tmp_path / "inbox", tmp_path / "splits")


def test_clean_digits_pass_without_a_warning(digits: tuple[Dataset, Split, Split], tmp_path: Path):
    record = judge(*digits, tmp_path)
    assert record.passed
    assert not record.warnings


def inverted(arrays: Arrays, *of: str) -> Arrays:
    return {role: 255 - array if role in of else array for role, array in arrays.items()}


IMAGES = ("train-images", "test-images")


@pytest.mark.parametrize(
    ("ink", "inverted_splits", "refused_splits"),
    [
        ("bright", (), set()),
        ("bright", IMAGES, {"train", "test"}),
        ("bright", ("test-images",), {"test"}),
        ("dark", (), {"train", "test"}),
        ("dark", IMAGES, set()),
        ("dark", ("test-images",), {"train"}),
    ],
)
def test_a_split_whose_border_contradicts_the_ink_is_refused(
    tiny: TinyFactory, tmp_path: Path, ink: str, inverted_splits: tuple[str, ...], refused_splits: set[str]
):
    dataset = tiny(arrays=inverted(bars(120, 30, 3, (9, 7)), *inverted_splits), manifest=f'ink = "{ink}"\n')
    record = verdict(dataset, tmp_path)
    assert {c.table for c in record.checks if c.column == "ground"} == {"train", "test"}
    assert {c.table for c in record.failures if c.column == "ground"} == refused_splits
    if refused_splits:
        half = "darker half of the pixel range, expected at most" if ink == "bright" else "brighter half"
        assert half in refusal(dataset, record)
        assert re.search(r"change .*\bink\b.* in the manifest", refusal(dataset, record))


def test_ink_that_is_not_declared_is_neither_checked_nor_in_the_key(store: Store, tiny: TinyFactory, tmp_path: Path):
    dataset = tiny()
    plain = validate.fn(store, dataset, *decoded(dataset, tmp_path))
    assert "ground" not in {check.column for check in plain.record.checks}
    assert "ink" not in store.made_from("tiny", "validate", plain.record.entry.key)["parameters"]
    declared = tiny(manifest='ink = "bright"\n')
    inked = validate.fn(store, declared, *decoded(declared, tmp_path))
    assert inked.step.reason == "ink none → bright"
    assert len(inked.record.checks) == len(plain.record.checks) + 2


def test_the_ink_of_digits_is_bright(digits: tuple[Dataset, Split, Split], tmp_path: Path):
    dataset, *both = digits
    assert judge(replace(dataset, ink="bright"), *both, tmp_path).passed
    record = judge(replace(dataset, ink="dark"), *both, tmp_path)
    assert failed(record.failures) == {"train": ["ground"], "test": ["ground"]}


def test_step_says_how_many_checks_passed(store: Store, digits: tuple[Dataset, Split, Split]):
    result = validate.fn(store, *digits)
    assert result.step.summary == f"{len(result.record.checks)} checks on 1,797 rows passed"
    assert not result.step.reused
    assert validate.fn(store, *digits).step.reused


def test_summary_of_every_row_is_kept(store: Store, digits: tuple[Dataset, Split, Split]):
    table = pq.read_table(validate.fn(store, *digits).record.summary)
    assert table.column_names == ["split", *summary.IMAGE_COLUMNS]
    assert table.column("split").to_pylist() == ["train"] * 1437 + ["test"] * 360


def test_a_table_in_many_parts_gives_the_same_verdict_and_summary(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arrays = bars(20_000, 9_000, 3, (9, 7))
    # Faults whose two halves are in different parts, and one in the last part.
    arrays["train-images"][19_000] = arrays["train-images"][6]
    arrays["test-images"][8_990] = arrays["train-images"][9_001]
    arrays["test-labels"][[5, 8_700]] = 9
    dataset = tiny(arrays=arrays)
    two_splits = decoded(dataset, tmp_path)
    at_once, in_parts = tmp_path / "at once", tmp_path / "in parts"
    for folder in (at_once, in_parts):
        folder.mkdir()
    whole = judge(dataset, *two_splits, at_once)
    monkeypatch.setattr(image_table, "TABLE_ROWS", 1)
    parts = judge(dataset, *two_splits, in_parts)
    assert replace(parts, entry=whole.entry) == whole
    assert {c.column: c.rows for c in whole.failures} == {"label": (5, 8_700), "leaked": (8_990,)}
    assert {c.column: c.rows for c in whole.warnings} == {"conflict": (6, 19_000)}
    assert {c.rows for c in whole.checks if c.column == "duplicate"} == {(19_000,), ()}
    assert pq.ParquetFile(in_parts / "summary.parquet").num_row_groups == 5
    assert pq.read_table(in_parts / "summary.parquet").equals(pq.read_table(at_once / "summary.parquet"))


@pytest.fixture
def bad(tiny: TinyFactory, tmp_path: Path) -> tuple[Dataset, Split, Split]:
    """A data set with three labels that are no class, and a warning."""
    arrays = bars(120, 30, 3, (9, 7))
    arrays["test-labels"][[3, 11, 12]] = (255, 77, 255)
    arrays["test-images"][2] = arrays["test-images"][20]
    dataset = tiny(arrays=arrays)
    return dataset, *decoded(dataset, tmp_path)


def refused(store: Store, bad: tuple[Dataset, Split, Split]) -> ValidationFailed:
    with pytest.raises(ValidationFailed) as caught:
        validate.fn(store, *bad)
    return caught.value


def test_refusal_is_a_sentence_with_data_set_file_limit_found_rows_and_remedy(
    store: Store, bad: tuple[Dataset, Split, Split]
):
    error = refused(store, bad)
    critical = sum(c.severity == "critical" for c in error.validation.checks)  # type: ignore[union-attr]
    assert str(error) == (
        f"tiny: expected {critical} critical checks to hold; 1 failed: test (t10k-labels-idx1-ubyte.gz): "
        "labels are classes, expected 0 to 2, found 3 of 30 rows, 10%: 255, 77 at rows 3, 11, 12; "
        "correct the archives, set these rows aside with --quarantine label, or, if this data is intended, change "
        "classes and labels in the manifest "
        f"{bad[0].manifest}"
    )


def test_refusal_carries_the_verdict_and_the_step(store: Store, bad: tuple[Dataset, Split, Split]):
    error = pickle.loads(pickle.dumps(refused(store, bad)))
    assert error.exit_code == 3
    assert [c.column for c in error.validation.failures] == ["label"]
    assert error.step.summary == f"1 of {len(error.validation.checks)} checks on 150 rows failed, 1 warning"


def test_the_same_bad_data_is_refused_again_from_the_kept_verdict(store: Store, bad: tuple[Dataset, Split, Split]):
    first, second = refused(store, bad), refused(store, bad)
    assert (first.step.reused, second.step.reused) == (False, True)  # type: ignore[union-attr]
    assert second.validation == first.validation
    assert str(second) == str(first)


def test_at_most_twenty_rows_are_named(tiny: TinyFactory, tmp_path: Path):
    labels = np.full(30, 9, np.uint8)
    labels[:3] = range(3)
    images = bars(120, 30, 3, (9, 7))["test-images"]
    images[3:] = 0
    dataset = tiny(arrays={"test-labels": labels, "test-images": images})
    record = verdict(dataset, tmp_path)
    assert [len(c.rows) for c in record.failures if c.rows] == [20, 20]
    message = refusal(dataset, record)
    assert "at rows 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22;" in message
    assert message.count(" at row") == 1


def test_verdict_is_shown_before_it_stops_the_run(
    store: Store, bad: tuple[Dataset, Split, Split], monkeypatch: pytest.MonkeyPatch
):
    shown: list[tuple[Any, ...]] = []
    monkeypatch.setattr(artifacts, "show_table", lambda *arguments: shown.append(arguments))
    error = refused(store, bad)
    ((key, rows, description),) = shown
    assert key == "checks-tiny"
    assert description == error.step.summary  # type: ignore[union-attr]
    assert [row["verdict"] for row in rows[:3]] == ["FAILED", "warning", "passed"]
    assert rows[0]["first rows"] == "3, 11, 12"
    assert all(isinstance(value, str) for row in rows for value in row.values())


def test_a_changed_limit_is_a_new_verdict_and_says_so(store: Store, bad: tuple[Dataset, Split, Split]):
    refused(store, bad)
    dataset, *both = bad
    changed = replace(dataset, limits=replace(dataset.limits, max_blank=0.5))
    error = refused(store, (changed, *both))  # type: ignore[arg-type]
    assert error.step.reason == "max_blank 0 → 0.5"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "expectation",
    [
        Expectation("broken", "ExpectColumnMeanToBeBetween", {"column": "nowhere", "min_value": 0}, "0"),
        Expectation("broken", "ExpectMiracle", {}, "0"),
        None,
    ],
    ids=["metric fails", "Great Expectations raises", "empty suite"],
)
def test_no_verdict_is_kept_when_checking_itself_fails(
    expectation: Expectation | None,
    store: Store,
    digits: tuple[Dataset, Split, Split],
    monkeypatch: pytest.MonkeyPatch,
):
    suite = Suite("test", "row", (expectation,) if expectation else ())
    with monkeypatch.context() as patched:
        patched.setattr(suites, "images", lambda dataset, split: suite)
        with pytest.raises((IdxflowError, AttributeError)) as caught:
            validate.fn(store, *digits)
    assert not isinstance(caught.value, ValidationFailed)
    result: Done[Validation] = validate.fn(store, *digits)
    assert result.record.passed
    assert not result.step.reused


AGAIN = """
import pickle, sys
from pathlib import Path
from storage.errors import ValidationFailed
from storage.store import Store
from tasks.validate import validate
store, sets = pickle.loads(Path(sys.argv[1]).read_bytes())
for dataset, train, test in sets:
    try:
        step = validate.fn(store, dataset, train, test).step
    except ValidationFailed as error:
        step = error.step
    print(step.reused, "failed" in step.summary)
print(sorted(sys.modules.keys() & {"great_expectations", "pandas", "tensorflow"}))
"""


def test_a_kept_verdict_needs_neither_great_expectations_nor_pandas(
    store: Store, digits: tuple[Dataset, Split, Split], bad: tuple[Dataset, Split, Split], tmp_path: Path
):
    validate.fn(store, *digits)
    refused(store, bad)
    (tmp_path / "arguments").write_bytes(pickle.dumps((store, [digits, bad])))
    process = subprocess.run(
        [sys.executable, "-c", AGAIN, str(tmp_path / "arguments")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.stdout.splitlines() == ["True False", "True True", "[]"], process.stderr


def test_a_refusal_of_several_archives_does_not_blame_the_first(tmp_path: Path):
    dataset = write_listed(tmp_path, bars(30, 9, 3, (9, 7)), (10, 10, 10))
    check = Check("train", "no row is blank", "", "blank", "0%", "3%", "critical", False, (25,), "[limits] max_blank")
    validation = Validation(FolderEntry(tmp_path), False, "", (check,), {})
    assert (
        "train (train-images-000-idx3-ubyte.gz and 2 more, with rows counted through all): no row is blank, "
        "expected 0%, found 3% at row 25; correct the archives"
    ) in refusal(dataset, validation)
