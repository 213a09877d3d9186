"""Fit the network to rows: an epoch makes one compiled call per window of rows, with the loop over steps inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from storage.datasets.training import TrainingConfig
from storage.runtime import cancellation
from tasks.model import network, optimizers
from tasks.model.rates import rate_after
from tasks.model.scaling import Statistics, scale_and_offset
from tasks.model.training_rows import Rows


class Fitting:
    """A network in training: weights and slots of the optimizer on the device, trained on the pixels of `rows`.

    Each step takes the optimizer's rule (`optimizers`) at the schedule's rate (`rates`), both as Keras has them. The
    loss is the mean categorical cross-entropy of the step's rows, with smoothed labels if `config` says so. Reported
    losses are plain cross-entropy in any case, so that trainings and fitted and held-out rows can be compared.

    Pixels stay bytes until the step that uses them: gathering a quarter of the bytes saves more than scaling them
    again in every epoch costs.

    Args:
        statistics: to scale pixels with.
        rows: to train on.
        fitted: how many of the rows, from the first, an epoch passes over.
    """

    def __init__(
        self,
        architecture: network.Architecture,
        config: TrainingConfig,
        statistics: Statistics,
        rows: Rows,
        fitted: int,
    ) -> None:
        self._tf = tf = network.tensorflow()
        self._config, self._rows, self._fitted = config, rows, fitted
        self._pixels = tf.TensorSpec([None, architecture.inputs], tf.uint8)
        self._scale, self._offset = scale_and_offset(statistics)
        self._model = network.build(architecture, network.initial_weights(architecture, config.seed))
        self._names = tuple(architecture.shapes)
        self._weights = [variable.value for variable in self._model.trainable_variables]
        self._slots = {
            slot: [tf.Variable(tf.zeros_like(variable)) for variable in self._weights]
            for slot in optimizers.slots(config)
        }
        self.calls = 0
        """Number of compiled calls for epochs so far."""
        self.traces = 0
        """How often the steps of a window were compiled: once per window length, so at most twice."""
        self._passes = {length: self._pass(length) for length in rows.lengths}
        self._score = self._compiled(self._scored)

    @property
    def steps(self) -> int:
        """Steps per epoch; the last step takes the remaining rows."""
        return math.ceil(self._fitted / self._config.batch_size)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """A copy of the weights, by name."""
        return self._named(self._weights)

    @property
    def slots(self) -> dict[str, dict[str, np.ndarray]]:
        """A copy of what the optimizer keeps for each weight, by the slot's and the weight's name."""
        return {slot: self._named(variables) for slot, variables in self._slots.items()}

    def set_weights(self, weights: network.Weights) -> None:
        """Replace the weights."""
        self._assign(self._weights, weights)

    def set_slots(self, slots: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Replace what the optimizer keeps for each weight."""
        for slot, variables in self._slots.items():
            self._assign(variables, slots[slot])

    def epoch(self, number: int) -> tuple[float, float]:
        """Pass over the fitted rows once, in the order of epoch `number` (from 1).

        Returns mean loss and accuracy over the rows, measured for each row just before its step, as Keras reports
        them.
        """
        loss, correct, completed = 0.0, 0, (number - 1) * self.steps
        for window in self._rows.windows(number):
            cancellation.check()
            steps = math.ceil(len(window.order) / self._config.batch_size)
            more_loss, more_correct = self._passes[len(window.order)](
                window.images,
                window.labels,
                self._tf.constant(window.order),
                *map(self._tf.constant, self._by_step(completed, completed + steps)),
            )
            self.calls += 1
            loss, correct, completed = loss + float(more_loss), correct + int(more_correct), completed + steps
        return loss / self._fitted, correct / self._fitted

    def score(self, start: int, stop: int) -> tuple[float, float]:
        """Return mean loss and accuracy of the rows from `start` up to, not including, `stop`, with current weights."""
        loss, correct = 0.0, 0
        for images, labels in self._rows.pieces(start, stop):
            more_loss, more_correct = self._score(images, labels)
            loss, correct = loss + float(more_loss), correct + int(more_correct)
        return loss / (stop - start), correct / (stop - start)

    def _pass(self, rows: int) -> Any:
        """Compile the pass over a window that takes `rows` of its rows."""
        order = self._tf.TensorSpec([rows], self._tf.int32)
        by_step = self._by_step(0, math.ceil(rows / self._config.batch_size))
        specs = [self._tf.TensorSpec(values.shape, self._tf.float32) for values in by_step]
        return self._compiled(self._steps, order, *specs)

    def _by_step(self, start: int, stop: int) -> list[np.ndarray]:
        """Return a value for each of these steps: its rate, and its number from 1 if the optimizer needs that."""
        steps = np.arange(start, stop)
        rates = rate_after(self._config, steps, self.steps).astype(np.float32)
        return [rates, (steps + 1).astype(np.float32)] if optimizers.counts_steps(self._config) else [rates]

    def _compiled(self, body: Callable[..., Any], *more: Any) -> Any:
        """Trace `body` now, once; the returned function can be called but is never traced again."""
        signature = (self._pixels, self._tf.TensorSpec([None], self._tf.int32), *more)
        return self._tf.function(body, input_signature=signature, autograph=False).get_concrete_function()

    def _steps(self, images: Any, labels: Any, order: Any, *by_step: Any) -> tuple[Any, Any]:
        tf, size = self._tf, self._config.batch_size
        self.traces += 1
        full, rest = divmod(order.shape[0], size)
        # Fixed shapes: the step of `size` rows is compiled separately from the last step of a window.
        batches, last = tf.reshape(order[: full * size], [full, size]), order[full * size :]

        def step(number: Any, loss: Any, correct: Any) -> tuple[Any, Any, Any]:
            more_loss, more_correct = self._step(
                images, labels, batches[number], *(values[number] for values in by_step)
            )
            return number + 1, loss + more_loss, correct + more_correct

        state = (tf.constant(0), tf.constant(0.0, tf.float64), tf.constant(0, tf.int64))
        _, loss, correct = tf.while_loop(lambda number, *_: number < full, step, state, parallel_iterations=1)
        if rest:
            more_loss, more_correct = self._step(images, labels, last, *(values[full] for values in by_step))
            loss, correct = loss + more_loss, correct + more_correct
        return loss, correct

    def _step(self, images: Any, labels: Any, taken: Any, rate: Any, number: Any = None) -> tuple[Any, Any]:
        tf, config = self._tf, self._config
        images, labels = self._scaled(tf.gather(images, taken)), tf.gather(labels, taken)
        with tf.GradientTape() as tape:
            logits = self._model(images, training=True)
            losses = self._losses(labels, logits)
            loss = tf.reduce_mean(self._smoothed(labels, logits) if config.label_smoothing else losses)
        gradients = tape.gradient(loss, self._weights)
        rates = optimizers.step_rates(config, rate, number)
        for place, (weight, gradient) in enumerate(zip(self._weights, gradients, strict=True)):
            own = {slot: variables[place] for slot, variables in self._slots.items()}
            optimizers.update(config, weight, own, gradient, rates)
        return self._sums(labels, logits, losses)

    def _scored(self, images: Any, labels: Any) -> tuple[Any, Any]:
        logits = self._model(self._scaled(images), training=False)
        return self._sums(labels, logits, self._losses(labels, logits))

    def _losses(self, labels: Any, logits: Any) -> Any:
        # Not through `tf.nn`, which replaces this operation by a dozen that are deterministic on a GPU, too, and
        # doubles the time to compile the steps.
        with self._tf.device("CPU:0"):
            return self._tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits, labels=labels).loss

    def _smoothed(self, labels: Any, logits: Any) -> Any:
        """Return the losses that `keras.losses.CategoricalCrossentropy(label_smoothing=…)` takes the mean of."""
        tf, share, classes = self._tf, self._config.label_smoothing, logits.shape[1]
        wanted = tf.one_hot(labels, classes, 1 - share + share / classes, share / classes)
        with tf.device("CPU:0"):
            return tf.raw_ops.SoftmaxCrossEntropyWithLogits(features=logits, labels=wanted).loss

    def _scaled(self, images: Any) -> Any:
        return self._tf.cast(images, self._tf.float32) * self._scale + self._offset

    def _sums(self, labels: Any, logits: Any, losses: Any) -> tuple[Any, Any]:
        tf = self._tf
        hits = tf.equal(tf.argmax(logits, 1, output_type=tf.int32), labels)
        return tf.reduce_sum(tf.cast(losses, tf.float64)), tf.reduce_sum(tf.cast(hits, tf.int64))

    def _named(self, variables: list[Any]) -> dict[str, np.ndarray]:
        return {name: variable.numpy() for name, variable in zip(self._names, variables, strict=True)}

    def _assign(self, variables: list[Any], values: Mapping[str, np.ndarray]) -> None:
        for name, variable in zip(self._names, variables, strict=True):
            variable.assign(values[name])
