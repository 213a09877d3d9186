"""Fit the network to rows: an epoch makes one compiled call per window of rows, with the loop over steps inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from storage.datasets.training import TrainingConfig
from storage.runtime import cancellation
from tasks.model import network
from tasks.model.scaling import Statistics, scale_and_offset
from tasks.model.training_rows import Rows

_SCORED_NUMBERS = 1 << 24
"""The most numbers that a layer may make at once while rows are scored: 64 MiB."""


class Fitting:
    """A network in training: weights and velocity on the device, trained on the pixels of `rows`.

    Stochastic gradient descent with momentum, as `keras.optimizers.SGD` does it (Keras 3, `sgd.py`):
    `rate = learning_rate / (1 + decay · t)`, `w -= w · weight_decay · rate`,
    `velocity = momentum · velocity - rate · gradient`, `w += velocity`, for steps t = 0, 1, …
    The loss is the mean categorical cross-entropy of the step's rows.

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
        start = network.initial_weights(architecture, config.seed, config.initialization)
        self._model = network.build(architecture, start, config.dropout)
        self._names = tuple(architecture.shapes)
        self._weights = [variable.value for variable in self._model.trainable_weights]
        # Each step moves these, too: the moving averages of normalizations.
        self._averages = [variable.value for variable in self._model.non_trainable_weights]
        self._random = network.random_states(self._model)
        self._scored_at_once = max(1, _SCORED_NUMBERS // architecture.largest_output)
        self._velocity = [tf.Variable(tf.zeros_like(variable)) for variable in self._weights]
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
        """A copy of the weights, by name: the trained ones, and the moving averages of normalizations."""
        return self._named([*self._weights, *self._averages])

    @property
    def velocity(self) -> dict[str, np.ndarray]:
        """A copy of the velocity of each trained weight, by the weight's name."""
        return self._named(self._velocity)

    def set_weights(self, weights: network.Weights) -> None:
        """Replace the weights."""
        self._assign([*self._weights, *self._averages], weights)

    def set_velocity(self, velocity: Mapping[str, np.ndarray]) -> None:
        """Replace the velocity of each trained weight."""
        self._assign(self._velocity, velocity)

    def epoch(self, number: int) -> tuple[float, float]:
        """Pass over the fitted rows once, in the order of epoch `number` (from 1).

        Returns mean loss and accuracy over the rows, measured for each row just before its step, as Keras reports
        them.
        """
        loss, correct, completed = 0.0, 0, (number - 1) * self.steps
        for layer, state in enumerate(self._random):
            # What is dropped follows from seed, epoch and step alone, however often the training was interrupted.
            state.assign(network.random_state(self._config.seed, number, layer))
        for window in self._rows.windows(number):
            cancellation.check()
            steps = math.ceil(len(window.order) / self._config.batch_size)
            rates = rate_after(self._config, np.arange(completed, completed + steps)).astype(np.float32)
            more_loss, more_correct = self._passes[len(window.order)](
                window.images, window.labels, self._tf.constant(window.order), self._tf.constant(rates)
            )
            self.calls += 1
            loss, correct, completed = loss + float(more_loss), correct + int(more_correct), completed + steps
        return loss / self._fitted, correct / self._fitted

    def score(self, start: int, stop: int) -> tuple[float, float]:
        """Return mean loss and accuracy of the rows from `start` up to, not including, `stop`, with current weights."""
        loss, correct = 0.0, 0
        for images, labels in self._pieces(start, stop):
            more_loss, more_correct = self._score(images, labels)
            loss, correct = loss + float(more_loss), correct + int(more_correct)
        return loss / (stop - start), correct / (stop - start)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Any, Any]]:
        """Yield rows to score, no more at once than memory for the outputs of the largest layer allows."""
        most = self._scored_at_once
        for images, labels in self._rows.pieces(start, stop):
            if len(labels) <= most:
                yield images, labels
                continue
            for first in range(0, len(labels), most):
                yield images[first : first + most], labels[first : first + most]

    def _pass(self, rows: int) -> Any:
        """Compile the pass over a window that takes `rows` of its rows."""
        order = self._tf.TensorSpec([rows], self._tf.int32)
        rates = self._tf.TensorSpec([math.ceil(rows / self._config.batch_size)], self._tf.float32)
        return self._compiled(self._steps, order, rates)

    def _compiled(self, body: Callable[..., Any], *more: Any) -> Any:
        """Trace `body` now, once; the returned function can be called but is never traced again."""
        signature = (self._pixels, self._tf.TensorSpec([None], self._tf.int32), *more)
        return self._tf.function(body, input_signature=signature, autograph=False).get_concrete_function()

    def _steps(self, images: Any, labels: Any, order: Any, rates: Any) -> tuple[Any, Any]:
        tf, size = self._tf, self._config.batch_size
        self.traces += 1
        full, rest = divmod(order.shape[0], size)
        # Fixed shapes: the step of `size` rows is compiled separately from the last step of a window.
        batches, last = tf.reshape(order[: full * size], [full, size]), order[full * size :]

        def step(number: Any, loss: Any, correct: Any) -> tuple[Any, Any, Any]:
            more_loss, more_correct = self._step(images, labels, batches[number], rates[number])
            return number + 1, loss + more_loss, correct + more_correct

        state = (tf.constant(0), tf.constant(0.0, tf.float64), tf.constant(0, tf.int64))
        _, loss, correct = tf.while_loop(lambda number, *_: number < full, step, state, parallel_iterations=1)
        if rest:
            more_loss, more_correct = self._step(images, labels, last, rates[full])
            loss, correct = loss + more_loss, correct + more_correct
        return loss, correct

    def _step(self, images: Any, labels: Any, taken: Any, rate: Any) -> tuple[Any, Any]:
        tf, config = self._tf, self._config
        images, labels = self._scaled(tf.gather(images, taken)), tf.gather(labels, taken)
        with tf.GradientTape() as tape:
            logits = self._model(images, training=True)
            losses = self._losses(labels, logits)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, self._weights)
        for weight, velocity, gradient in zip(self._weights, self._velocity, gradients, strict=True):
            if config.weight_decay:
                weight.assign_sub(weight * config.weight_decay * rate)
            # Keras's two assignments, in one operation.
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=weight.handle, accum=velocity.handle, lr=rate, grad=gradient, momentum=config.momentum
            )
        return self._sums(labels, logits, losses)

    def _scored(self, images: Any, labels: Any) -> tuple[Any, Any]:
        logits = self._model(self._scaled(images), training=False)
        return self._sums(labels, logits, self._losses(labels, logits))

    def _losses(self, labels: Any, logits: Any) -> Any:
        # Not through `tf.nn`, which replaces this operation by a dozen that are deterministic on a GPU, too, and
        # doubles the time to compile the steps.
        with self._tf.device("CPU:0"):
            return self._tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits, labels=labels).loss

    def _scaled(self, images: Any) -> Any:
        return self._tf.cast(images, self._tf.float32) * self._scale + self._offset

    def _sums(self, labels: Any, logits: Any, losses: Any) -> tuple[Any, Any]:
        tf = self._tf
        hits = tf.equal(tf.argmax(logits, 1, output_type=tf.int32), labels)
        return tf.reduce_sum(tf.cast(losses, tf.float64)), tf.reduce_sum(tf.cast(hits, tf.int64))

    def _named(self, variables: list[Any]) -> dict[str, np.ndarray]:
        return {name: variable.numpy() for name, variable in zip(self._names, variables, strict=False)}

    def _assign(self, variables: list[Any], values: Mapping[str, np.ndarray]) -> None:
        for name, variable in zip(self._names, variables, strict=False):
            variable.assign(values[name])


def rate_after(config: TrainingConfig, steps: Any) -> Any:
    """Return the learning rate after `steps` steps; for an array of steps, an array of rates."""
    return config.learning_rate / (1 + config.decay * steps)
