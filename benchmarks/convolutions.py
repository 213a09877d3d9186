"""One epoch of the profile `conv`, by several libraries: `python -m benchmarks.convolutions "model.fit, one thread"`.

All train the same network (convolutions of 3×3 with 32 and 64 filters, each with batch normalization, relu and max
pooling of 2×2; 128 units; dropout) on the first 10,000 training rows of MNIST: 9,000 rows in random order, batches of
64, gradient descent with momentum and a falling rate, loss and accuracy of these rows, and the accuracy of the 1,000
rows held out. Loading, compiling and the first epoch do not count.

Before a variant is timed, it takes ten steps from the same initial weights, with the same rows in the same order and
without dropout, whose random numbers are each library's own. Their mean loss must be idxflow's.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np

from benchmarks import decoding, subjects, training
from benchmarks.subjects import Measured
from storage.datasets.training import TrainingConfig, training_config
from tasks.model.network import Architecture, initial_weights
from tasks.model.rates import rate_after
from tasks.model.scaling import Statistics, apply
from tasks.model.training_rows import row_order

OURS = "idxflow"
ROWS, HELD_OUT, EPOCHS = 10_000, 1_000, 4
FITTED = ROWS - HELD_OUT
SIDE, CLASSES = 28, 10
CHECKED = 640
"""Rows of the ten steps that are compared."""
TOLERANCE = 0.001
"""Of the mean loss of these steps, as a share of it. Rounding makes less than a tenth of that."""
KERAS_EPSILON, KERAS_MOMENTUM = 1e-3, 0.99
"""Keras's defaults for batch normalization."""


def config(dropout: bool = True) -> TrainingConfig:
    """Return the parameters of the profile."""
    return training_config(decoding.mnist(), "conv", {} if dropout else {"dropout": 0.0})


def architecture() -> Architecture:
    """Return the network of the profile."""
    own = config()
    return Architecture(SIDE * SIDE, own.hidden, own.activation, CLASSES, own.conv, (SIDE, SIDE), own.batch_norm)


def weights() -> dict[str, np.ndarray]:
    """Return the weights that all variants begin with."""
    own = config()
    return initial_weights(architecture(), own.seed, own.initialization)


@cache
def raw() -> tuple[np.ndarray, np.ndarray]:
    """Return the rows: uint8 of shape (rows, pixels), and labels; the last 1,000 are held out."""
    return subjects.load("train-images")[:ROWS].reshape(ROWS, -1), subjects.load("train-labels")[:ROWS]


@cache
def statistics() -> Statistics:
    """Return what pixels are normalised with, of the fitted rows."""
    scaled = raw()[0][:FITTED] / 127.5 - 1
    mean = scaled.mean(axis=0)
    return Statistics(mean, float((scaled - mean).std()))


def normalised() -> tuple[np.ndarray, np.ndarray]:
    """Return the rows as the other libraries take them: float32 of shape (rows, pixels), and labels as int32."""
    images, labels = raw()
    return apply(images, statistics()), labels.astype(np.int32)


def first_rows() -> np.ndarray:
    """Return the rows of the ten steps, in their order."""
    return row_order(config().seed, 1, CHECKED)


def check(name: str, loss: float) -> str:
    """Return what to say of a variant that has made idxflow's mean loss in the first ten steps.

    Raises:
        ValueError: it made another one.
    """
    wanted = _expected_loss()
    if not abs(loss - wanted) <= TOLERANCE * wanted:
        raise ValueError(f"{name}: expected a mean loss of {wanted:.4f} in the first ten steps; found {loss:.4f}")
    return f"loss of the first ten steps {loss:.4f}"


def _expected_loss() -> float:
    """Return idxflow's loss, computed once, in a process without the other library."""
    file = subjects.work_folder() / "loss-of-conv.json"
    if not file.exists():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
            file.write_text(json.dumps(processes.submit(our_first_loss).result()), encoding="utf-8")
    return float(json.loads(file.read_text(encoding="utf-8")))


def our_first_loss() -> float:
    """Return our mean loss in the first ten steps."""
    return float(_fitting(config(dropout=False), CHECKED).epoch(1)[0])


def ours() -> Measured:
    """The loop of the step `train`: one compiled call for each epoch, always on one thread."""
    fitting, seconds, accuracy = _fitting(config(), FITTED), [], 0.0
    for number in range(1, epochs() + 1):
        started = time.perf_counter()
        fitting.epoch(number)
        accuracy = fitting.score(FITTED, ROWS)[1]
        seconds.append(time.perf_counter() - started)
    return training.measured(OURS, seconds, accuracy)


def _fitting(own: TrainingConfig, fitted: int) -> Any:
    from storage.runtime import arithmetic
    from tasks.model.fitting import Fitting
    from tasks.model.training_rows import InMemory

    arithmetic.leave_to_the_processor()
    rows = InMemory(*raw(), fitted, own.seed)
    return Fitting(architecture(), own, statistics(), rows, fitted)


def epochs() -> int:
    """Return how many epochs each variant trains."""
    return 2 if subjects.quick() else EPOCHS


def with_keras(name: str) -> Measured:
    """`model.fit` of Keras on TensorFlow."""
    keras = training.tensorflow_keras()
    pixels, labels = normalised()
    images, targets = pixels.reshape(-1, SIDE, SIDE, 1), np.eye(CLASSES, dtype=np.float32)[labels]
    checked = first_rows()
    model = keras_model(keras, config(dropout=False))
    done = model.fit(images[checked], targets[checked], training.BATCH, shuffle=False, verbose=0)
    said = check(name, done.history["loss"][0])
    model, clock = keras_model(keras, config()), training.clock(keras)
    done = model.fit(
        images, targets, training.BATCH, epochs(), verbose=0, validation_split=HELD_OUT / ROWS, callbacks=[clock]
    )
    return training.measured(name, clock.seconds, done.history["val_accuracy"][-1], said)


def keras_model(keras: Any, own: TrainingConfig) -> Any:
    """Return the network of the profile with its initial weights, compiled."""
    layers, blocks = keras.layers, []
    for filters in own.conv:
        blocks += [layers.Conv2D(filters, 3, padding="same", use_bias=False), *_normalised_relu(layers)]
        blocks += [layers.MaxPooling2D(2)]
    blocks += [layers.Flatten()]
    for units in own.hidden:
        blocks += [layers.Dropout(own.dropout), layers.Dense(units, use_bias=False), *_normalised_relu(layers)]
    last = layers.Dense(CLASSES, "softmax")
    model = keras.Sequential([keras.Input((SIDE, SIDE, 1)), *blocks, layers.Dropout(own.dropout), last])
    for name, values in weights().items():
        layer, part = name.split(".")
        places = [place for place in model.layers if place.weights]
        (variable,) = [v for v in places[_place(layer)].weights if v.name == part]
        variable.assign(values)
    rate = keras.optimizers.schedules.InverseTimeDecay(own.learning_rate, 1, own.decay)
    sgd = keras.optimizers.SGD(rate, own.momentum)
    model.compile(sgd, "categorical_crossentropy", metrics=["accuracy"])
    return model


def _normalised_relu(layers: Any) -> list[Any]:
    return [layers.BatchNormalization(), layers.Activation("relu")]


def _place(layer: str) -> int:
    """Return the place of a layer among those of the Keras model that have weights."""
    own = architecture()
    return [name for kernel in own.kernels for name in (kernel, own.norms.get(kernel)) if name].index(layer)


class JaxNetwork:
    """The network of the profile in JAX, and a step of its training."""

    def __init__(self, jax: Any, own: TrainingConfig) -> None:
        self._jax, self._own = jax, own
        self._momentum, self._kept = own.momentum, 1 - own.dropout
        self.step = jax.jit(self._step, donate_argnums=0)
        self.accuracy = jax.jit(self._accuracy)

    def state(self) -> Any:
        """Return trained weights, velocity and moving averages as a training begins."""
        start = {name: self._jax.numpy.asarray(values) for name, values in weights().items()}
        trained = {name: start[name] for name in architecture().trained_shapes}
        averages = {name: values for name, values in start.items() if name not in trained}
        return trained, self._jax.tree.map(self._jax.numpy.zeros_like, trained), averages

    def _step(self, state: Any, rows: Any, wanted: Any, rate: Any, key: Any) -> Any:
        """Take a step; return the state after it, the sum of the losses, and the number of right answers."""
        jax, (trained, velocity, averages) = self._jax, state
        gradients, (loss, right, seen) = jax.grad(self._loss, has_aux=True)(trained, rows, wanted, key)
        velocity = jax.tree.map(lambda v, g: self._momentum * v - rate * g, velocity, gradients)
        trained = jax.tree.map(lambda w, v: w + v, trained, velocity)
        averages = jax.tree.map(lambda a, s: KERAS_MOMENTUM * a + (1 - KERAS_MOMENTUM) * s, averages, seen)
        return (trained, velocity, averages), loss, right

    def _loss(self, trained: Any, rows: Any, wanted: Any, key: Any) -> Any:
        seen: dict[str, Any] = {}
        answers = self._answers(trained, rows, partial(self._by_batch, seen), partial(self._dropped, key))
        losses = self._jax.nn.logsumexp(answers, 1) - self._jax.numpy.take_along_axis(answers, wanted[:, None], 1)[:, 0]
        return losses.mean(), (losses.sum(), (answers.argmax(1) == wanted).sum(), seen)

    def _accuracy(self, state: Any, rows: Any, wanted: Any) -> Any:
        trained, _, averages = state

        def by_average(norm: str, values: Any) -> Any:
            return averages[f"{norm}.moving_mean"], averages[f"{norm}.moving_variance"]

        answers = self._answers(trained, rows, by_average, lambda _, values: values)
        return (answers.argmax(1) == wanted).mean()

    def _answers(self, trained: Any, rows: Any, moments: Callable[..., Any], dropped: Callable[..., Any]) -> Any:
        """Return the logits.

        Args:
            moments: returns the mean and the variance that a normalization, given by its name, uses for its inputs.
            dropped: leaves out inputs of a dense layer, given by its number.
        """
        jax, norms = self._jax, architecture().norms
        values = rows.reshape(-1, SIDE, SIDE, 1)

        def activated(layer: str, values: Any) -> Any:
            norm = norms[layer]
            mean, variance = moments(norm, values)
            scale = trained[f"{norm}.gamma"] * jax.lax.rsqrt(variance + KERAS_EPSILON)
            return jax.nn.relu(values * scale + (trained[f"{norm}.beta"] - mean * scale))

        for layer, _, _ in architecture().convolutions:
            kernel = trained[f"{layer}.kernel"]
            values = jax.lax.conv_general_dilated(
                values, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            values = activated(layer, values)
            number, side, _, filters = values.shape
            values = values.reshape(number, side // 2, 2, side // 2, 2, filters).max((2, 4))
        values = values.reshape(len(rows), -1)
        *hidden, last = (name for name, _, _ in architecture().layers)
        for number, layer in enumerate(hidden):
            values = activated(layer, dropped(number, values) @ trained[f"{layer}.kernel"])
        return dropped(len(hidden), values) @ trained[f"{last}.kernel"] + trained[f"{last}.bias"]

    def _by_batch(self, seen: dict[str, Any], norm: str, values: Any) -> Any:
        axes = tuple(range(values.ndim - 1))
        mean, variance = values.mean(axes), values.var(axes)
        seen |= {f"{norm}.moving_mean": mean, f"{norm}.moving_variance": variance}
        return mean, variance

    def _dropped(self, key: Any, number: int, values: Any) -> Any:
        if self._kept == 1:
            return values
        random = self._jax.random
        kept = random.bernoulli(random.fold_in(key, number), self._kept, values.shape)
        return self._jax.numpy.where(kept, values / self._kept, 0)


def with_jax(name: str) -> Measured:
    """JAX, one compiled call per step, as its tutorials have it."""
    jax = training.jax_library()
    pixels, labels = normalised()
    own, key = config(), jax.random.key(1)

    def passed(network: JaxNetwork, state: Any, order: np.ndarray, first: int) -> tuple[Any, float]:
        """Pass over rows once; return the state after that, and the mean loss."""
        found = []
        for number, start in enumerate(range(0, len(order), training.BATCH), first):
            rows, rate = order[start : start + training.BATCH], rate_after(own, number, 0)
            given = (pixels[rows], labels[rows], rate, jax.random.fold_in(key, number))
            state, loss, _ = network.step(state, *given)
            found.append(loss)
        return state, sum(map(float, found)) / len(order)

    plain, network = JaxNetwork(jax, config(dropout=False)), JaxNetwork(jax, own)
    said = check(name, passed(plain, plain.state(), first_rows(), 0)[1])
    state = network.state()

    def epoch(order: np.ndarray, first: int) -> float:
        nonlocal state
        state, _ = passed(network, state, order, first)
        return float(network.accuracy(state, pixels[FITTED:], labels[FITTED:]))

    return training.loop(name, epoch, FITTED, epochs(), said)


def name_of(library: str, threads: int) -> str:
    """Return the name of a variant."""
    return f"{library}, {('one thread', 'two threads')[threads - 1]}"


VARIANTS: subjects.Variants = {
    OURS: ours,
    **{name: partial(with_keras, name) for name in (name_of("model.fit", 1), name_of("model.fit", 2))},
    **{name: partial(with_jax, name) for name in (name_of("jax", 1), name_of("jax", 2))},
}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
