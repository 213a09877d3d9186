"""Normalize: exact statistics of the rows that the configuration names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage.datasets import catalog
from storage.datasets.training import TrainingConfig
from storage.errors import DamagedEntry, TrainingFailed
from storage.formats import parquet
from storage.store import Store
from tasks.model.holdout import tail
from tasks.model.scaling import Statistics, apply, read, write
from tasks.normalize import normalize, statistics
from tests.conftest import TinyFactory, bars
from tests.support.models import split

DEFAULT = TrainingConfig()
TAIL = TrainingConfig(held_out="tail")


def reference(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The tutorial's own formula, on float64: scaled rows, their mean per pixel, one standard deviation."""
    scaled = ((images.reshape(len(images), -1) / 255) - 0.5) * 2
    return scaled, scaled.mean(axis=0), float(scaled.std())


@pytest.mark.parametrize(("rows", "used"), [(120, 108), (20_000, 20_000), (20_000, 8192), (20_000, 8193), (5, 1)])
def test_statistics_are_those_of_numpy(store: Store, tiny: TinyFactory, rows: int, used: int):
    train = split(store, tiny(train=rows), "train")
    _, mean, std = reference(bars(rows, 30, 3, (9, 7))["train-images"][:used])
    measured = statistics(train, tail(rows, rows - used))
    np.testing.assert_allclose(measured.mean, mean, rtol=0, atol=1e-12)
    assert measured.std == pytest.approx(std, abs=1e-12)


def test_statistics_of_the_real_mnist(store: Store, mnist_dir: Path):
    dataset = catalog.find("mnist")
    train = split(store, dataset, "train", mnist_dir)
    result = normalize.fn(store, dataset, train, TAIL)
    measured = read(result.record.file, 784)
    _, mean, std = reference(parquet.read(train.file)[0][:54_000])
    np.testing.assert_allclose(measured.mean, mean, rtol=0, atol=1e-9)
    assert measured.std == pytest.approx(std, abs=1e-9)
    assert result.record.mean_of_means == pytest.approx(mean.mean(), abs=1e-9)
    assert result.step.summary == "mean -0.7386, standard deviation 0.6164 over 54,000 rows"


@pytest.mark.parametrize(
    ("parameters", "rows"),
    [
        ({}, 108),
        ({"normalize_on": "all"}, 120),
        ({"validation_fraction": 0.5}, 60),
        ({"validation_fraction": 0}, 120),
    ],
)
def test_the_rows_are_those_that_are_fitted_or_all(store: Store, tiny: TinyFactory, parameters: dict, rows: int):
    dataset = tiny()
    config = TrainingConfig(**parameters, held_out="tail")
    result = normalize.fn(store, dataset, split(store, dataset, "train"), config)
    assert result.record.rows == rows
    _, mean, _ = reference(bars(120, 30, 3, (9, 7))["train-images"][:rows])
    np.testing.assert_allclose(read(result.record.file, 63).mean, mean, atol=1e-12)


def test_only_other_rows_make_it_run_again(store: Store, tiny: TinyFactory):
    dataset = tiny()
    train = split(store, dataset, "train")
    first = normalize.fn(store, dataset, train, DEFAULT)
    assert normalize.fn(store, dataset, train, TrainingConfig(epochs=7, hidden=())).step.reused
    again = normalize.fn(store, dataset, train, TrainingConfig(validation_fraction=0.2))
    assert (again.step.reused, again.step.reason) == (False, "validation_fraction 0.1 → 0.2")
    assert again.record.digest != first.record.digest


def test_the_same_numbers_are_the_same_bytes_and_digest(tmp_path: Path):
    values = Statistics(np.linspace(-1, 1, 5), 0.5)
    assert write(tmp_path / "a.npz", values) == write(tmp_path / "b.npz", values)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert write(tmp_path / "b.npz", Statistics(values.mean, 0.25)) != write(tmp_path / "a.npz", values)


def test_applied_it_is_the_formula():
    images = bars(500, 30, 3, (9, 7))["train-images"]
    scaled, mean, std = reference(images)
    applied = apply(images, Statistics(mean, std))
    assert (applied.dtype, applied.shape) == (np.float32, (500, 63))
    np.testing.assert_allclose(applied, (scaled - mean) / std, atol=1e-6)
    assert abs(applied.mean()) < 1e-6


def test_pixels_that_never_differ_are_refused(store: Store, tiny: TinyFactory):
    dataset = tiny(arrays={"train-images": np.full((120, 9, 7), 7, np.uint8)})
    with pytest.raises(
        TrainingFailed, match=r"tiny: expected pixels that differ; all pixels of the 120 training .* are 7"
    ):
        normalize.fn(store, dataset, split(store, dataset, "train"), DEFAULT)
    assert list(store.entries("tiny", "normalize").glob("[!.]*")) == []


def test_a_fraction_that_leaves_no_row_is_refused(store: Store, tiny: TinyFactory):
    dataset = tiny(train=1)
    with pytest.raises(
        TrainingFailed, match=r"at least 1 row .* 1 training rows, of which a validation_fraction of 0.1"
    ):
        normalize.fn(store, dataset, split(store, dataset, "train"), TAIL)


def test_patience_without_a_held_out_row_is_refused(store: Store, tiny: TinyFactory):
    dataset = tiny()
    with pytest.raises(TrainingFailed, match=r"held-out rows, because patience is 2; found 120 .*1e-17 holds out 0"):
        normalize.fn(
            store, dataset, split(store, dataset, "train"), TrainingConfig(patience=2, validation_fraction=1e-17)
        )


def test_statistics_of_another_image_size_are_refused(tmp_path: Path):
    write(tmp_path / "x.npz", Statistics(np.zeros(5), 0.5))
    with pytest.raises(DamagedEntry, match=r"array mean of float64 and shape \(6,\)"):
        read(tmp_path / "x.npz", 6)
