"""Synthetic archives: the same for the same seed whatever the block size, and something to learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import scaling, synthetic
from storage.datasets import catalog
from storage.formats import idx
from storage.records import Archive, FolderEntry, Split, SplitName
from tasks.decoding.writing import write_split
from tasks.validate import judge

ROWS = {"train": 3000, "test": 500}


def archives(folder: Path) -> dict[str, bytes]:
    return {role: (folder / file).read_bytes() for role, file in catalog.DEFAULT_FILES.items()}


@pytest.fixture(scope="module")
def archives_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("synthetic"), ROWS).parent


@pytest.mark.parametrize("units", [2, 5])
def test_the_same_seed_gives_the_same_bytes_however_many_are_made_at_a_time(
    units: int, archives_folder: Path, tmp_path: Path
):
    synthetic.write(tmp_path, ROWS, units=units)
    assert archives(tmp_path) == archives(archives_folder)


def test_another_seed_gives_other_images(archives_folder: Path, tmp_path: Path):
    synthetic.write(tmp_path, ROWS, seed=2)
    ours, others = archives(archives_folder), archives(tmp_path)
    assert not [role for role in ours if ours[role] == others[role]]


def test_more_images_begin_with_the_same_ones(archives_folder: Path, tmp_path: Path):
    synthetic.write(tmp_path, {"train": 1000, "test": 1400})
    for role in catalog.ROLES:
        few, more = sorted(
            (idx.read(folder / catalog.DEFAULT_FILES[role]) for folder in (archives_folder, tmp_path)), key=len
        )
        np.testing.assert_array_equal(few, more[: len(few)])


@pytest.mark.parametrize("side", [28, 9])
def test_all_checks_pass_without_a_warning(side: int, tmp_path: Path):
    dataset = catalog.read(synthetic.write(tmp_path, ROWS, side=side))
    assert dataset.image_shape == (side, side)

    def split(name: SplitName) -> Split:
        images, labels = (
            Archive(FolderEntry(tmp_path), f"{name}-{kind}", dataset.archive(f"{name}-{kind}").file, 0, "", "")
            for kind in ("images", "labels")
        )
        return write_split(dataset, name, images, labels, tmp_path)

    validation = judge(dataset, split("train"), split("test"), tmp_path)
    assert [check.name for check in validation.checks if not check.passed] == []


def test_a_nearest_neighbour_tells_most_test_images(archives_folder: Path):
    images, labels, test, answers = (idx.read(archives_folder / catalog.DEFAULT_FILES[role]) for role in catalog.ROLES)
    flat, queries = images.reshape(len(images), -1).astype(np.float32), test.reshape(len(test), -1).astype(np.float32)
    nearest = ((flat**2).sum(axis=1) - 2 * queries @ flat.T).argmin(axis=1)
    assert 0.85 < (labels[nearest] == answers).mean() < 1


def test_no_image_occurs_twice_or_in_both_splits(archives_folder: Path):
    images = np.concatenate([idx.read(archives_folder / catalog.DEFAULT_FILES[f"{split}-images"]) for split in ROWS])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


@pytest.mark.parametrize("slope", [0.5, 1, 2])
def test_the_exponent_is_found(slope: float):
    rows = [1_000, 10_000, 100_000]
    assert scaling.exponent(rows, [3 * n**slope for n in rows]) == pytest.approx(slope)
    assert scaling.exponent(rows, [3 * rows[0] ** slope, 5 * rows[1] ** slope, 3 * rows[2] ** slope]) == pytest.approx(
        slope
    )


def test_one_size_has_no_exponent():
    assert np.isnan(scaling.exponent([1000], [2.0]))


def test_memory_that_is_taken_and_given_back_is_seen():
    measured = scaling.measured(lambda: len(b"\1" * 100_000_000))
    assert 95_000_000 < measured.above < 120_000_000
    assert scaling.measured(lambda: None).above < 10_000_000
