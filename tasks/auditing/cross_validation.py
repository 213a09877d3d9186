"""Judge each training row by a network that has not seen it: cross-validation with a small, fixed recipe.

`benchmarks/audit.py` measures how many wrong labels this finds; docs/how-to/label-errors.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from storage.datasets.training import TrainingConfig
from storage.formats import split_rows
from storage.records import Split
from storage.runtime import cancellation
from storage.runtime.prefetch import prefetch
from tasks.auditing.cells import grid
from tasks.auditing.folds import FOLDS, SEED, divided, judged
from tasks.auditing.survey import FITTED_SIDE, Survey
from tasks.model import forward, network, scaling, training_rows
from tasks.model.classifier import softmax
from tasks.model.fitting import Fitting

RATES = (0.01, 0.001, 0.0001)
"""Learning rates to try, one after the other, until the weights stay finite."""
BATCH = 64
STEPS, MOST_EPOCHS, LEAST_EPOCHS = 700, 40, 5
"""About so many steps, with bounds of the epochs."""
LEAST_MEMORY = "1MiB"
"""The least budget for pixels, enough for a batch of shrunk images."""

Judgement = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row numbers (int64, shape (n,)), labels (uint8, (n,)), and probabilities of the classes (float32, (n, classes))."""


def all_rows_fit(name: str, train: Split, config: TrainingConfig) -> bool:
    """Return whether all rows are in memory while networks are fitted, by the budget of `config`."""
    small = replace(train, image_shape=grid(train.image_shape, FITTED_SIDE).shape)
    return training_rows.rows_at_once(name, small, config, train.rows) >= train.rows


def recipe(rows: int, memory: str) -> TrainingConfig:
    """Return how a network is fitted to a split of `rows` rows.

    Args:
        memory: budget for pixels, as for a training.
    """
    budgets = [TrainingConfig(memory=size) for size in (memory, LEAST_MEMORY)]
    epochs = math.ceil(STEPS * BATCH / rows)
    return TrainingConfig(
        hidden=(100,),
        activation="relu",
        learning_rate=RATES[0],
        weight_decay=0.01,
        batch_size=BATCH,
        epochs=min(max(epochs, LEAST_EPOCHS), MOST_EPOCHS),
        memory=max(budgets, key=lambda budget: budget.memory_bytes).memory,
        seed=SEED,
    )


@dataclass(frozen=True)
class CrossValidation:
    """A network for each fold, fitted to the rows of the other folds. Memory: 1 byte for each row, and the weights."""

    survey: Survey
    architecture: network.Architecture
    fold: np.ndarray
    """int8 of shape (rows,): the network that judges each row; -1 for rows that are left out."""
    weights: tuple[network.Weights, ...]
    """By fold; empty if nothing can be judged."""

    @property
    def rows(self) -> int:
        """Number of rows that are judged."""
        return int((self.fold >= 0).sum())

    def judgements(self) -> Iterator[Judgement]:
        """Yield the judged rows, block by block in the order of the split.

        They are computed again each time: to keep them would take 4 bytes for each row and class.
        """
        first = 0
        # One thread: the products are small, and their last digits would depend on the number of threads.
        with threadpool_limits(1, "blas"), closing(prefetch(split_rows.blocks(self.survey.split))) as blocks:
            for images, labels in blocks:
                cancellation.check()
                fold = self.fold[first : first + len(labels)]
                for number in range(len(self.weights)):
                    here = np.flatnonzero(fold == number)
                    if len(here):
                        yield first + here, labels[here], self._probabilities(number, images[here])
                first += len(labels)

    def _probabilities(self, number: int, images: np.ndarray) -> np.ndarray:
        pixels = scaling.apply(images, self.survey.statistics)
        return softmax(forward.logits(self.architecture, self.weights[number], pixels))


def cross_validated(
    name: str, survey: Survey, classes: int, config: TrainingConfig, folder: Path, show: Callable[[int, int], None]
) -> CrossValidation:
    """Fit a network for each fold. Rows that no network can judge are left out.

    Args:
        name: of the data set, for messages.
        classes: number of classes.
        config: from `recipe`.
        folder: for an unnamed temporary file of the pixels, if they do not fit in memory.
        show: called with epochs done and in total.

    Raises:
        DamagedEntry: the split cannot be read.
        OSError: there is no space for the temporary file.
        Cancelled: the run is being ended.
    """
    height, width = survey.split.image_shape
    architecture = network.Architecture(height * width, config.hidden, config.activation, classes)
    fold = divided(survey.labels, survey.digests, classes)
    can = judged(survey.labels, fold)
    if not can.any() or survey.statistics.std == 0:
        return CrossValidation(survey, architecture, np.full_like(fold, -1), ())
    weights: list[network.Weights] = []
    for number in range(FOLDS):
        if not (can & (fold == number)).any():
            weights.append({})
            continue
        # Rows without a class are in no fold, and must not be fitted to either.
        held = (fold == number) | (fold < 0)
        with training_rows.opened(name, survey.split, config, held, folder) as rows:
            done = number * config.epochs
            fitted = int((~held).sum())

            def shown(epoch: int, done: int = done) -> None:
                show(done + epoch, FOLDS * config.epochs)

            weights.append(_fitted(architecture, config, survey, (rows, fitted), shown))
    finite = [all(np.isfinite(values).all() for values in those.values()) for those in weights]
    return CrossValidation(
        survey, architecture, np.where(can & np.append(finite, False)[fold], fold, -1), tuple(weights)
    )


def _fitted(
    architecture: network.Architecture,
    config: TrainingConfig,
    survey: Survey,
    rows: tuple[training_rows.Rows, int],
    show: Callable[[int], None],
) -> network.Weights:
    """Return the weights after all epochs, with the first learning rate that keeps them finite, if any does."""
    weights: network.Weights = {}
    for rate in RATES:
        slower = config.model_copy(update={"learning_rate": rate})
        fitting = Fitting(architecture, slower, survey.statistics, *rows)
        for epoch in range(1, config.epochs + 1):
            cancellation.check()
            loss, _ = fitting.epoch(epoch)
            show(epoch)
            if not math.isfinite(loss):
                break
        weights = fitting.weights
        if all(np.isfinite(values).all() for values in weights.values()):
            break
    return weights
