"""The compiled steps of a training, with the weights they change; a later training of the same kind takes them over.

To compile takes longer than a few epochs over a small data set, and studies and audits have many trainings of a kind.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from storage.datasets.training import TrainingConfig
from tasks.model import network, optimizers, own_network
from tasks.model.augmentation import Augmentation
from tasks.model.own_network import OwnNetwork
from tasks.model.scaling import Statistics, scale_and_offset

KEPT = 8
"""How many compiled steps are kept that no training uses."""
MOST_WEIGHTS = 1 << 18
"""Of a network whose compiled steps are kept, so that they take a few megabytes."""

_STEP = (
    *("dropout", "optimizer", "momentum", "beta_1", "beta_2", "rho", "epsilon", "weight_decay"),
    *("label_smoothing", "batch_size"),
)
"""The parameters that a compiled step depends on; `Compiled` sees no others."""

_free: list[Compiled] = []
_taking = threading.Lock()


@dataclass(frozen=True)
class Kind:
    """All that compiled steps depend on."""

    architecture: network.Architecture | OwnNetwork
    config: TrainingConfig
    lengths: frozenset[int]
    """How many rows a window passes over."""
    augmentation: Augmentation | None

    @classmethod
    def of(
        cls,
        architecture: network.Architecture | OwnNetwork,
        config: TrainingConfig,
        lengths: Iterable[int],
        augmentation: Augmentation | None,
    ) -> Self:
        """Return the kind of a training: what its steps are given when they are called, it leaves out."""
        # Some of Keras's layers choose at random what they compile.
        names = (*_STEP, "seed") if isinstance(architecture, OwnNetwork) else _STEP
        still = replace(augmentation, shift=0, rotate=0, zoom=0, seed=0) if augmentation else None
        return cls(architecture, TrainingConfig(**config.model_dump(include={*names})), frozenset(lengths), still)


def taken(kind: Kind, user: object) -> Compiled:
    """Return compiled steps of a kind, for `user` alone until it is deleted; the weights may be those of any training.

    What Keras or TensorFlow raises about the layers of a user's own model is raised.
    """
    with _taking:
        compiled = next((each for each in _free if each.kind == kind), None)
        if compiled:
            _free.remove(compiled)
        del _free[:-KEPT]
    compiled = compiled or Compiled(kind)
    # What a user's own layers keep besides weights is not known here, so each training of them begins anew.
    if not isinstance(kind.architecture, OwnNetwork) and kind.architecture.parameters <= MOST_WEIGHTS:
        weakref.finalize(user, _free.append, compiled).atexit = False
    return compiled


class Compiled:
    """A network on the device with the slots of its optimizer, and the compiled steps that train it.

    Pixels stay bytes until the step that uses them: gathering a quarter of the bytes saves more than scaling them
    again in every epoch costs.
    """

    def __init__(self, kind: Kind) -> None:
        self._tf = tf = network.tensorflow()
        self.kind, self._config, self._augmentation = kind, kind.config, kind.augmentation
        self.model = _model(kind)
        self.weights = [variable.value for variable in self.model.trainable_weights]
        # Of a user's own layers: what keeps weights within bounds, after each step.
        self._bounded = [variable for variable in self.model.trainable_weights if variable.constraint is not None]
        # Each step moves these, too: the moving averages of normalizations.
        self.averages = [variable.value for variable in self.model.non_trainable_weights]
        self.random = network.random_states(self.model)
        self.slots = {
            slot: [tf.Variable(tf.zeros_like(variable)) for variable in self.weights]
            for slot in optimizers.slots(self._config)
        }
        inputs = kind.architecture.inputs
        self._pixels = tf.TensorSpec([None, inputs], tf.uint8)
        self._scale, self._offset = tf.Variable(1.0), tf.Variable(tf.zeros([inputs]))
        self.traces = 0
        """How often the steps of a window were compiled: once per window length, so at most twice."""
        self._by_step = 2 if optimizers.counts_steps(self._config) else 1
        with network.seeded(self._config.seed):
            self.passes = {length: self._pass(length) for length in kind.lengths}
            """By the rows of a window: takes images, labels, their order, and what `Fitting` gives for steps and rows.

            Returns the sum of the losses, the number of right rows, and the norms of the last step's gradients.
            """
            self.score = self._compiled(self._scored)
            """Takes images and labels; returns the sum of the losses and the number of right rows."""

    def begin(self, statistics: Statistics) -> None:
        """Normalise pixels with these statistics from now on, and let the optimizer begin with nothing in its slots."""
        for variable in itertools.chain(*self.slots.values()):
            variable.assign(self._tf.zeros_like(variable))
        scale, offset = scale_and_offset(statistics)
        self._scale.assign(scale)
        self._offset.assign(offset)

    def scaled(self, images: Any) -> Any:
        """Return images, uint8 or float32 of shape (n, pixels), 0-255, as the network takes them: float32."""
        return self._tf.cast(images, self._tf.float32) * self._scale + self._offset

    def _pass(self, rows: int) -> Any:
        """Compile the pass over a window that takes `rows` of its rows."""
        spec, steps = self._tf.TensorSpec, math.ceil(rows / self._config.batch_size)
        given = [spec([steps], self._tf.float32)] * self._by_step
        if self._augmentation:
            given.append(spec([rows, 8], self._tf.float32))
        return self._compiled(self._steps, spec([rows], self._tf.int32), *given)

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
        last = [values[full * size :] for values in per_row]
        if not full:
            *sums, gradients = self._step(images, labels, last, [values[0] for values in by_step])
            return *sums, self._norms(gradients)
        batches = [tf.reshape(values[: full * size], [full, size, *values.shape[1:]]) for values in per_row]

        def step(number: Any, loss: Any, correct: Any) -> tuple[Any, Any, Any]:
            more_loss, more_correct, _ = self._step(
                images, labels, [values[number] for values in batches], [values[number] for values in by_step]
            )
            return number + 1, loss + more_loss, correct + more_correct

        state = (tf.constant(0), tf.constant(0.0, tf.float64), tf.constant(0, tf.int64))
        _, loss, correct = tf.while_loop(lambda number, *_: number < full, step, state, parallel_iterations=1)
        more_loss, more_correct, gradients = self._step(images, labels, last, [values[full] for values in by_step])
        return loss + more_loss, correct + more_correct, self._norms(gradients)

    def _step(self, images: Any, labels: Any, per_row: Sequence[Any], by_step: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Take a step; `per_row` and `by_step` are what it needs of what it is given, after the indices of its rows."""
        tf, config = self._tf, self._config
        taken, *transforms = per_row
        images, labels = tf.gather(images, taken), tf.gather(labels, taken)
        if self._augmentation:
            images = self._augmentation.apply(images, *transforms)
        images = self.scaled(images)
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True)
            losses = self._losses(labels, logits)
            loss = tf.reduce_mean(self._smoothed(labels, logits) if config.label_smoothing else losses)
            if penalties := self.model.losses:
                # Of the regularizers of a user's own layers.
                loss = tf.add_n([loss, *penalties])
        found = tape.gradient(loss, self.weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = [tf.convert_to_tensor(gradient) for gradient in found]
        rates = optimizers.step_rates(config, *by_step)
        for place, (weight, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            own = {slot: variables[place] for slot, variables in self.slots.items()}
            optimizers.update(config, weight, own, gradient, rates)
        for variable in self._bounded:
            variable.assign(variable.constraint(variable))
        return *self._sums(labels, logits, losses), gradients

    def _norms(self, gradients: list[Any]) -> Any:
        """Return the Euclidean norms of the gradients of the kernels, float64."""
        tf = self._tf
        # Squares of float32 could overflow although the gradient itself does not.
        norms = [tf.norm(tf.cast(gradient, tf.float64)) for gradient in gradients if len(gradient.shape) > 1]
        return tf.stack(norms) if norms else tf.zeros([0], tf.float64)

    def _scored(self, images: Any, labels: Any) -> tuple[Any, Any]:
        logits = self.model(self.scaled(images), training=False)
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

    def _sums(self, labels: Any, logits: Any, losses: Any) -> tuple[Any, Any]:
        tf = self._tf
        hits = tf.equal(tf.argmax(logits, 1, output_type=tf.int32), labels)
        return tf.reduce_sum(tf.cast(losses, tf.float64)), tf.reduce_sum(tf.cast(hits, tf.int64))


def _model(kind: Kind) -> Any:
    """Return the Keras model of a network; its weights are still to be set."""
    if isinstance(kind.architecture, OwnNetwork):
        return own_network.build(kind.architecture, kind.architecture.start)
    return network.build(kind.architecture, {}, kind.config.dropout)
