"""Fit the network to rows: an epoch makes one compiled call per window of rows, with the loop over steps inside."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from storage.datasets.training import TrainingConfig
from storage.records import LayerActivity
from storage.runtime import cancellation
from tasks.model import activity, compiled, network, optimizers
from tasks.model.augmentation import Augmentation
from tasks.model.own_network import OwnNetwork
from tasks.model.rates import rate_after
from tasks.model.scaling import Statistics
from tasks.model.training_rows import Rows


class Fitting:
    """A network in training: weights and slots of the optimizer on the device, trained on the pixels of `rows`.

    Each step takes the optimizer's rule (`optimizers`) at the schedule's rate (`rates`), both as Keras has them. The
    loss is the mean categorical cross-entropy of the step's rows, smoothed if `config` asks for it. Reported
    losses are plain cross-entropy in any case, so that trainings and fitted and held-out rows can be compared.

    Args:
        statistics: to scale pixels with.
        rows: to train on.
        fitted: how many of the rows, from the first, an epoch passes over.
        augmentation: of the images that weights are fitted to; scored rows stay as they are.
    """

    def __init__(
        self,
        architecture: network.Architecture | OwnNetwork,
        config: TrainingConfig,
        statistics: Statistics,
        rows: Rows,
        fitted: int,
        augmentation: Augmentation | None = None,
    ) -> None:
        self._tf = network.tensorflow()
        self._config, self._rows, self._fitted, self._augmentation = config, rows, fitted, augmentation
        start = _start(architecture, config)
        self._compiled = compiled.taken(compiled.Kind.of(architecture, config, rows.lengths, augmentation), self)
        self._names = tuple(architecture.shapes)
        self._layers = layers_with_weights(architecture.trained_shapes)
        self._scored_at_once = max(1, network.SCORED_NUMBERS // architecture.largest_output)
        self.gradients: dict[str, float] = {}
        """By layer: the norm of the gradient of its weights, without biases, in the last step of the last epoch."""
        self.calls = 0
        """Number of compiled calls for epochs so far."""
        self._compiled.begin(statistics)
        self.set_weights(start)

    @property
    def traces(self) -> int:
        """How often the steps of a window were compiled: once per window length, so at most twice."""
        return self._compiled.traces

    @property
    def steps(self) -> int:
        """Steps per epoch; the last step takes the remaining rows."""
        return math.ceil(self._fitted / self._config.batch_size)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """A copy of the weights, by name: the trained ones, and the moving averages of normalizations."""
        return self._named([*self._compiled.weights, *self._compiled.averages])

    @property
    def slots(self) -> dict[str, dict[str, np.ndarray]]:
        """A copy of what the optimizer keeps for each trained weight, by the slot's and the weight's name."""
        return {slot: self._named(variables) for slot, variables in self._compiled.slots.items()}

    def set_weights(self, weights: network.Weights) -> None:
        """Replace the weights."""
        self._assign([*self._compiled.weights, *self._compiled.averages], weights)

    def set_slots(self, slots: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Replace what the optimizer keeps for each weight."""
        for slot, variables in self._compiled.slots.items():
            self._assign(variables, slots[slot])

    def epoch(self, number: int) -> tuple[float, float]:
        """Pass over the fitted rows once, in the order of epoch `number` (from 1).

        Returns mean loss and accuracy over the rows, measured for each row just before its step, as Keras reports
        them; of augmented rows, as these are.
        """
        loss, correct, passed = 0.0, 0, 0
        for layer, state in enumerate(self._compiled.random):
            # What is dropped follows from seed, epoch and step alone, however often the training was interrupted.
            state.assign(network.random_state(self._config.seed, number, layer))
        for window in self._rows.windows(number):
            cancellation.check()
            given = (window.order, *self._given(number, passed, len(window.order)))
            more_loss, more_correct, norms = self._compiled.passes[len(window.order)](
                window.images, window.labels, *map(self._tf.constant, given)
            )
            self.calls += 1
            loss, correct = loss + float(more_loss), correct + int(more_correct)
            passed += len(window.order)
        self.gradients = dict(zip(self._layers, norms.numpy().tolist(), strict=True))
        return loss / self._fitted, correct / self._fitted

    def score(self, start: int, stop: int) -> tuple[float, float]:
        """Return mean loss and accuracy of the rows from `start` up to, not including, `stop`, with current weights."""
        loss, correct = 0.0, 0
        for images, labels in self._pieces(start, stop):
            more_loss, more_correct = self._compiled.score(images, labels)
            loss, correct = loss + float(more_loss), correct + int(more_correct)
        return loss / (stop - start), correct / (stop - start)

    def activity(self) -> tuple[LayerActivity, ...]:
        """Return what the hidden units put out for the first fitted rows, with current weights."""
        for images, _ in self._rows.pieces(0, min(self._fitted, activity.ROWS, self._scored_at_once)):
            return activity.measured(self._compiled.model, self._compiled.scaled(images))
        return ()

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Any, Any]]:
        """Yield rows to score, no more at once than memory for the outputs of the largest layer allows."""
        most = self._scored_at_once
        for images, labels in self._rows.pieces(start, stop):
            if len(labels) <= most:
                yield images, labels
                continue
            for first in range(0, len(labels), most):
                yield images[first : first + most], labels[first : first + most]

    def _given(self, epoch: int, passed: int, rows: int) -> list[np.ndarray]:
        """Return what the steps of a window depend on besides its rows, float32.

        The rate of each step; its number from 1, if the optimizer needs that; the transform of each row, in the order
        in which they are taken, if images are augmented.

        Args:
            passed: rows that the epoch has passed over before.
            rows: how many rows the window passes over.
        """
        done = (epoch - 1) * self.steps + math.ceil(passed / self._config.batch_size)
        steps = np.arange(done, done + math.ceil(rows / self._config.batch_size))
        given = [rate_after(self._config, steps, self.steps)]
        if optimizers.counts_steps(self._config):
            given.append(steps + 1)
        if self._augmentation:
            given.append(self._augmentation.transforms(epoch, passed, passed + rows))
        return [values.astype(np.float32) for values in given]

    def _named(self, variables: list[Any]) -> dict[str, np.ndarray]:
        return {name: variable.numpy() for name, variable in zip(self._names, variables, strict=False)}

    def _assign(self, variables: list[Any], values: Mapping[str, np.ndarray]) -> None:
        for name, variable in zip(self._names, variables, strict=False):
            variable.assign(values[name])


def _start(architecture: network.Architecture | OwnNetwork, config: TrainingConfig) -> network.Weights:
    """Return the weights before training."""
    if isinstance(architecture, OwnNetwork):
        return architecture.start
    return network.initial_weights(architecture, config.seed, config.initialization)


def layers_with_weights(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the names of the layers whose gradients are measured: those that have weights of more than one dimension.

    Args:
        shapes: of each trained array, by name, such as `hidden_1.kernel`; biases have one dimension.
    """
    return tuple(name.rpartition(".")[0] for name, shape in shapes.items() if len(shape) > 1)
