"""One epoch of training, by several libraries: `python -m benchmarks.training numpy`.

All do the same work: 54,000 rows in a new random order, batches of 64, a 784-50-50-10 network with tanh, softmax
cross-entropy, gradient descent with momentum and a rate that falls a little at each step, loss and accuracy of the
fitted rows, and then the accuracy of the 6,000 rows held out. Loading, compiling and the first epoch do not count.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import decoding, job, subjects
from benchmarks.subjects import HELD_OUT, Measured

RATE, MOMENTUM, DECAY, BATCH = 0.001, 0.9, 1e-7, 64
SIZES = (784, 50, 50, 10)
EPOCHS, FITTED = 6, 60_000 - HELD_OUT


def epochs() -> int:
    """Return how many epochs each variant trains."""
    return 3 if subjects.quick() else EPOCHS


def measured(name: str, seconds: list[float], accuracy: float, said: str = "") -> Measured:
    """Return the median of all epochs but the first; `said` is what else shows that the work was done."""
    reached = f"{accuracy:.1%} held out after {len(seconds)} epochs" if accuracy else ""
    return Measured({name: statistics.median(seconds[1:])}, "; ".join(filter(None, (reached, said))))


def loop(
    name: str, epoch: Callable[[np.ndarray, int], float], rows: int = FITTED, most: int | None = None, said: str = ""
) -> Measured:
    """Time `epoch(order, first_step)` over `rows` rows, `most` times; it returns the accuracy of the held-out rows."""
    random, steps, seconds, accuracy = np.random.default_rng(1), -(-rows // BATCH), [], 0.0
    for number in range(most or epochs()):
        started = time.perf_counter()
        accuracy = epoch(random.permutation(rows), number * steps)
        seconds.append(time.perf_counter() - started)
    return measured(name, seconds, accuracy, said)


def initial(random: np.random.Generator) -> list[np.ndarray]:
    """Return Glorot-uniform kernels and zero biases, in turn."""
    arrays = []
    for inputs, units in pairwise(SIZES):
        limit = np.sqrt(6 / (inputs + units))
        arrays += [random.uniform(-limit, limit, (inputs, units)).astype(np.float32), np.zeros(units, np.float32)]
    return arrays


def idxflow_alone() -> Measured:
    """Our training as the step of a run does it, without the run around it: its own figures for each epoch."""
    from storage.datasets.training import training_config
    from tasks.normalize import normalize
    from tasks.train import train

    store, dataset, split = decoding.store(), decoding.mnist(), decoding.decoded("train")
    config = training_config(dataset, "tutorial", {"epochs": epochs()})
    normalization = normalize.fn(store, dataset, split, config).record
    model = train.fn(store, dataset, split, normalization, config, again=str(time.time_ns())).record
    return from_history("idxflow", model.history)


def idxflow_in_a_run() -> Measured:
    """The same, as recorded by `idxflow run` while Prefect runs beside it."""
    store = subjects.work_folder() / "store-training"
    command = [*job.run_command(store, epochs()), "--force"]
    job.checked(command)
    newest = max(store.glob("mnist/5-models/*/history.jsonl"), key=lambda path: path.stat().st_mtime)
    return from_history("idxflow in a run", newest)


def from_history(name: str, path: Path) -> Measured:
    """Return the figures that a training of ours recorded."""
    from storage.formats.history import read_history

    history = read_history(path)
    return measured(name, [epoch.seconds for epoch in history], history[-1].validation_accuracy or 0)


def keras_fit(name: str, **compiled: Any) -> Measured:
    """`model.fit` of today's Keras on TensorFlow, as the tutorial calls it."""
    keras = tensorflow_keras()
    pixels, labels = subjects.normalised()
    model = keras_model(keras, **compiled)

    timer = clock(keras)
    history = model.fit(
        pixels,
        np.eye(10, dtype=np.float32)[labels],
        BATCH,
        epochs(),
        verbose=0,
        validation_split=0.1,
        callbacks=[timer],
    )
    return measured(name, timer.seconds, history.history["val_accuracy"][-1])


def clock(keras: Any) -> Any:
    """Return a callback of `model.fit` that notes the seconds of each epoch in `seconds`."""

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.seconds: list[float] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.started = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds.append(time.perf_counter() - self.started)

    return Clock()


@cache
def tensorflow_keras() -> Any:
    """Import Keras on TensorFlow, with the threads that this process may use."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(subjects.threads())
    tf.config.threading.set_inter_op_parallelism_threads(subjects.threads())
    import keras

    keras.utils.set_random_seed(1)
    return keras


def keras_model(keras: Any, **compiled: Any) -> Any:
    """Return the tutorial's network, compiled."""
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((784,)), dense(50, "tanh"), dense(50, "tanh"), dense(10, "softmax")])
    rate = keras.optimizers.schedules.InverseTimeDecay(RATE, 1, DECAY)
    model.compile(keras.optimizers.SGD(rate, MOMENTUM), "categorical_crossentropy", metrics=["accuracy"], **compiled)
    return model


def torch_eager() -> Measured:
    """PyTorch: a loop over batches of tensors that are in memory already, with the fused optimizer."""
    import torch

    torch.set_num_threads(subjects.threads())
    torch.manual_seed(1)
    pixels, labels = (torch.from_numpy(array) for array in subjects.normalised())
    held_out = slice(len(labels) - HELD_OUT, None)
    linear, tanh = torch.nn.Linear, torch.nn.Tanh
    model = torch.nn.Sequential(linear(784, 50), tanh(), linear(50, 50), tanh(), linear(50, 10))
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, fused=True)
    entropy = torch.nn.functional.cross_entropy

    def epoch(order: np.ndarray, first: int) -> float:
        total, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for number, rows in enumerate(torch.from_numpy(order).split(BATCH), first):
            optimizer.param_groups[0]["lr"] = RATE / (1 + DECAY * number)
            optimizer.zero_grad(set_to_none=True)
            answers, wanted = model(pixels[rows]), labels[rows]
            loss = entropy(answers, wanted)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
            right += (answers.detach().argmax(1) == wanted).sum()
        with torch.no_grad():
            return float((model(pixels[held_out]).argmax(1) == labels[held_out]).float().mean())

    return loop("torch", epoch)


def jax_library() -> Any:
    """Import JAX for the CPU, with the threads that this process may use."""
    if subjects.threads() == 1:
        # JAX sizes its pool by the processors it may use.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    return jax


def jax_step(jax: Any) -> Callable[..., Any]:
    """Return one step, not compiled yet: (weights, velocity), rows, labels, rate to the same and (loss, right)."""
    jnp = jax.numpy

    def loss_of(weights: Any, rows: Any, wanted: Any) -> Any:
        answers = jax_answers(jax, weights, rows)
        losses = jax.nn.logsumexp(answers, 1) - jnp.take_along_axis(answers, wanted[:, None], 1)[:, 0]
        return losses.mean(), (losses.sum(), (answers.argmax(1) == wanted).sum())

    def step(state: Any, rows: Any, wanted: Any, rate: Any) -> Any:
        weights, velocity = state
        gradients, sums = jax.grad(loss_of, has_aux=True)(weights, rows, wanted)
        velocity = [MOMENTUM * v - rate * g for v, g in zip(velocity, gradients, strict=True)]
        return ([w + v for w, v in zip(weights, velocity, strict=True)], velocity), sums

    return step


def jax_answers(jax: Any, weights: Any, rows: Any) -> Any:
    """Return the logits of `rows`."""
    first = jax.numpy.tanh(rows @ weights[0] + weights[1])
    second = jax.numpy.tanh(first @ weights[2] + weights[3])
    return second @ weights[4] + weights[5]


def jax_scan() -> Measured:
    """JAX with one compiled call per epoch: `lax.scan` over the steps."""
    jax = jax_library()
    jnp, step = jax.numpy, jax_step(jax)
    pixels, labels = (jnp.asarray(array) for array in subjects.normalised())
    labels = labels.astype(jnp.int32)
    whole = (60_000 - HELD_OUT) // BATCH

    def whole_epoch(state: Any, pixels: Any, labels: Any, order: Any, first: Any) -> Any:
        def one(state: Any, given: Any) -> Any:
            rows, number = given
            return step(state, pixels[rows], labels[rows], RATE / (1 + DECAY * number))

        numbers = first + jnp.arange(whole)
        state, sums = jax.lax.scan(one, state, (order[: whole * BATCH].reshape(whole, BATCH), numbers))
        state, last = one(state, (order[whole * BATCH :], first + whole))
        answers = jax_answers(jax, state[0], pixels[-HELD_OUT:])
        # Both sums are returned: what is not, the compiler leaves out.
        sums = [some.sum() + more for some, more in zip(sums, last, strict=True)]
        return state, sums, (answers.argmax(1) == labels[-HELD_OUT:]).mean()

    compiled = jax.jit(whole_epoch, donate_argnums=0)
    state = jax_state(jnp)

    def epoch(order: np.ndarray, first: int) -> float:
        nonlocal state
        state, _, accuracy = compiled(state, pixels, labels, jnp.asarray(order), first)
        return float(accuracy)

    return loop("jax, lax.scan", epoch)


def jax_state(jnp: Any) -> Any:
    """Return weights and velocity as a training begins."""
    weights = [jnp.asarray(array) for array in initial(np.random.default_rng(1))]
    return weights, [jnp.zeros_like(array) for array in weights]


def jax_steps() -> Measured:
    """JAX with one compiled call per step, as its tutorials have it."""
    jax = jax_library()
    jnp, step = jax.numpy, jax.jit(jax_step(jax), donate_argnums=0)
    pixels, labels = subjects.normalised()
    labels = labels.astype(np.int32)
    judge = jax.jit(lambda weights, rows, wanted: (jax_answers(jax, weights, rows).argmax(1) == wanted).mean())
    state = jax_state(jnp)

    def epoch(order: np.ndarray, first: int) -> float:
        nonlocal state
        found = []
        for number, start in enumerate(range(0, len(order), BATCH)):
            rows = order[start : start + BATCH]
            state, sums = step(state, pixels[rows], labels[rows], RATE / (1 + DECAY * (first + number)))
            found.append(sums)
        sum(float(losses) for losses, _ in found)
        return float(judge(state[0], pixels[-HELD_OUT:], labels[-HELD_OUT:]))

    return loop("jax, a call per step", epoch)


def sklearn_mlp() -> Measured:
    """`MLPClassifier.partial_fit`, once per epoch."""
    from sklearn.neural_network import MLPClassifier

    pixels, labels = subjects.normalised()
    model = MLPClassifier(
        SIZES[1:-1], activation="tanh", solver="sgd", alpha=0, batch_size=BATCH, learning_rate_init=RATE,
        momentum=MOMENTUM, nesterovs_momentum=False, shuffle=False, random_state=1,
    )  # fmt: skip

    def epoch(order: np.ndarray, first: int) -> float:
        model.partial_fit(pixels[order], labels[order], classes=np.arange(10))
        return float((model.predict(pixels[-HELD_OUT:]) == labels[-HELD_OUT:]).mean())

    return loop("scikit-learn", epoch)


class ByHand:
    """The network in NumPy: forward, backward and the update, in place."""

    def __init__(self) -> None:
        self.weights = initial(np.random.default_rng(1))
        self.velocity = [np.zeros_like(array) for array in self.weights]

    def answers(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return both hidden layers and the logits."""
        w1, b1, w2, b2, w3, b3 = self.weights
        first = rows @ w1
        first += b1
        np.tanh(first, first)
        second = first @ w2
        second += b2
        np.tanh(second, second)
        logits = second @ w3
        logits += b3
        return first, second, logits

    def step(self, rows: np.ndarray, wanted: np.ndarray, rate: float) -> tuple[float, int]:
        """Take one step; return the sum of losses and the number of right answers before it."""
        first, second, logits = self.answers(rows)
        right = int((logits.argmax(1) == wanted).sum())
        logits -= logits.max(1, keepdims=True)
        np.exp(logits, logits)
        logits /= logits.sum(1, keepdims=True)
        every = np.arange(len(wanted))
        loss = -float(np.log(logits[every, wanted]).sum())
        logits[every, wanted] -= 1
        logits /= np.float32(len(wanted))
        self._update(self._gradients(rows, first, second, logits), np.float32(rate))
        return loss, right

    def _gradients(
        self, rows: np.ndarray, first: np.ndarray, second: np.ndarray, error: np.ndarray
    ) -> list[np.ndarray]:
        _, _, w2, _, w3, _ = self.weights
        below = error @ w3.T
        below *= 1 - second * second
        lowest = below @ w2.T
        lowest *= 1 - first * first
        return [rows.T @ lowest, lowest.sum(0), first.T @ below, below.sum(0), second.T @ error, error.sum(0)]

    def _update(self, gradients: list[np.ndarray], rate: np.float32) -> None:
        for weight, velocity, gradient in zip(self.weights, self.velocity, gradients, strict=True):
            velocity *= np.float32(MOMENTUM)
            gradient *= rate
            velocity -= gradient
            weight += velocity


def numpy_by_hand() -> Measured:
    """NumPy, forward and backward pass written out."""
    pixels, labels = subjects.normalised()
    network = ByHand()

    def epoch(order: np.ndarray, first: int) -> float:
        for number, start in enumerate(range(0, len(order), BATCH), first):
            rows = order[start : start + BATCH]
            network.step(pixels[rows], labels[rows], RATE / (1 + DECAY * number))
        return float((network.answers(pixels[-HELD_OUT:])[2].argmax(1) == labels[-HELD_OUT:]).mean())

    return loop("numpy by hand", epoch)


def blas_floor() -> Measured:
    """The matrix products of an epoch alone, into memory that is there already, rows in order: no work can do without.

    Eight per full step (three forward, five backward), and three for the rows held out. The last, smaller step of an
    epoch is left out.
    """
    pixels, _ = subjects.normalised()
    w1, _, w2, _, w3, _ = initial(np.random.default_rng(1))
    first, second, logits = (np.full((BATCH, units), 0.1, np.float32) for units in SIZES[1:])
    g1, g2, g3 = np.empty_like(w1), np.empty_like(w2), np.empty_like(w3)
    fitted, outputs = len(pixels) - HELD_OUT, [np.empty((HELD_OUT, units), np.float32) for units in SIZES[1:]]

    def epoch(order: np.ndarray, number: int) -> float:
        for start in range(0, fitted - BATCH + 1, BATCH):
            rows = pixels[start : start + BATCH]
            np.matmul(rows, w1, first)
            np.matmul(first, w2, second)
            np.matmul(second, w3, logits)
            np.matmul(second.T, logits, g3)
            np.matmul(logits, w3.T, second)
            np.matmul(first.T, second, g2)
            np.matmul(second, w2.T, first)
            np.matmul(rows.T, first, g1)
        below = pixels[-HELD_OUT:]
        for weights, output in zip((w1, w2, w3), outputs, strict=True):
            below = np.matmul(below, weights, output)
        return 0.0

    return loop("BLAS floor", epoch)


VARIANTS: subjects.Variants = {
    "idxflow": idxflow_alone,
    "idxflow in a run": idxflow_in_a_run,
    "model.fit": lambda: keras_fit("model.fit"),
    "steps_per_execution": lambda: keras_fit("steps_per_execution", steps_per_execution=100),
    "torch": torch_eager,
    "jax, lax.scan": jax_scan,
    "jax, a call per step": jax_steps,
    "scikit-learn": sklearn_mlp,
    "numpy by hand": numpy_by_hand,
    "BLAS floor": blas_floor,
}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
