"""Fit the network to rows: an epoch makes one compiled call per window of rows, with the loop over steps inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from storage.datasets.training import TrainingConfig
from storage.records import LayerActivity
from storage.runtime import cancellation
from tasks.model import activity, network, optimizers, own_network
from tasks.model.augmentation import Augmentation
from tasks.model.own_network import OwnNetwork
from tasks.model.rates import rate_after
from tasks.model.scaling import Statistics, scale_and_offset
from tasks.model.training_rows import Rows


class Fitting:
    """A network in training: weights and slots of the optimizer on the device, trained on the pixels of `rows`.

    Each step takes the optimizer's rule (`optimizers`) at the schedule's rate (`rates`), both as Keras has them. The
    loss is the mean categorical cross-entropy of the step's rows, smoothed if `config` asks for it. Reported
    losses are plain cross-entropy in any case, so that trainings and fitted and held-out rows can be compared.

    Pixels stay bytes until the step that uses them: gathering a quarter of the bytes saves more than scaling them
    again in every epoch costs.

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
        self._tf = tf = network.tensorflow()
        self._config, self._rows, self._fitted, self._augmentation = config, rows, fitted, augmentation
        self._pixels = tf.TensorSpec([None, architecture.inputs], tf.uint8)
        self._scale, self._offset = scale_and_offset(statistics)
        self._model = _begun(architecture, config)
        self._names = tuple(architecture.shapes)
        self._layers = layers_with_weights(architecture.trained_shapes)
        self._weights = [variable.value for variable in self._model.trainable_weights]
        # Of a user's own layers: what keeps weights within bounds, after each step.
        self._bounded = [variable for variable in self._model.trainable_weights if variable.constraint is not None]
        # Each step moves these, too: the moving averages of normalizations.
        self._averages = [variable.value for variable in self._model.non_trainable_weights]
        self._random = network.random_states(self._model)
        self._scored_at_once = max(1, network.SCORED_NUMBERS // architecture.largest_output)
        self._slots = {
            slot: [tf.Variable(tf.zeros_like(variable)) for variable in self._weights]
            for slot in optimizers.slots(config)
        }
        self.gradients: dict[str, float] = {}
        """By layer: the norm of the gradient of its weights, without biases, in the last step of the last epoch."""
        self.calls = 0
        """Number of compiled calls for epochs so far."""
        self.traces = 0
        """How often the steps of a window were compiled: once per window length, so at most twice."""
        self._by_step = 2 if optimizers.counts_steps(config) else 1
        # Some of Keras's layers choose at random what they compile.
        with network.seeded(config.seed):
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
    def slots(self) -> dict[str, dict[str, np.ndarray]]:
        """A copy of what the optimizer keeps for each trained weight, by the slot's and the weight's name."""
        return {slot: self._named(variables) for slot, variables in self._slots.items()}

    def set_weights(self, weights: network.Weights) -> None:
        """Replace the weights."""
        self._assign([*self._weights, *self._averages], weights)

    def set_slots(self, slots: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Replace what the optimizer keeps for each weight."""
        for slot, variables in self._slots.items():
            self._assign(variables, slots[slot])

    def epoch(self, number: int) -> tuple[float, float]:
        """Pass over the fitted rows once, in the order of epoch `number` (from 1).

        Returns mean loss and accuracy over the rows, measured for each row just before its step, as Keras reports
        them; of augmented rows, as these are.
        """
        loss, correct, passed = 0.0, 0, 0
        for layer, state in enumerate(self._random):
            # What is dropped follows from seed, epoch and step alone, however often the training was interrupted.
            state.assign(network.random_state(self._config.seed, number, layer))
        for window in self._rows.windows(number):
            cancellation.check()
            given = (window.order, *self._given(number, passed, len(window.order)))
            more_loss, more_correct, norms = self._passes[len(window.order)](
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
            more_loss, more_correct = self._score(images, labels)
            loss, correct = loss + float(more_loss), correct + int(more_correct)
        return loss / (stop - start), correct / (stop - start)

    def activity(self) -> tuple[LayerActivity, ...]:
        """Return what the hidden units put out for the first fitted rows, with current weights."""
        for images, _ in self._rows.pieces(0, min(self._fitted, activity.ROWS, self._scored_at_once)):
            return activity.measured(self._model, self._scaled(images))
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

    def _pass(self, rows: int) -> Any:
        """Compile the pass over a window that takes `rows` of its rows."""
        order = self._tf.TensorSpec([rows], self._tf.int32)
        specs = (self._tf.TensorSpec(values.shape, self._tf.float32) for values in self._given(1, 0, rows))
        return self._compiled(self._steps, order, *specs)

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

    def _compiled(self, body: Callable[..., Any], *more: Any) -> Any:
        """Trace `body` now, once; the returned function can be called but is never traced again."""
        signature = (self._pixels, self._tf.TensorSpec([None], self._tf.int32), *more)
        return self._tf.function(body, input_signature=signature, autograph=False).get_concrete_function()

    def _steps(self, images: Any, labels: Any, order: Any, *given: Any) -> tuple[Any, Any, Any]:
        tf, size = self._tf, self._config.batch_size
        self.traces += 1
        by_step, per_row = given[: self._by_step], (order, *given[self._by_step :])
        # Fixed shapes: the step of `size` rows is compiled separately from the last step of a window, which has up to
        # as many rows, and whose gradients are measured: in every step, that would take a few percent of the time.
        full = (order.shape[0] - 1) // size
        batches = [tf.reshape(values[: full * size], [full, size, *values.shape[1:]]) for values in per_row]

        def step(number: Any, loss: Any, correct: Any) -> tuple[Any, Any, Any]:
            more_loss, more_correct, _ = self._step(
                images, labels, [values[number] for values in batches], [values[number] for values in by_step]
            )
            return number + 1, loss + more_loss, correct + more_correct

        state = (tf.constant(0), tf.constant(0.0, tf.float64), tf.constant(0, tf.int64))
        _, loss, correct = tf.while_loop(lambda number, *_: number < full, step, state, parallel_iterations=1)
        last = [values[full * size :] for values in per_row]
        more_loss, more_correct, gradients = self._step(images, labels, last, [values[full] for values in by_step])
        return loss + more_loss, correct + more_correct, self._norms(gradients)

    def _step(self, images: Any, labels: Any, per_row: Sequence[Any], by_step: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Take a step; `per_row` and `by_step` are what it needs of `_given`, after the indices of its rows."""
        tf, config = self._tf, self._config
        taken, *transforms = per_row
        images, labels = tf.gather(images, taken), tf.gather(labels, taken)
        if self._augmentation:
            images = self._augmentation.apply(images, *transforms)
        images = self._scaled(images)
        with tf.GradientTape() as tape:
            logits = self._model(images, training=True)
            losses = self._losses(labels, logits)
            loss = tf.reduce_mean(self._smoothed(labels, logits) if config.label_smoothing else losses)
            if penalties := self._model.losses:
                # Of the regularizers of a user's own layers.
                loss = tf.add_n([loss, *penalties])
        found = tape.gradient(loss, self._weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = [tf.convert_to_tensor(gradient) for gradient in found]
        rates = optimizers.step_rates(config, *by_step)
        for place, (weight, gradient) in enumerate(zip(self._weights, gradients, strict=True)):
            own = {slot: variables[place] for slot, variables in self._slots.items()}
            optimizers.update(config, weight, own, gradient, rates)
        for variable in self._bounded:
            variable.assign(variable.constraint(variable))
        return *self._sums(labels, logits, losses), gradients

    def _norms(self, gradients: list[Any]) -> Any:
        """Return the Euclidean norms of the gradients of what has a place in `_layers`, float64."""
        tf = self._tf
        # Squares of float32 could overflow although the gradient itself does not.
        norms = [tf.norm(tf.cast(gradient, tf.float64)) for gradient in gradients if len(gradient.shape) > 1]
        return tf.stack(norms) if norms else tf.zeros([0], tf.float64)

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
        return {name: variable.numpy() for name, variable in zip(self._names, variables, strict=False)}

    def _assign(self, variables: list[Any], values: Mapping[str, np.ndarray]) -> None:
        for name, variable in zip(self._names, variables, strict=False):
            variable.assign(values[name])


def _begun(architecture: network.Architecture | OwnNetwork, config: TrainingConfig) -> Any:
    """Return the Keras model of a network with the weights before training."""
    if isinstance(architecture, OwnNetwork):
        return own_network.build(architecture, architecture.start)
    start = network.initial_weights(architecture, config.seed, config.initialization)
    return network.build(architecture, start, config.dropout)


def layers_with_weights(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the names of the layers whose gradients are measured: those that have weights of more than one dimension.

    Args:
        shapes: of each trained array, by name, such as `hidden_1.kernel`; biases have one dimension.
    """
    return tuple(name.rpartition(".")[0] for name, shape in shapes.items() if len(shape) > 1)
