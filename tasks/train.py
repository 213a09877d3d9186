"""Train the network, and store it with its history."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import Dataset
from storage.datasets.own_models import Source, source_of
from storage.datasets.training import TrainingConfig
from storage.errors import TrainingFailed, WorkersFailed
from storage.formats import split_rows
from storage.formats.history import History
from storage.records import Done, Epoch, FolderEntry, Normalization, OwnFunction, Split, TrainedModel
from storage.runtime import code_digests
from storage.store import Plan, Store
from storage.workers.current import current
from tasks.model import (
    augmentation,
    checkpoint,
    holdout,
    network,
    optimizers,
    own_code,
    own_network,
    own_training,
    shares,
    training_rows,
)
from tasks.model.checkpoint import Checkpoint
from tasks.model.fitting import Fitting
from tasks.model.labels import check_labels
from tasks.model.own_network import OwnNetwork
from tasks.model.rates import rate_after
from tasks.model.scaling import read
from tasks.ui import summaries
from tasks.ui.epochs import EpochDisplay, shown
from tasks.ui.steps import log_step

CHECKPOINT_SECONDS = 2.0
"""Minimum time between two checkpoints: the work that a kill can lose."""

Watch = Callable[[Epoch], None]
"""Called with each epoch of a training as it ends, also with those before a resumption; may raise `Abandoned`."""

_CHECKPOINT = "checkpoint.npz"

_log = logging.getLogger(__name__)


class Abandoned(Exception):
    """A training is not worth going on; nothing of it is kept. Never shown to people."""


@task(task_run_name="train", cache_policy=NO_CACHE)
def train(
    store: Store,
    dataset: Dataset,
    split: Split,
    normalization: Normalization,
    config: TrainingConfig,
    again: str = "",
) -> Done[TrainedModel]:
    """Train on the training split `split`, or find that training done. A killed training resumes at its checkpoint.

    Args:
        normalization: of the same split and configuration.
        again: a fresh token makes the key unique, so that training is repeated even if nothing else is new.

    Raises:
        ConfigError: the user's own model cannot be used.
        TrainingFailed: too little memory, or the loss is not finite.
        DataRefused: a label is not a class of the data set.
        WorkersFailed: workers elsewhere cannot train it.
    """
    item = planned(store, Training(dataset, split, normalization, config), again)
    with shown(dataset.name):
        result = _made(item)
    log_step(_log, result.step)
    return result


def planned(store: Store, training: Training, again: str = "") -> Item:
    """Return a training with the key of its entry.

    Raises:
        ConfigError: the source of the user's own model cannot be used.
        TrainingFailed: not even one batch fits in the memory allowed.
    """
    training = replace(training, source=training.source or own_source(training.dataset, training.config))
    plan = Plan(
        training.dataset.name,
        "train",
        inputs={"train": training.split.digest, "normalization": training.normalization.digest},
        parameters=training.config.deciding()
        | source_of_model(training.source)
        | {"classes": len(training.dataset.classes)}
        | _shards(training)
        | ({"share": training.share} if training.share < 1 else {})
        | ({"again": again} if again else {}),
        code=code_digests.digests(__name__),
        libraries=code_digests.library_versions("tensorflow", "keras", "numpy"),
    )
    return Item(store, plan, training)


def own_source(dataset: Dataset, config: TrainingConfig) -> Source | None:
    """Return the source of the user's own model as it is now; None if there is no such model.

    Raises:
        ConfigError: it cannot be used.
    """
    return source_of(config.model, dataset.manifest) if config.model else None


def source_of_model(source: Source | None) -> dict[str, str]:
    """Return the parameter of a key by which another source of the user's own model counts; none without one."""
    return {"source_of_model": source.digest} if source else {}


def check_own_model(store: Store, dataset: Dataset, config: TrainingConfig) -> None:
    """Have the user's own model made and trained for a step, if there is one: a fault shows before anything is fetched.

    What is among the newest trainings in the store has been made already.

    Raises:
        ConfigError: it cannot be used.
    """
    if not config.model:
        return
    source = source_of(config.model, dataset.manifest)
    known = source_of_model(source).items()
    if not any(
        known <= each["made_from"]["parameters"].items() for each in store.newest_entries(dataset.name, "train")
    ):
        own = own_code.made(source, dataset.image_shape, len(dataset.classes), config.seed)
        own_training.check(source, own, config)


def _shards(training: Training) -> dict[str, int]:
    """Return the effect of the memory budget that changes the weights: the shard size, or nothing if all rows fit."""
    at_once = training_rows.rows_at_once(training.dataset.name, training.split, training.config, training.fitted)
    return {"rows_at_once": at_once} if at_once < training.split.rows else {}


@dataclass(frozen=True)
class Training:
    """Everything that determines the result of one training."""

    dataset: Dataset
    split: Split
    normalization: Normalization
    config: TrainingConfig
    share: float = 1.0
    """Of the fitted rows, if not all are to be used: see `tasks.model.shares`."""
    source: Source | None = None
    """Of the user's own model, if there is one and it has been read."""

    @property
    def held_out(self) -> int:
        """Number of held-out rows."""
        return self.normalization.held_out_rows

    @property
    def fitted(self) -> int:
        """Number of rows that the weights are fitted to."""
        return self.split.rows - self.held_out

    @cached_property
    def architecture(self) -> network.Architecture | OwnNetwork:
        """The network to train.

        Raises:
            ConfigError: the user's own model cannot be used.
        """
        height, width = self.split.image_shape
        if source := self.source or own_source(self.dataset, self.config):
            return own_code.made(source, (height, width), len(self.dataset.classes), self.config.seed)
        return network.Architecture(
            height * width,
            self.config.hidden,
            self.config.activation,
            len(self.dataset.classes),
            self.config.conv,
            (height, width) if self.config.conv else None,
            self.config.batch_norm,
        )

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best epoch are kept instead of those of the last one."""
        return self.config.patience is not None and self.config.restore_best


@dataclass
class Course:
    """The progress of a training, and when it is over."""

    training: Training
    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0
    """The epoch with the lowest held-out loss, as Keras's `EarlyStopping` counts; 0 before the first epoch."""
    best_loss: float = math.inf
    resumed_after: int = 0
    """Epochs that an interrupted run completed."""
    watch: Watch | None = None

    def add(self, epoch: Epoch) -> None:
        """Add a completed epoch."""
        if self.watch:
            self.watch(epoch)
        self.epochs.append(epoch)
        loss = epoch.validation_loss
        if loss is not None and loss + self.training.config.min_delta < self.best_loss:
            self.best, self.best_loss = epoch.epoch, loss

    @property
    def is_over(self) -> bool:
        """Whether the last epoch is done, or patience has run out."""
        config = self.training.config
        waited = len(self.epochs) - self.best
        return len(self.epochs) >= config.epochs or (config.patience is not None and waited >= config.patience)

    @property
    def chosen(self) -> int:
        """The epoch whose weights are kept."""
        return self.best if self.training.keeps_best else len(self.epochs)


@dataclass(frozen=True)
class Item:
    """A training to be carried out, on this machine or on another one that reaches the store."""

    store: Store
    plan: Plan
    training: Training

    @property
    def label(self) -> str:
        """What people call it."""
        return f"the training of {self.plan.dataset}"


def made(item: Item, watch: Watch | None = None) -> Done[TrainedModel]:
    """Make the entry of a training, or find that there is one; workers call this, too.

    Raises:
        TrainingFailed, DataRefused: see `train`.
        Abandoned: `watch` has raised it.
    """
    return item.store.get_or_make(
        item.plan, TrainedModel, lambda folder: train_into(folder, item.training, watch), summaries.model
    )


def _made(item: Item) -> Done[TrainedModel]:
    """Have a worker make the entry of a training, if there are workers elsewhere and it is missing.

    Raises:
        WorkersFailed: the worker has another store than this process.
    """
    store, plan, workers = item.store, item.plan, current()
    if not workers.elsewhere or store.has(plan.dataset, plan.step, plan.folder):
        return made(item)
    result = workers.one(made, item)
    if store.find(plan, TrainedModel) is None:
        raise another_folder(store)
    return result


def another_folder(store: Store) -> WorkersFailed:
    """Return the error for a store that a worker has published a result in, and that does not have it."""
    return WorkersFailed(
        f"expected what a worker has trained in {store.address}; found nothing, so that is another folder on its "
        "machine; use a store that all machines reach, such as s3://bucket/prefix"
    )


def train_into(folder: Path, training: Training, watch: Watch | None = None) -> TrainedModel:
    """Write weights, architecture, normalization, history and export into `folder`, and return their record.

    Raises:
        TrainingFailed, DataRefused: see `train`.
        Abandoned: `watch` has raised it.
    """
    _clear(folder, keep=_CHECKPOINT)
    if training.share < 1:
        training = _of_share(training, folder)
    _check_shift(training)
    architecture, config, split = training.architecture, training.config, training.split
    statistics = read(training.normalization.file, architecture.inputs)
    for first, part in split_rows.numbered(split):
        check_labels(training.dataset, split, split_rows.labels(part), first)
    held = holdout.held(training.normalization, split)
    augmented = augmentation.chosen(config, split.image_shape, statistics, training.normalization.pixel_range)
    try:
        with (
            _enough_memory(training),
            own_training.blamed(training.source),
            training_rows.opened(training.dataset.name, split, config, held, folder) as rows,
        ):
            fitting = Fitting(architecture, config, statistics, rows, training.fitted, augmented)
            record = _record(folder, fitting, fit(fitting, training, folder, watch))
    except (TrainingFailed, Abandoned):
        # It would end again in the same way, so leave nothing to resume from.
        _clear(folder)
        raise
    network.save_weights(record.weights, fitting.weights)
    shutil.copyfile(training.normalization.file, record.normalization)
    if isinstance(architecture, OwnNetwork):
        own_network.save(record.architecture, architecture)
        own_network.export(record.export, architecture, fitting.weights, statistics)
    else:
        network.save_architecture(record.architecture, architecture)
        network.export(record.export, architecture, fitting.weights, statistics, training.split.image_shape)
    shares.removed(folder)
    # Last, so that a training killed before this line can still resume.
    (folder / _CHECKPOINT).unlink(missing_ok=True)
    return record


def _of_share(training: Training, folder: Path) -> Training:
    """Return the training on the rows of its share, which are written into `folder`."""
    dataset, seed = training.dataset, training.config.seed
    split, normalization = shares.taken(dataset, training.split, training.normalization, training.share, seed, folder)
    return replace(training, split=split, normalization=normalization, share=1.0)


def fit(fitting: Fitting, training: Training, folder: Path, watch: Watch | None = None) -> Course:
    """Train to the end, leave the chosen weights in `fitting`, and return the course of the training.

    Appends the history to `folder` line by line, and saves a checkpoint from time to time; resumes from an existing
    checkpoint.

    Raises:
        TrainingFailed: a loss is not finite.
        Abandoned: `watch` has raised it.
    """
    course, best = _resume(fitting, Course(training, watch=watch), folder / _CHECKPOINT)
    show, saved = EpochDisplay(training.dataset.name, training.config.epochs), time.monotonic()
    with History(folder / "history.jsonl", course.epochs) as history:
        while not course.is_over:
            epoch = _epoch(fitting, training, len(course.epochs) + 1)
            course.add(epoch)
            history.append(epoch)
            if training.keeps_best and course.best == epoch.epoch:
                best = fitting.weights
            if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                state = Checkpoint(tuple(course.epochs), fitting.weights, fitting.slots, best)
                checkpoint.save(folder / _CHECKPOINT, state, training.config.epochs)
                saved = time.monotonic()
            show(epoch, course.is_over)
    if best:
        fitting.set_weights(best)
    return course


def _check_shift(training: Training) -> None:
    shift, side = training.config.shift, min(training.split.image_shape)
    if shift >= side / 2:
        raise TrainingFailed(
            f"{training.dataset.name}: expected a shift of less than half the side of the images, which is {side:,} "
            f"pixels; found {shift:g}; choose a smaller one, such as --set shift={side / 10:g}"
        )


@contextmanager
def _enough_memory(training: Training) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not network.out_of_memory(error):
            raise
        architecture, split = training.architecture, training.split
        raise TrainingFailed(
            f"{training.dataset.name}: expected memory for {architecture.parameters:,} weights and {split.rows:,} rows "
            f"of {architecture.inputs:,} pixels; this machine has too little; choose smaller layers "
            "or, for the rows, a lower --memory"
        ) from error


def _resume(fitting: Fitting, course: Course, path: Path) -> tuple[Course, Mapping[str, np.ndarray]]:
    """Restore `fitting` from the checkpoint, if there is one; return the course so far and the best weights."""
    training, most = course.training, course.training.config.epochs
    architecture = training.architecture
    slots = dict.fromkeys(optimizers.slots(training.config), architecture.trained_shapes)
    best = {"best": architecture.shapes} if training.keeps_best else {}
    state = checkpoint.load(path, {"weights": architecture.shapes, **slots, **best}, most)
    if state is None:
        return course, {}
    fitting.set_weights(state.weights)
    fitting.set_slots(state.slots)
    for epoch in state.epochs:
        course.add(epoch)
    course.resumed_after = len(course.epochs)
    _log.info("%s: training resumes after epoch %d of %d", training.dataset.name, len(course.epochs), most)
    return course, state.best


def _epoch(fitting: Fitting, training: Training, number: int) -> Epoch:
    started = time.perf_counter()
    loss, accuracy = fitting.epoch(number)
    held_out: tuple[float | None, float | None] = (None, None)
    if training.held_out:
        held_out = fitting.score(training.fitted, training.split.rows)
    for value in (loss, held_out[0], *fitting.gradients.values()):
        if value is not None and not math.isfinite(value):
            raise _diverged(training, number, value)
    rate = float(rate_after(training.config, number * fitting.steps, fitting.steps))
    return Epoch(
        number, rate, loss, accuracy, *held_out, seconds=time.perf_counter() - started, gradients=fitting.gradients
    )


def _record(folder: Path, fitting: Fitting, course: Course) -> TrainedModel:
    training, weights = course.training, fitting.weights
    architecture = training.architecture
    loss, accuracy = fitting.score(0, training.split.rows)
    if not math.isfinite(loss) or not all(np.isfinite(values).all() for values in weights.values()):
        raise _diverged(training, course.chosen, loss)
    return TrainedModel(
        FolderEntry(folder),
        network.weights_digest(weights),
        architecture.parameters,
        training.fitted,
        training.held_out,
        len(course.epochs),
        course.chosen,
        loss,
        accuracy,
        training.normalization.pixel_range,
        course.resumed_after,
        network.device(),
        fitting.activity(),
        _own(architecture),
    )


def _own(architecture: network.Architecture | OwnNetwork) -> OwnFunction | None:
    if isinstance(architecture, OwnNetwork):
        return OwnFunction(architecture.function, architecture.source, architecture.layers)
    return None


def _diverged(training: Training, epoch: int, loss: float) -> TrainingFailed:
    config = training.config
    momentum = f" and momentum {config.momentum:g}" if config.momentum else ""
    return TrainingFailed(
        f"{training.dataset.name}: expected a finite loss and finite weights; in epoch {epoch} the loss became {loss} "
        f"with {config.optimizer} at learning rate {config.learning_rate:g}{momentum}; "
        f"train with a lower rate, such as --set learning_rate={config.learning_rate / 10:g}"
    )


def _clear(folder: Path, keep: str = "") -> None:
    for path in folder.iterdir():
        if path.name != keep:
            path.unlink()
