"""Bad data in whole archives: each is refused by its check, and the sentence names the limit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from expectations import run_suites, suites, summary
from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.formats import idx
from storage.records import Archive, Check, FolderEntry, Split, SplitName, Validation
from tasks.decoding.writing import write_split
from tasks.ui.verdicts import refusal
from tasks.validate import judge
from tests.support import badfiles
from tests.support.badfiles import BRIGHTNESS, CLASSES, GOOD, MEANINGLESS, Arrays, assert_says, replaced, spoiled


def judged(folder: Path, changes: Mapping[str, np.ndarray], manifest: str = BRIGHTNESS) -> tuple[Dataset, Validation]:
    """Decode and check the good data set with some arrays replaced."""
    dataset = badfiles.write(folder / "in", changes, manifest)
    source = folder / "in"

    def archive(role: str) -> Archive:
        return Archive(FolderEntry(source), role, dataset.archive(role).file, 0, "", "")

    def split(name: SplitName) -> Split:
        return write_split(dataset, name, archive(f"{name}-images"), archive(f"{name}-labels"), folder)

    return dataset, judge(dataset, split("train"), split("test"), folder)


def failed(validation: Validation, table: str) -> set[str]:
    """Return the columns of the critical checks that fail in `table`."""
    return {c.column for c in validation.failures if c.table == table}


def test_the_good_data_passes_without_a_warning(tmp_path: Path):
    _, validation = judged(tmp_path, {})
    assert validation.passed
    assert not validation.warnings


@pytest.mark.parametrize("what", MEANINGLESS)
def test_a_spoiled_test_split_is_refused_and_the_limit_named(what: str, tmp_path: Path):
    case = MEANINGLESS[what]
    dataset, validation = judged(tmp_path, spoiled(what, "test"))
    assert not validation.passed
    assert (failed(validation, "test"), failed(validation, "train")) == (case.test, set())
    assert_says(refusal(dataset, validation), "bars: ", "t10k-", *case.keys, str(dataset.manifest))


@pytest.mark.parametrize("what", MEANINGLESS)
def test_a_spoiled_training_split_is_refused(what: str, tmp_path: Path):
    case = MEANINGLESS[what]
    dataset, validation = judged(tmp_path, spoiled(what, "train"))
    assert not validation.passed
    assert (failed(validation, "train"), failed(validation, "test")) == case.train
    assert_says(refusal(dataset, validation), "bars: ", "-idx")


def test_both_splits_inverted_alike_are_refused_by_their_brightness(tmp_path: Path):
    _, validation = judged(tmp_path, spoiled("images inverted", "train") | spoiled("images inverted", "test"))
    assert (failed(validation, "train"), failed(validation, "test")) == ({"mean"}, {"mean"})


@pytest.mark.parametrize("label", [3, 10, 255])
def test_one_label_that_is_no_class_is_refused_with_its_row(label: int, tmp_path: Path):
    dataset, validation = judged(tmp_path, {"test-labels": replaced(GOOD["test-labels"], 7, label)})
    assert failed(validation, "test") == {"label"}
    assert_says(refusal(dataset, validation), f"expected 0 to 2, found 1 of 30 rows, 3.333%: {label} at row 7; ")


def test_labels_of_the_alphabet_are_refused_with_their_first_rows(tmp_path: Path):
    dataset, validation = judged(tmp_path, {"test-labels": (np.arange(30) % 26 + 1).astype(np.uint8)})
    assert {"label", "by_chance"} <= failed(validation, "test")
    assert_says(refusal(dataset, validation), "found 26 of 30 rows, 86.67%: 3, 4, 5, 6, 7, … at rows 2, 3, ")
    assert max(len(c.rows) for c in validation.failures) == 20


def test_a_leaked_image_is_refused_until_the_limit_that_is_named_allows_it(tmp_path: Path):
    images = GOOD["test-images"].copy()
    images[[5, 8]] = GOOD["train-images"][[2, 5]]
    dataset, validation = judged(tmp_path, {"test-images": images})
    assert failed(validation, "test") == {"leaked"}
    assert_says(
        refusal(dataset, validation), "t10k-images-idx3-ubyte.gz", "at rows 5, 8", "change [limits] max_leaked in"
    )
    (tmp_path / "more").mkdir()
    assert judged(tmp_path / "more", {"test-images": images}, "[limits]\nmax_leaked = 0.07\n")[1].passed


def test_pixels_of_0_to_16_pass_once_the_limits_that_are_named_are_set(tmp_path: Path):
    changes = {role: GOOD[role] >> 4 for role in ("train-images", "test-images")}
    dataset, validation = judged(tmp_path, changes, "")
    assert (failed(validation, "train"), failed(validation, "test")) == ({"pixel_max"}, {"pixel_max"})
    assert_says(
        refusal(dataset, validation),
        "expected 129 to 255, found 15; ",
        f"if this data is intended, change [limits] min_pixel_max in the manifest {dataset.manifest}",
    )
    (tmp_path / "more").mkdir()
    assert judged(tmp_path / "more", changes, "[limits]\nmin_pixel_max = 15\n")[1].passed


def test_a_file_that_changed_on_the_way_is_no_matter_of_limits(tmp_path: Path):
    dataset, validation = judged(tmp_path, {}, f'[archives.test-labels]\npayload_sha256 = "{"0" * 64}"\n')
    assert failed(validation, "archives") == {"labels_found"}
    assert_says(refusal(dataset, validation), "change payload_sha256 in the manifest")


@pytest.fixture(scope="module")
def real(mnist_dir: Path) -> Arrays:
    return {role: idx.read(mnist_dir / file) for role, file in catalog.DEFAULT_FILES.items()}


@pytest.fixture(scope="module")
def real_train(real: Arrays) -> summary.Survey:
    """What the test split is measured against: class means and digests of the training split."""
    return summary.survey([(real["train-images"], real["train-labels"])], 10)


def real_checks(real_train: summary.Survey, images: np.ndarray, labels: np.ndarray) -> tuple[Check, ...]:
    dataset, blocks = catalog.find("mnist"), [(images, labels)]
    (part,) = summary.images(blocks, summary.survey(blocks, 10), real_train, len(labels))
    matches = summary.Matches()
    matches.add(part)
    tables = {
        suites.images: part,
        suites.match: summary.match_table(matches),
        suites.classes: summary.class_table(labels, 10),
    }
    return tuple(check for suite, table in tables.items() for check in run_suites.run(suite(dataset, "test"), [table]))


@pytest.mark.parametrize("what", [*MEANINGLESS, "truncated", "leaked"])
def test_a_spoiled_mnist_is_refused(what: str, real: Arrays, real_train: summary.Survey):
    if what in MEANINGLESS:
        changed, columns = spoiled(what, "test", real), MEANINGLESS[what].mnist
    elif what == "leaked":
        changed = {"test-images": np.r_[real["train-images"][:1], real["test-images"][1:]]}
        columns = {"leaked"}
    else:
        changed = {role: real[role][:9000] for role in ("test-images", "test-labels")}
        columns = {""}
    arrays = {**real, **changed}
    checks = real_checks(real_train, arrays["test-images"], arrays["test-labels"])
    assert {c.column for c in checks if not c.passed and c.severity == "critical"} == columns


def test_the_classes_of_the_corpus_are_those_of_its_manifest(tmp_path: Path):
    assert len(badfiles.write(tmp_path).classes) == CLASSES == len(np.unique(GOOD["test-labels"]))
