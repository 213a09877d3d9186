"""Train: the same weights as plain Keras, one compiled call per epoch, the same result after a kill."""

from __future__ import annotations

import json
import logging
import math
import resource
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.datasets.training import CHOICES, TrainingConfig
from storage.errors import DamagedEntry, DataRefused, TrainingFailed
from storage.formats import parquet
from storage.formats.history import read_history
from storage.store import Store
from tasks import train as training
from tasks.model import checkpoint, network
from tasks.model.fitting import Fitting
from tasks.model.rates import rate_after
from tasks.model.scaling import Statistics, apply, read
from tasks.model.training_rows import InMemory, row_order
from tasks.normalize import normalize
from tasks.ui.progress import Progress, listening
from tests.conftest import TinyFactory
from tests.support import commands
from tests.support.memory import bytes_of_process
from tests.support.models import STATISTICS, architecture_of, fitted, random_rows, split, trained

ROOT = Path(__file__).resolve().parents[2]
FILES = {"architecture.json", "entry.json", "history.jsonl", "model.keras", "normalization.npz", "weights.npz"}


def by_plain_keras(config: TrainingConfig, rows: int = 50, epochs: int = 3):
    """The same training by Keras itself, step by step: its optimizer, its schedule, its loss."""
    network.tensorflow()
    import keras

    architecture = architecture_of(config)
    logits = network.build(architecture, network.initial_weights(architecture, config.seed, config.initialization))
    model = keras.Sequential([logits, keras.layers.Softmax()])
    rate = keras.optimizers.schedules.InverseTimeDecay(config.learning_rate, 1, config.decay or 0)
    if config.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, config.epochs * math.ceil(rows / 16))
    kinds = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}
    own = {name: getattr(config, name) for name in CHOICES["optimizer"][config.optimizer]}
    optimizer = getattr(keras.optimizers, kinds[config.optimizer])(rate, **own)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing)
    # To compile takes longer than these few steps.
    model.compile(optimizer, loss, metrics=["accuracy", "categorical_crossentropy"], run_eagerly=True)
    pixels, labels = random_rows(rows)
    images, reported = apply(pixels, STATISTICS), []
    for epoch in range(1, epochs + 1):
        order = row_order(config.seed, epoch, rows)
        sums = np.zeros(2)
        for start in range(0, rows, config.batch_size):
            now = order[start : start + config.batch_size]
            _, accuracy, plain = model.train_on_batch(images[now], np.eye(3)[labels[now]])
            sums += len(now) * np.array([plain, accuracy], float)
        reported.append(sums / rows)
    return [variable.value.numpy() for variable in logits.trainable_weights + logits.non_trainable_weights], reported


# A rounding error of a gradient near zero counts for more where steps are divided by the gradients' size.
TOLERANCE = {"sgd": 2e-6, "adam": 2e-5, "adamw": 2e-5, "rmsprop": 2e-5}


@pytest.mark.parametrize(
    "parameters",
    [
        {"momentum": 0.0, "label_smoothing": 0.2},
        {"momentum": 0.9, "decay": 0.05},
        {"weight_decay": 0.02, "decay": 0.01},
        {"optimizer": "adam", "learning_rate": 0.02},
        {"optimizer": "adamw", "learning_rate": 0.02, "weight_decay": 0.1},
        {"optimizer": "rmsprop", "learning_rate": 0.01, "momentum": 0.5, "schedule": "cosine", "epochs": 4},
        {"hidden": (), "batch_size": 10},
        {"hidden": (6, 5, 4), "activation": "relu", "batch_size": 64},
        {"batch_norm": True, "initialization": "he"},
        {"conv": (4,), "hidden": (5,), "batch_norm": True, "activation": "selu", "initialization": "fit"},
    ],
    ids=str,
)
def test_the_weights_are_those_of_plain_keras(parameters: dict):
    config = TrainingConfig(**{"hidden": (7, 5), "learning_rate": 0.1, "batch_size": 16, **parameters})
    fitting, reported = fitted(config)
    expected, expected_reported = by_plain_keras(config)
    for ours, theirs in zip(fitting.weights.values(), expected, strict=True):
        # Convolutions sum more products, and with steps of another compiled graph in another order.
        np.testing.assert_allclose(ours, theirs, atol=2e-5 if config.conv else TOLERANCE[config.optimizer])
    np.testing.assert_allclose(reported, expected_reported, atol=1e-5)
    start = network.initial_weights(architecture_of(config), 1, config.initialization)
    assert np.abs(start["classes.kernel"] - fitting.weights["classes.kernel"]).max() > 0.03


def dropped(monkeypatch: pytest.MonkeyPatch, seed: int, epochs: tuple[int, ...], rows: int = 32) -> list[np.ndarray]:
    """Pass over rows in these epochs with weights that stay as they are; return the sums of gradients of each."""
    config = TrainingConfig(hidden=(40,), dropout=0.5, batch_size=16, learning_rate=1e-6, momentum=0.9, seed=seed)
    start = network.initial_weights(architecture_of(config), 1)
    images, labels = random_rows(rows)
    sums = []
    for epoch in epochs:
        fitting = Fitting(architecture_of(config), config, STATISTICS, InMemory(images, labels, rows, 7), rows)
        fitting.set_weights(start)
        # The same order of rows in each epoch, so that only what is dropped differs.
        window = next(fitting._rows.windows(1))
        monkeypatch.setattr(fitting._rows, "windows", lambda _, window=window: iter([window]))
        fitting.epoch(epoch)
        sums.append(fitting.slots["momentum"]["classes.kernel"])
    return sums


def test_what_is_dropped_follows_from_the_seed_the_epoch_and_the_step_alone(monkeypatch):
    first, again, later = dropped(monkeypatch, 1, (1, 1, 2))
    (other,) = dropped(monkeypatch, 2, (1,))
    np.testing.assert_array_equal(first, again)
    assert all(np.abs(first - sums).max() > 1e-8 for sums in (later, other))


def test_dropout_leaves_out_its_share_and_keeps_the_mean_and_scores_are_of_the_whole_network():
    config = TrainingConfig(hidden=(500,), dropout=0.3, activation="sigmoid")
    architecture = architecture_of(config)
    model = network.build(architecture, network.initial_weights(architecture, 1), config.dropout)
    hidden = np.ones((40, 500), np.float32)
    kept = model.get_layer("dropout_2")(hidden, training=True).numpy()
    assert (kept == 0).mean() == pytest.approx(0.3, abs=0.01)
    assert kept.mean() == pytest.approx(1, abs=0.02)
    rows = np.zeros((2, 12), np.float32)
    plain = network.build(architecture, network.initial_weights(architecture, 1))
    np.testing.assert_array_equal(model(rows, training=False).numpy(), plain(rows, training=True).numpy())
    assert not any("dropout" in layer.name for layer in plain.layers)


def test_an_epoch_is_one_compiled_call_traced_once():
    fitting, _ = fitted(TrainingConfig(hidden=(4,), batch_size=16), epochs=5)
    assert (fitting.calls, fitting.traces) == (5, 1)


def test_a_training_takes_over_what_one_of_its_kind_has_compiled_and_nothing_else():
    """Neither its weights, nor the state of its optimizer, nor its statistics."""
    config = TrainingConfig(hidden=(9,), batch_size=16, optimizer="adam", dropout=0.2, batch_norm=True)
    rows = InMemory(*random_rows(50), 50, 1)

    def made(config: TrainingConfig = config, statistics: Statistics = STATISTICS) -> Fitting:
        fitting = Fitting(architecture_of(config), config, statistics, rows, 50)
        fitting.epoch(1)
        assert fitting.traces == 1
        return fitting

    def bytes_of(fitting: Fitting) -> list[bytes]:
        arrays = (fitting.weights, *fitting.slots.values())
        return [values.tobytes() for each in arrays for values in each.values()]

    first, beside = made(), made()
    compiled, whole = first._compiled, bytes_of(first)
    assert beside._compiled is not compiled
    assert bytes_of(beside) == whole
    del first
    more = {"seed": 2, "learning_rate": 0.3, "decay": 0.5}
    other = made(config.model_copy(update=more), Statistics(np.full(12, 0.3), 0.2))
    assert other._compiled is compiled
    assert bytes_of(other) != whole
    del other
    again = made()
    assert again._compiled is compiled
    assert bytes_of(again) == whole
    assert made(config.model_copy(update={"beta_1": 0.8}))._compiled is not compiled


@pytest.mark.parametrize("batch_size", [10, 25, 16, 64])
def test_the_norms_of_the_gradients_are_those_of_the_last_step_of_the_epoch(batch_size: int):
    """Without momentum, a step is the gradient times the rate; the last one has 10, 25, 2 or all 50 rows."""
    rate, config = 0.1, TrainingConfig(hidden=(7, 5), learning_rate=0.1, momentum=0, decay=0, batch_size=batch_size)
    whole, _ = fitted(config, epochs=1)
    assert list(whole.gradients) == ["hidden_1", "hidden_2", "classes"]
    pixels, labels = random_rows(50)
    order = row_order(config.seed, 1, 50)
    before = len(order) - (len(order) % batch_size or batch_size)
    start = network.initial_weights(network.Architecture(12, config.hidden, config.activation, 3), config.seed)
    if before:
        # The same steps but the last, as an epoch over fewer rows.
        rows = InMemory(pixels, labels, before, config.seed)
        rows.windows = lambda epoch: iter([replace(next(InMemory.windows(rows, epoch)), order=order[:before])])
        short = Fitting(network.Architecture(12, config.hidden, config.activation, 3), config, STATISTICS, rows, before)
        short.epoch(1)
        start = short.weights
    for layer, norm in whole.gradients.items():
        step = (start[f"{layer}.kernel"] - whole.weights[f"{layer}.kernel"]) / rate
        assert norm == pytest.approx(np.linalg.norm(step.astype(np.float64)), rel=1e-4)


def test_each_epoch_takes_each_row_once_in_an_order_of_its_own():
    orders = [row_order(1, epoch, 100) for epoch in (1, 2)] + [row_order(2, 1, 100)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    np.testing.assert_array_equal(orders[0], row_order(1, 1, 100))


def test_scores_are_over_every_row_also_beyond_one_call():
    config = TrainingConfig(hidden=())
    pixels, labels = random_rows(5000)
    rows = InMemory(pixels, labels, 100, config.seed)
    fitting = Fitting(network.Architecture(12, (), "tanh", 3), config, STATISTICS, rows, 100)
    logits = apply(pixels, STATISTICS) @ fitting.weights["classes.kernel"]
    exact = np.log(np.exp(logits).sum(1)) - logits[np.arange(5000), labels]
    loss, accuracy = fitting.score(100, 5000)
    assert loss == pytest.approx(exact[100:].mean(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == labels)[100:].mean()


def test_rows_are_scored_in_pieces_that_fit_in_memory_and_score_the_same(monkeypatch: pytest.MonkeyPatch):
    config = TrainingConfig(conv=(4,), hidden=())
    pixels, labels = random_rows(300)
    fitting = Fitting(architecture_of(config), config, STATISTICS, InMemory(pixels, labels, 100, 1), 100)
    whole = fitting.score(0, 300)
    # The convolution makes 4 × 12 numbers of an image.
    monkeypatch.setattr("tasks.model.network.SCORED_NUMBERS", 7 * 4 * 12)
    fitting = Fitting(architecture_of(config), config, STATISTICS, InMemory(pixels, labels, 100, 1), 100)
    assert max(len(labels) for _, labels in fitting._pieces(0, 300)) == 7
    assert fitting.score(0, 300) == (pytest.approx(whole[0], rel=1e-6), whole[1])


def test_a_training_leaves_its_files_record_and_line(store: Store, tiny: TinyFactory):
    result = trained(store, tiny(), hidden=(8,), epochs=4)
    model = result.record
    assert {path.name for path in model.entry.folder.iterdir()} == FILES
    assert (model.fitted_rows, model.validation_rows, model.epochs_run, model.chosen_epoch) == (108, 12, 4, 4)
    assert model.parameters == 63 * 8 + 8 + 8 * 3 + 3
    history = read_history(model.history)
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4]
    assert history[-1].learning_rate == rate_after(TrainingConfig(learning_rate=0.05), 4 * 7, 7)
    assert history[-1].loss < history[0].loss
    assert result.step.summary == (
        f"4 epochs, {100 * model.train_accuracy:.2f}% of rows right "
        f"(held out: {100 * history[-1].validation_accuracy:.2f}%), 539 weights"
    )


def test_the_recorded_scores_are_those_of_the_kept_weights_on_all_training_rows(store: Store, tiny: TinyFactory):
    dataset = tiny()
    model = trained(store, dataset).record
    images, labels = parquet.read(split(store, dataset, "train").file)
    architecture = network.load_architecture(model.architecture)
    weights = network.load_weights(model.weights, architecture)
    assert network.weights_digest(weights) == model.weights_digest
    logits = network.build(architecture, weights)(apply(images, read(model.normalization, 63))).numpy()
    assert model.train_accuracy == (logits.argmax(1) == labels).mean()
    exact = np.log(np.exp(logits).sum(1)) - logits[np.arange(120), labels]
    assert model.train_loss == pytest.approx(exact.mean(), rel=1e-3)


def test_without_held_out_rows_nothing_is_said_about_them(store: Store, tiny: TinyFactory):
    result = trained(store, tiny(), validation_fraction=0)
    assert (result.record.fitted_rows, result.record.validation_rows) == (120, 0)
    assert read_history(result.record.history)[0].validation_loss is None
    assert "held out" not in result.step.summary


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path, tiny: TinyFactory):
    dataset = tiny()
    first, second, third = (
        trained(Store(tmp_path / name), dataset, seed=seed).record for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first.weights_digest == second.weights_digest != third.weights_digest
    for name in FILES - {"entry.json", "history.jsonl"}:
        assert (first.entry.folder / name).read_bytes() == (second.entry.folder / name).read_bytes()


def test_again_it_is_reused_and_a_change_is_named(store: Store, tiny: TinyFactory):
    dataset = tiny()
    first, second = trained(store, dataset), trained(store, dataset)
    assert (second.step.reused, second.record) == (True, first.record)
    changed = trained(store, dataset, learning_rate=0.06)
    assert (changed.step.reused, changed.step.reason) == (False, "learning_rate 0.05 → 0.06")
    other = trained(store, dataset, optimizer="adam", epochs=1)
    assert other.step.reason == "epochs 3 → 1, optimizer sgd → adam, beta_1 none → 0.9 and 3 more"


EARLY = {"epochs": 40, "learning_rate": 0.3, "hidden": (8,), "patience": 3, "validation_fraction": 0.5}


DEEPER = {"conv": (3, 4), "dropout": 0.4, "batch_norm": True, "activation": "relu", "initialization": "fit"}


def noisy(tiny: TinyFactory):
    """Random labels: what is learnt of the fitted rows is wrong for the held-out ones, and their loss soon rises."""
    return tiny(arrays={"train-labels": np.random.default_rng(1).integers(0, 3, 120).astype(np.uint8)})


def test_training_stops_when_the_held_out_loss_no_longer_falls(store: Store, tiny: TinyFactory):
    dataset = noisy(tiny)
    result = trained(store, dataset, **EARLY)
    model, history = result.record, read_history(result.record.history)
    losses = [epoch.validation_loss for epoch in history]
    assert model.chosen_epoch == losses.index(min(losses)) + 1
    assert model.epochs_run == len(history) == model.chosen_epoch + 3 < 40
    assert f"{model.epochs_run} epochs, the one after {model.chosen_epoch} kept" in result.step.summary
    up_to_it = trained(store, dataset, **EARLY | {"epochs": model.chosen_epoch, "patience": None})
    assert up_to_it.record.weights_digest == model.weights_digest


def test_without_restore_best_the_last_weights_are_kept(store: Store, tiny: TinyFactory):
    dataset = noisy(tiny)
    best = trained(store, dataset, **EARLY).record
    last = trained(store, dataset, **EARLY, restore_best=False).record
    assert last.chosen_epoch == last.epochs_run == best.epochs_run
    assert last.weights_digest != best.weights_digest


def test_a_drop_below_min_delta_is_no_improvement(store: Store, tiny: TinyFactory):
    model = trained(store, tiny(), **EARLY | {"min_delta": 10}).record
    assert (model.chosen_epoch, model.epochs_run) == (1, 4)


class Killed(Exception):
    pass


def kill_after(epoch: int):
    def listener(progress: Progress) -> None:
        if progress.done == epoch:
            raise Killed

    return listener


@pytest.mark.parametrize(
    ("parameters", "epoch"),
    [
        ({"decay": 0.01}, 1),
        ({"decay": 0.01}, 6),
        (EARLY, 4),
        ({**EARLY, "restore_best": False}, 4),
        ({**EARLY, "optimizer": "adam", "learning_rate": 0.03, "schedule": "cosine", "warmup_epochs": 2}, 3),
        ({"optimizer": "adamw", "shift": 1, "rotate": 10, "zoom": 0.1, "label_smoothing": 0.1}, 3),
        ({"optimizer": "rmsprop", "momentum": 0.5, "learning_rate": 0.003}, 3),
        ({**EARLY, **DEEPER}, 4),
        # Eight windows of 16 rows for each epoch.
        ({**EARLY, **DEEPER, "memory": "4032B", "patience": None, "epochs": 5}, 3),
    ],
    ids=[
        *("after the first", "after the last", "best", "last", "adam", "augmented", "rmsprop"),
        *("best of more layers", "more layers in shards"),
    ],
)
def test_a_broken_training_goes_on_and_ends_as_an_unbroken_one(
    tmp_path: Path,
    tiny: TinyFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    parameters: dict,
    epoch: int,
):
    dataset, parameters = noisy(tiny), {"epochs": 6, **parameters}
    whole = trained(Store(tmp_path / "whole"), dataset, **parameters).record
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    store = Store(tmp_path / "broken")
    with pytest.raises(Killed), listening(kill_after(epoch)):
        trained(store, dataset, **parameters)
    heard: list[float] = []
    with (
        listening(lambda progress: progress.name == "train" and heard.append(progress.done)),
        caplog.at_level(logging.INFO),
    ):
        result = trained(store, dataset, **parameters)
    resumed = result.record
    assert resumed.resumed_after == epoch
    assert f" epochs, the first {epoch} by an interrupted run" in result.step.summary
    assert f"training resumes after epoch {epoch} of" in caplog.text
    assert heard == list(range(epoch + 1, whole.epochs_run + 1))
    assert replace(resumed, entry=whole.entry, resumed_after=0) == whole
    timeless = [[replace(e, seconds=0.0) for e in read_history(model.history)] for model in (whole, resumed)]
    assert timeless[0] == timeless[1]
    assert {path.name for path in resumed.entry.folder.iterdir()} == FILES


def test_after_a_kill_another_process_ends_with_the_same_weights(tmp_path: Path, tiny: TinyFactory):
    dataset = tiny()
    whole = trained(Store(tmp_path / "whole"), dataset, epochs=6).record
    code = f"""
import os, signal
from pathlib import Path
from storage.datasets import catalog
from storage.store import Store
from tasks import train as training
from tasks.ui.progress import listening
from tests.support.memory import bytes_of_process
from tests.support.models import trained
training.CHECKPOINT_SECONDS = 0.0
with listening(lambda progress: progress.done == 3 and os.kill(os.getpid(), signal.SIGKILL)):
    trained(Store(Path({str(tmp_path / "killed")!r})), catalog.read(Path({str(dataset.manifest)!r})), epochs=6)
"""
    killed = subprocess.run([*commands.python(), "-c", code], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    heard: list[float] = []
    with listening(lambda progress: heard.append(progress.done)):
        resumed = trained(Store(tmp_path / "killed"), dataset, epochs=6).record
    assert heard == [4, 5, 6]
    assert resumed.weights_digest == whole.weights_digest


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "of another network"])
def test_a_damaged_checkpoint_and_other_leftovers_are_cleared(
    tmp_path: Path, tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: str
):
    dataset = tiny()
    whole = trained(Store(tmp_path / "whole"), dataset).record
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    store = Store(tmp_path / "store")
    with pytest.raises(Killed), listening(kill_after(2)):
        trained(store, dataset)
    path = next(store.entries("tiny", "train").glob(".*.partial/checkpoint.npz"))
    for name in ("weights.npz", "entry.json", ".checkpoint.npz.1.ab.tmp"):
        (path.parent / name).write_bytes(b"left")
        (path.parent / name).chmod(0o444)
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(
        {
            "cut": data[:-5],
            "flipped": data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :],
            "emptied": b"",
            "of another network": whole.weights.read_bytes(),
        }[damage]
    )
    result = trained(store, dataset)
    assert "the checkpoint is not used, training starts over" in caplog.text
    assert result.record.weights_digest == whole.weights_digest
    assert {path.name for path in result.record.entry.folder.iterdir()} == FILES


@pytest.mark.parametrize(("seconds", "expected"), [(1e9, []), (0, [1, 2, 3])])
def test_checkpoints_are_not_written_more_often_than_they_are_worth(
    store: Store, tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: list[int]
):
    written: list[int] = []
    monkeypatch.setattr(checkpoint, "save", lambda path, state, most: written.append(len(state.epochs)))
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", seconds)
    trained(store, tiny(), epochs=3)
    assert written == expected


@pytest.mark.parametrize("validation_fraction", [0.1, 0])
def test_a_loss_that_is_not_finite_stops_training_and_leaves_nothing(
    store: Store, tiny: TinyFactory, validation_fraction: float
):
    config = {"activation": "relu", "learning_rate": 10, "hidden": (50, 50, 50), "batch_size": 120}
    with pytest.raises(TrainingFailed) as caught:
        trained(store, tiny(), epochs=20, validation_fraction=validation_fraction, **config)
    message = str(caught.value)
    assert "tiny: expected a finite loss and finite weights; in epoch " in message
    assert message.endswith(
        "with sgd at learning rate 10 and momentum 0.9; train with a lower rate, such as --set learning_rate=1"
    )
    assert list(store.entries("tiny", "train").glob("[!.]*")) == []
    assert list(store.entries("tiny", "train").glob(".*/*")) == []


def test_too_few_rows_are_refused(store: Store, tiny: TinyFactory):
    dataset = tiny(train=2)
    rows = split(store, dataset, "train")
    config = TrainingConfig(validation_fraction=0.9, held_out="tail")
    with pytest.raises(TrainingFailed, match=r"2 training rows, of which a validation_fraction of 0.9 leaves 0"):
        normalize.fn(store, dataset, rows, config)


def test_one_row_can_be_fitted(store: Store, tiny: TinyFactory):
    model = trained(store, tiny(train=1), validation_fraction=0).record
    assert (model.fitted_rows, model.train_accuracy) == (1, 1.0)


def test_a_label_that_is_no_class_is_refused(store: Store, tiny: TinyFactory):
    labels = (np.arange(120) % 3).astype(np.uint8)
    labels[77] = 9
    with pytest.raises(DataRefused, match="expected labels from 0 to 2; row 77 of the train split is 9"):
        trained(store, tiny(arrays={"train-labels": labels}))


@pytest.mark.remedies("tasks.train:_enough_memory")
def test_too_little_memory_is_said_in_a_sentence(store: Store, tiny: TinyFactory):
    dataset, (soft, hard) = tiny(), resource.getrlimit(resource.RLIMIT_AS)
    # Some gigabytes more than now, where the drawing of the weights alone takes 34.
    resource.setrlimit(resource.RLIMIT_AS, (bytes_of_process(0) + (4 << 30), hard))
    try:
        with pytest.raises(TrainingFailed, match=r"expected memory for 4,299\S+ weights and 120 rows of 63 pixels"):
            trained(store, dataset, hidden=(65_536, 65_536))
        # As it is advised: there is memory for fewer weights.
        assert trained(store, dataset, hidden=(8,)).record.parameters == 539
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_every_epoch_is_heard_but_only_some_are_logged(
    store: Store, tiny: TinyFactory, caplog: pytest.LogCaptureFixture
):
    heard: list[Progress] = []
    with listening(heard.append), caplog.at_level(logging.INFO, "tasks"):
        trained(store, tiny(), epochs=30)
    assert [(p.name, p.done, p.total, p.unit) for p in heard] == [("train", n, 30, "epochs") for n in range(1, 31)]
    assert heard[-1].note.startswith("loss 0.")
    lines = [message for message in caplog.messages if "epoch" in message]
    assert lines[0].startswith("tiny: epoch 1 of 30: loss ")
    assert lines[-2].startswith("tiny: epoch 30 of 30: loss ")
    assert len(lines) < 10


@pytest.mark.parametrize("text", ["{", "[]", '{"epoch": 1}', '{"no": 1}\n', "1\n"])
def test_a_history_that_cannot_be_read_is_refused(tmp_path: Path, text: str):
    (tmp_path / "history.jsonl").write_text(text)
    with pytest.raises(DamagedEntry, match=r"history\.jsonl: expected one epoch per line"):
        read_history(tmp_path / "history.jsonl")


def test_a_history_without_its_first_line_is_refused(store: Store, tiny: TinyFactory, tmp_path: Path):
    lines = trained(store, tiny()).record.history.read_text().splitlines()
    assert json.loads(lines[1])["epoch"] == 2
    (tmp_path / "history.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(DamagedEntry, match="do not count from 1"):
        read_history(tmp_path / "history.jsonl")
