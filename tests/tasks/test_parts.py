"""Steps on a split in parts give what they give on the same rows in one file, whoever does the work."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest

from storage.datasets.catalog import Dataset
from storage.datasets.training import TrainingConfig
from storage.errors import DamagedEntry, DataRefused, TrainingFailed
from storage.formats import members, predictions
from storage.records import Evaluation, Normalization, PartSums, Split, TrainedModel
from storage.store import Store, load
from storage.verify import verify
from storage.workers.current import using
from tasks.confirm import confirm
from tasks.evaluate import evaluate
from tasks.model import holdout, training_rows
from tasks.model.fitting import Fitting
from tasks.model.holdout import Choice, HeldParts
from tasks.model.scaling import read
from tasks.normalize import normalize, statistics
from tasks.train import train
from tests.conftest import TinyFactory, bars
from tests.support.cloud_stores import Cloud
from tests.support.scattered_workers import ScatteredWorkers
from tests.support.split_in_parts import in_one_file, in_parts

ROWS, TEST_ROWS = 400, 90
CUTS = {1: (400,), 2: (16, 384), 7: (64, 1, 100, 15, 100, 20, 100)}
TEST_CUTS = {1: (90,), 2: (1, 89), 7: (16, 16, 1, 20, 7, 14, 16)}
TAIL = TrainingConfig(held_out="tail", epochs=3, batch_size=16, learning_rate=0.05)
DRAWN = TAIL.model_copy(update={"held_out": "stratified", "validation_fraction": 0.25})
SMALL = "15KB"
"""Memory for 48 rows at once."""


@pytest.fixture
def dataset(tiny: TinyFactory) -> Dataset:
    return tiny()


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    values = bars(ROWS, TEST_ROWS, 3, (9, 7))
    # Every sixth image has a copy in another part.
    images, labels = values["train-images"], values["train-labels"]
    images[300:366], labels[300:366] = images[:66], labels[:66]
    # Some labels are wrong, so that there are mistakes.
    values["test-labels"][::4] = 0
    return values


@pytest.fixture
def cut(store: Store, dataset: Dataset, arrays: dict[str, np.ndarray]) -> Callable[[int], Split]:
    """The training split in so many parts; 0: in one file."""

    def made(parts: int) -> Split:
        return divided(store, dataset, "train", arrays, CUTS.get(parts, ()))

    return made


def divided(store: Store, dataset: Dataset, name, arrays: dict[str, np.ndarray], sizes: tuple[int, ...]) -> Split:
    rows = arrays[f"{name}-images"], arrays[f"{name}-labels"]
    return in_parts(store, dataset, name, *rows, sizes) if sizes else in_one_file(store, dataset, name, *rows)


def trained(store: Store, dataset: Dataset, split: Split, config: TrainingConfig) -> TrainedModel:
    return train.fn(store, dataset, split, normalize.fn(store, dataset, split, config).record, config).record


# --- statistics and held-out rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", CUTS)
@pytest.mark.parametrize("parameters", [{}, {"normalize_on": "all"}, {"validation_fraction": 0}])
def test_statistics_are_to_the_byte_those_of_one_file(
    store: Store, dataset: Dataset, cut: Callable[[int], Split], parts: int, parameters: dict
):
    config = TAIL.model_copy(update=parameters)
    whole, divided = (normalize.fn(store, dataset, cut(n), config).record for n in (0, parts))
    assert divided.file.read_bytes() == whole.file.read_bytes()
    assert (divided.digest, divided.rows, divided.pixel_range, divided.held_out_rows) == (
        *(whole.digest, whole.rows, whole.pixel_range, whole.held_out_rows),
    )
    assert divided.parts == len(list(members.read(divided.entry, PartSums))) == parts


def held(normalization: Normalization, split: Split) -> np.ndarray:
    of_parts = holdout.held(normalization, split)
    assert isinstance(of_parts, HeldParts)
    return np.concatenate([of_parts.of(number) for number in range(split.parts)])


def test_drawn_rows_are_those_of_a_digest_and_the_statistics_are_of_the_others(
    store: Store, dataset: Dataset, cut: Callable[[int], Split], arrays: dict[str, np.ndarray]
):
    split = cut(7)
    record = normalize.fn(store, dataset, split, DRAWN).record
    chosen = held(record, split)
    assert chosen.sum() == record.held_out_rows == ROWS - record.rows
    expected = statistics(cut(0), chosen)
    np.testing.assert_array_equal(read(record.file, 63).mean, expected.mean)
    assert (record.std, record.pixel_range) == (expected.std, expected.pixel_range)
    by_image: dict[bytes, set[bool]] = {}
    for image, out in zip(arrays["train-images"], chosen.tolist(), strict=True):
        by_image.setdefault(image.tobytes(), set()).add(out)
    assert len(by_image) < ROWS, "no image has a copy"
    assert all(len(sides) == 1 for sides in by_image.values())
    # The same rows however they are divided; others for another seed.
    assert (held(normalize.fn(store, dataset, cut(2), DRAWN).record, cut(2)) == chosen).all()
    other = DRAWN.model_copy(update={"seed": 9})
    assert (held(normalize.fn(store, dataset, split, other).record, split) != chosen).any()


def test_the_share_that_a_digest_selects_is_the_fraction():
    images = np.random.default_rng(5).integers(0, 256, (20_000, 3, 4), np.uint8)
    for fraction in (0.01, 0.1, 0.9):
        chosen = Choice(fraction=fraction, seed=1).of(images, 0, len(images))
        assert abs(chosen.mean() - fraction) < 5 * math.sqrt(fraction * (1 - fraction) / len(images))
        # A smaller fraction selects some of the same images.
        assert not (Choice(fraction=fraction / 2, seed=1).of(images, 0, len(images)) & ~chosen).any()


def test_a_part_keeps_its_sums_when_another_is_appended(store: Store, dataset: Dataset, arrays: dict[str, np.ndarray]):
    normalize.fn(store, dataset, divided(store, dataset, "train", arrays, (100, 100)), DRAWN)
    more = normalize.fn(store, dataset, divided(store, dataset, "train", arrays, (100, 100, 200)), DRAWN).step
    assert more.summary.endswith(", in 3 parts, 1 new")
    again = normalize.fn(store, dataset, divided(store, dataset, "train", arrays, (100, 100, 200)), DRAWN).step
    assert (again.reused, again.summary.endswith(", in 3 parts")) == (True, True)


def test_damaged_sums_of_a_part_are_made_again_alone(store: Store, dataset: Dataset, cut: Callable[[int], Split]):
    first = normalize.fn(store, dataset, cut(7), DRAWN).record
    before = first.file.read_bytes()
    damaged = list(members.read(first.entry, PartSums))[3].file
    damaged.chmod(0o644)
    damaged.write_bytes(b"damaged")
    again = normalize.fn(store, dataset, cut(7), DRAWN)
    assert (again.step.reused, again.step.reason) == (False, "1 new part")
    assert again.step.summary.endswith(", in 7 parts, 1 new")
    assert again.record.file.read_bytes() == before


@pytest.mark.remedies("tasks.model.holdout:check:3")
def test_a_class_of_which_chance_leaves_no_row_is_refused_and_another_seed_helps(
    store: Store, dataset: Dataset, arrays: dict[str, np.ndarray]
):
    labels = np.zeros(ROWS, np.uint8)
    labels[:2], labels[2:5] = 1, 2
    arrays = arrays | {"train-labels": labels}
    images = arrays["train-images"]
    images = np.random.default_rng(2).integers(0, 256, images.shape, np.uint8)
    split = divided(store, dataset, "train", arrays | {"train-images": images}, CUTS[2])
    bad = next(seed for seed in range(99) if Choice(fraction=0.5, seed=seed).of(images[:2], 0, ROWS).all())
    config = TrainingConfig(validation_fraction=0.5, seed=bad)
    with pytest.raises(TrainingFailed, match=rf"all rows of bar 1.* held out, .* chance .*--set seed={bad + 1}$"):
        normalize.fn(store, dataset, split, config)
    good = next(
        seed
        for seed in range(bad + 1, 99)
        if not any(Choice(fraction=0.5, seed=seed).of(images[rows], 0, ROWS).all() for rows in ([0, 1], [2, 3, 4]))
    )
    assert normalize.fn(store, dataset, split, config.model_copy(update={"seed": good})).record.held_out_rows


# --- training -----------------------------------------------------------------------------------------------------


def test_training_in_memory_is_to_the_bit_that_on_one_file(store: Store, dataset: Dataset, cut: Callable[[int], Split]):
    whole, *others = (trained(store, dataset, cut(parts), TAIL) for parts in (0, 1, 7))
    assert {model.weights_digest for model in others} == {whole.weights_digest}
    assert {(model.train_loss, model.train_accuracy) for model in others} == {(whole.train_loss, whole.train_accuracy)}
    assert len({model.entry.key for model in (whole, *others)}) == 3


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_rows.Parts, "__init__", partialmethod(training_rows.Parts.__init__, block=16))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("config", [TAIL, DRAWN, TAIL.model_copy(update={"validation_fraction": 0})])
def test_an_epoch_by_part_passes_over_every_fitted_row_once_in_another_order_each_time(
    store: Store, dataset: Dataset, tmp_path: Path, config: TrainingConfig
):
    images = np.random.default_rng(3).integers(0, 256, (ROWS, 9, 7), np.uint8)
    labels = (images[:, 0, 0] % 3).astype(np.uint8)
    split = in_parts(store, dataset, "train", images, labels, CUTS[7])
    normalization = normalize.fn(store, dataset, split, config).record
    small = config.model_copy(update={"memory": SMALL})
    held_out = held(normalization, split)
    fitted = sorted(image.tobytes() for image in images[~held_out])
    epochs = []
    for epoch in (1, 2, 1):
        with training_rows.opened("tiny", split, small, holdout.held(normalization, split), tmp_path) as rows:
            windows = list(rows.windows(epoch))
            assert {len(window.order) for window in windows} == rows.lengths
            assert max(len(window.order) for window in windows) <= 48
            assert [len(window.order) % 16 for window in windows].count(0) >= len(windows) - 1
            passed = [image.tobytes() for w in windows for image in w.images.numpy()[w.order]]
            for window in windows:
                np.testing.assert_array_equal(window.labels.numpy(), window.images.numpy()[:, 0] % 3)
            pieces = [image.tobytes() for some, _ in rows.pieces(len(fitted), ROWS) for image in some.numpy()]
            everything = [image.tobytes() for some, _ in rows.pieces(0, ROWS) for image in some.numpy()]
        assert sorted(passed) == fitted
        assert pieces == [image.tobytes() for image in images[held_out]]
        assert sorted(everything) == sorted(image.tobytes() for image in images)
        epochs.append(passed)
    assert epochs[0] == epochs[2] != epochs[1]


@pytest.mark.usefixtures("small_blocks")
def test_training_by_part_gives_the_same_weights_again_also_after_a_kill(
    store: Store, dataset: Dataset, cut: Callable[[int], Split], monkeypatch: pytest.MonkeyPatch
):
    config = DRAWN.model_copy(update={"memory": SMALL, "epochs": 6, "shift": 0.5, "rotate": 5.0})
    split, epoch = cut(7), Fitting.epoch
    unbroken = trained(store, dataset, split, config)
    assert unbroken.train_accuracy > 0.4
    shutil.rmtree(unbroken.entry.folder)
    monkeypatch.setattr("tasks.train.CHECKPOINT_SECONDS", 0)

    def ended(self: Fitting, number: int):
        if number == 4:
            raise KeyboardInterrupt
        return epoch(self, number)

    with monkeypatch.context() as broken:
        broken.setattr(Fitting, "epoch", ended)
        with pytest.raises(KeyboardInterrupt):
            trained(store, dataset, split, config)
    resumed = trained(store, dataset, split, config)
    assert resumed.resumed_after == 3
    assert resumed.weights_digest == unbroken.weights_digest


@pytest.mark.usefixtures("small_blocks")
def test_parts_in_object_storage_are_fetched_once_or_read_by_range_if_the_cache_is_too_small_for_them(
    store: Store,
    dataset: Dataset,
    cut: Callable[[int], Split],
    tmp_path: Path,
    arrays: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
):
    config = DRAWN.model_copy(update={"memory": SMALL})
    expected = trained(store, dataset, cut(7), config).weights_digest
    cloud, downloads = Cloud(tmp_path / "cloud"), {}
    maker = cloud.machine("maker")
    normalize.fn(maker, dataset, divided(maker, dataset, "train", arrays, CUTS[7]), config)
    for size in ("1G", "1K"):
        monkeypatch.setenv("IDXFLOW_CACHE_SIZE", size)
        other = cloud.at(cloud.objects.copy())
        trainer = other.machine("trainer")
        model = trained(trainer, dataset, divided(trainer, dataset, "train", arrays, CUTS[7]), config)
        assert model.weights_digest == expected
        downloads[size] = [one.key for one in other.objects.operations if one.name == "download"]
    cloud.close()
    parts = {size: sum(key.endswith(".parquet") for key in keys) for size, keys in downloads.items()}
    assert parts == {"1G": 7, "1K": 0}


def test_a_label_that_is_no_class_is_named_by_its_row_in_the_split(
    store: Store, dataset: Dataset, arrays: dict[str, np.ndarray]
):
    model = trained(store, dataset, divided(store, dataset, "train", arrays, ()), TAIL)
    labels = {name: values.copy() for name, values in arrays.items() if name.endswith("labels")}
    labels["train-labels"][399] = labels["test-labels"][70] = 7
    bad, every = arrays | labels, TAIL.model_copy(update={"validation_fraction": 0})
    with pytest.raises(DataRefused, match="row 399 of the train split is 7"):
        trained(store, dataset, divided(store, dataset, "train", bad, CUTS[7]), every)
    with pytest.raises(DataRefused, match="row 70 of the test split is 7"):
        evaluate.fn(store, dataset, model, divided(store, dataset, "test", bad, TEST_CUTS[7]))


# --- scores -------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(store: Store, dataset: Dataset, cut: Callable[[int], Split]) -> TrainedModel:
    return trained(store, dataset, cut(0), TAIL.model_copy(update={"epochs": 1}))


@pytest.mark.parametrize("parts", TEST_CUTS)
def test_scores_are_those_of_one_file(
    store: Store, dataset: Dataset, arrays: dict[str, np.ndarray], model: TrainedModel, parts: int
):
    splits = [divided(store, dataset, "test", arrays, sizes) for sizes in ((), TEST_CUTS[parts])]
    whole, found = (evaluate.fn(store, dataset, model, split).record for split in splits)
    assert 0 < whole.correct < TEST_ROWS
    for name in ("rows", "correct", "accuracy", "accuracy_low", "accuracy_high", "per_class", "confusion"):
        assert getattr(found, name) == getattr(whole, name)
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)
    assert [mistake.row for mistake in found.mistakes] == [mistake.row for mistake in whole.mistakes]
    assert found.mistakes[0].probability == pytest.approx(whole.mistakes[0].probability, abs=1e-6)
    np.testing.assert_array_equal(predictions.predicted(found), predictions.predicted(whole))
    np.testing.assert_allclose(predictions.confidence(found), predictions.confidence(whole), atol=1e-6)
    rows = [0, 17, 40, 89]
    np.testing.assert_allclose(predictions.probability(found, rows), predictions.probability(whole, rows), atol=1e-6)
    confirmed = confirm.fn(store, dataset, model, splits[1], found).record
    assert (confirmed.rows, confirmed.difference < 1e-6) == (min(64, confirmed.rows), True)


def test_predictions_of_a_damaged_part_are_made_again_alone(
    store: Store, dataset: Dataset, arrays: dict[str, np.ndarray], model: TrainedModel
):
    test = divided(store, dataset, "test", arrays, TEST_CUTS[7])
    first = evaluate.fn(store, dataset, model, test).record
    before, damaged = predictions.predicted(first), list(members.of(first))[2].file
    damaged.chmod(0o644)
    damaged.write_bytes(b"damaged")
    again = evaluate.fn(store, dataset, model, test)
    assert again.step.summary.endswith(", in 7 parts, 1 new")
    np.testing.assert_array_equal(predictions.predicted(again.record), before)


@pytest.mark.parametrize(
    ("step", "kind", "name"),
    [
        ("normalize", PartSums, "sums.npz"),
        ("normalize", PartSums, "held_out.npz"),
        ("normalize", Normalization, "sides.npz"),
        ("normalize", Normalization, members.MEMBERS),
        ("evaluate", Evaluation, "predictions.npz"),
        ("evaluate", Evaluation, members.MEMBERS),
    ],
)
def test_no_flipped_bit_of_what_is_made_by_part_goes_unnoticed(
    store: Store,
    dataset: Dataset,
    cut: Callable[[int], Split],
    arrays: dict[str, np.ndarray],
    step: str,
    kind,
    name: str,
):
    if step == "normalize":
        normalize.fn(store, dataset, cut(2), DRAWN)
    else:
        model = trained(store, dataset, cut(0), TAIL.model_copy(update={"epochs": 1}))
        evaluate.fn(store, dataset, model, divided(store, dataset, "test", arrays, TEST_CUTS[2]))
    file = next(store.entries("tiny", step).glob(f"*/{name}"))
    whole, random = bytearray(file.read_bytes()), np.random.default_rng(1)
    file.chmod(0o644)
    load(file.parent, kind)
    for bit in random.integers(0, len(whole) * 8, 30).tolist():
        flipped = whole.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(DamagedEntry, match=name):
            load(file.parent, kind)
    assert file.parent in {Path(finding.where) for finding in verify(store, "tiny").damage}


# --- workers ------------------------------------------------------------------------------------------------------


def test_other_processes_in_any_order_make_the_same_bytes(
    tmp_path: Path, dataset: Dataset, arrays: dict[str, np.ndarray]
):
    made: list[list[bytes]] = []
    workers = ScatteredWorkers(3)
    try:
        for folder in ("here", "there"):
            store = Store(tmp_path / folder)
            store.prepare()
            split = divided(store, dataset, "train", arrays, CUTS[7])
            test = divided(store, dataset, "test", arrays, TEST_CUTS[7])
            model = trained(store, dataset, divided(store, dataset, "train", arrays, ()), TAIL)
            results: list[Normalization | Evaluation] = []
            with using(workers) if folder == "there" else using(None):  # type: ignore[arg-type]
                results.append(normalize.fn(store, dataset, split, DRAWN).record)
                results.append(evaluate.fn(store, dataset, model, test).record)
            made.append([file.read_bytes() for one in results for file in sorted(one.entry.folder.iterdir())])
            files = (file for step in ("normalize", "evaluate") for file in store.entries("tiny", step).rglob("*.*"))
            made[-1] += [file.read_bytes() for file in sorted(files) if file.is_file()]
    finally:
        workers.close()
    assert made[0] == made[1]
