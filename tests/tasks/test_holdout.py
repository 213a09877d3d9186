"""Rows held out: of every class in proportion, copies on one side, the same for the same seed; also without memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from storage.datasets.training import TrainingConfig, training_config
from storage.errors import DamagedEntry, TrainingFailed
from storage.formats import parquet
from storage.records import Normalization
from storage.store import Store
from tasks.model import holdout, training_rows
from tasks.normalize import normalize
from tests.conftest import TinyFactory, bars
from tests.support.models import split, trained
from tests.support.numbered_rows import SMALL, numbered, numbers


@pytest.mark.parametrize(
    ("rows", "fraction", "fitted"),
    [
        (60_000, 0.1, 54_000),
        (60_000, 0, 60_000),
        (1437, 0.1, 1293),
        (1, 0.1, 0),
        (3, 0.5, 1),
    ],
)
def test_as_many_rows_are_held_out_as_keras_does(rows: int, fraction: float, fitted: int):
    assert holdout.fitted_rows(rows, fraction) == fitted


@settings(deadline=None, max_examples=300)
@given(
    images=some.lists(some.tuples(some.integers(0, 40), some.integers(0, 4)), min_size=1, max_size=150),
    fraction=some.floats(0.01, 0.9),
    seed=some.integers(0, 5),
)
def test_every_class_is_fitted_and_held_out_where_its_rows_allow(images, fraction: float, seed: int):
    digests, labels = np.array(images, np.int64).T
    labels = labels.astype(np.uint8)
    held_rows = len(labels) - holdout.fitted_rows(len(labels), fraction)
    if not held_rows:
        return
    held = holdout.drawn(labels, digests, held_rows, seed)
    assert not set(digests[held]) & set(digests[~held])
    assert set(labels[~held]) == set(labels)
    for label in set(labels):
        own = set(digests[labels == label])
        shared = {image for image in own if len(set(labels[digests == image])) > 1}
        # An image with two labels may have to stay for the other one.
        if len(own) > 1 and not shared:
            assert held[labels == label].any()
    np.testing.assert_array_equal(held, holdout.drawn(labels, digests, held_rows, seed))


@pytest.mark.parametrize("order", ["mixed", "sorted"])
def test_classes_are_held_out_in_proportion_whatever_the_order_of_the_rows(order: str):
    labels = np.repeat(np.arange(4), (400, 300, 200, 100)).astype(np.uint8)
    if order == "mixed":
        labels = np.random.default_rng(0).permutation(labels)
    held = holdout.drawn(labels, np.arange(1000) * 7, 100, 1)
    assert np.bincount(labels[held]).tolist() == [40, 30, 20, 10]
    assert (held != holdout.drawn(labels, np.arange(1000) * 7, 100, 2)).any()


def test_a_split_sorted_by_class_is_learned_with_all_its_classes(store: Store, tiny: TinyFactory):
    """By its tail, the last class would be held out whole."""
    arrays = bars(300, 30, 3, (9, 7))
    order = np.argsort(arrays["train-labels"], kind="stable")
    dataset = tiny(train=300, arrays={f"train-{kind}": arrays[f"train-{kind}"][order] for kind in ("images", "labels")})
    result = trained(store, dataset, epochs=6)
    assert (result.record.fitted_rows, result.record.validation_rows) == (270, 30)
    assert result.record.train_accuracy > 0.95
    with pytest.raises(TrainingFailed, match="found all rows of bar 2 held out, .* with --set held_out=stratified"):
        trained(store, dataset, validation_fraction=0.4, held_out="tail")


def test_the_tutorial_holds_out_the_last_rows(store: Store, tiny: TinyFactory):
    dataset = tiny()
    config = training_config(dataset, "tutorial")
    record = normalize.fn(store, dataset, split(store, dataset, "train"), config).record
    assert holdout.read(record.held_out, 120).tolist() == [False] * 108 + [True] * 12
    assert (record.rows, record.held_out_rows) == (120, 12)


def test_another_seed_holds_out_others_and_nothing_else_does(store: Store, tiny: TinyFactory):
    dataset = tiny()
    train = split(store, dataset, "train")

    def normalized(**parameters) -> Normalization:
        return normalize.fn(store, dataset, train, TrainingConfig(**parameters)).record

    first = normalized()
    assert normalized(epochs=9, hidden=()) == first
    assert normalized(seed=2).digest != first.digest
    assert normalized(seed=2, held_out="tail") == normalized(held_out="tail")


def test_the_statistics_are_those_of_the_fitted_rows(store: Store, tiny: TinyFactory):
    dataset = tiny()
    train = split(store, dataset, "train")
    record = normalize.fn(store, dataset, train, TrainingConfig()).record
    held, (images, _) = holdout.read(record.held_out, 120), parquet.read(train.file)
    assert record.mean_of_means == pytest.approx((images[~held] / 127.5 - 1).mean())
    assert record.rows == 108


@pytest.mark.parametrize("memory", ["5KB", "1MB"])
def test_in_shards_as_in_memory_epochs_take_the_fitted_rows_and_scores_the_others(tmp_path: Path, memory: str):
    train, config = numbered(tmp_path), SMALL.model_copy(update={"memory": memory})
    _, labels = parquet.read(train.file)
    held = holdout.drawn(labels, np.arange(1000), 100, 1)
    with training_rows.opened("tiny", train, config, held, tmp_path) as opened:
        for epoch in (1, 2):
            passed = sorted(number for window in opened.windows(epoch) for number in numbers(window))
            assert passed == np.flatnonzero(~held).tolist()
        pieces = [
            (images.numpy().astype(int), piece_labels.numpy()) for images, piece_labels in opened.pieces(900, 1000)
        ]
        scored = np.concatenate([images[:, 0] * 256 + images[:, 1] for images, _ in pieces])
        assert sorted(scored) == np.flatnonzero(held).tolist()
        assert np.concatenate([piece_labels for _, piece_labels in pieces]).tolist() == labels[scored].tolist()
        assert sum(len(piece_labels) for _, piece_labels in opened.pieces(0, 1000)) == 1000


def test_a_choice_that_cannot_be_read_is_refused(tmp_path: Path):
    holdout.write(tmp_path / "x.npz", np.arange(20) > 12)
    assert holdout.read(tmp_path / "x.npz", 20).sum() == 7
    with pytest.raises(DamagedEntry, match=r"held_out of uint8 and shape \(4,\)"):
        holdout.read(tmp_path / "x.npz", 30)
