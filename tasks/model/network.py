"""The network: a Keras MLP described by a few numbers, its weights as plain arrays, and its export for users."""

from __future__ import annotations

import json
import logging
import os
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import DamagedEntry, made_again
from storage.files import read_json, write_json
from storage.formats import arrays
from storage.runtime import imports
from tasks.model.scaling import Statistics, scale_and_offset
from tasks.ui.banners import without_banners

MAX_UNITS = 1 << 24

Weights = Mapping[str, np.ndarray]
"""Float32 arrays by name: `hidden_1.kernel` of shape (inputs, units), `hidden_1.bias` of shape (units,), …"""

_log = logging.getLogger(__name__)
_loading = threading.Lock()
_OPTIONAL = ("jax", "matplotlib", "pandas", "scipy", "sklearn")
"""TensorFlow and Keras import these if they are installed."""


@dataclass(frozen=True)
class Architecture:
    """A multilayer perceptron: a sequence of dense layers and a softmax over the classes."""

    inputs: int
    hidden: tuple[int, ...]
    activation: str
    """Activation of the hidden layers, by its name in Keras."""
    classes: int

    @property
    def layers(self) -> tuple[tuple[str, int, int], ...]:
        """Name, inputs and units of each dense layer, starting at the pixels."""
        sizes = (self.inputs, *self.hidden, self.classes)
        names = (*(f"hidden_{n + 1}" for n in range(len(self.hidden))), "classes")
        return tuple(zip(names, sizes[:-1], sizes[1:], strict=True))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array of weights, in Keras's order."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, inputs, units in self.layers:
            shapes |= {f"{name}.kernel": (inputs, units), f"{name}.bias": (units,)}
        return shapes

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum((inputs + 1) * units for _, inputs, units in self.layers)


@cache
def tensorflow() -> Any:
    """Import TensorFlow, which takes seconds, and configure it: quiet, deterministic, one thread.

    The matrices are so small that distributing them takes longer than multiplying them: one thread is fastest and
    leaves the other cores free. A fixed number of threads also fixes the order of sums. What only converters, plots
    and adapters use is not imported with it: that would take half as long again, and a quarter more memory.
    """
    with _loading:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ["KERAS_BACKEND"] = "tensorflow"
        with without_banners(), imports.without(*_OPTIONAL):
            import tensorflow as tf
        tf.config.experimental.enable_op_determinism()
        try:
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            _log.debug("TensorFlow was already running; its threads stay as they are")
        return tf


def device() -> str:
    """Return what TensorFlow computes on: `CPU`, or the name of the first GPU that it can use."""
    tf = tensorflow()
    for gpu in tf.config.list_physical_devices("GPU"):
        return str(tf.config.experimental.get_device_details(gpu).get("device_name", "GPU"))
    return "CPU"


def initial_weights(architecture: Architecture, seed: int) -> dict[str, np.ndarray]:
    """Return Glorot-uniform kernels and zero biases, the same for the same seed on any machine.

    Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010,
    equation 16: uniform within ±sqrt(6 / (inputs + units)).
    """
    weights: dict[str, np.ndarray] = {}
    for number, (name, inputs, units) in enumerate(architecture.layers):
        limit = np.sqrt(6 / (inputs + units))
        # The second number keeps these streams separate from those of the epochs, which count from 1.
        random = np.random.Generator(np.random.PCG64([seed, 0, number]))
        weights[f"{name}.kernel"] = random.uniform(-limit, limit, (inputs, units)).astype(np.float32)
        weights[f"{name}.bias"] = np.zeros(units, np.float32)
    return weights


def build(architecture: Architecture, weights: Weights) -> Any:
    """Return a `keras.Sequential` from normalised pixels (float32, shape (n, inputs)) to logits (n, classes)."""
    tensorflow()
    import keras

    model = keras.Sequential(
        [keras.Input((architecture.inputs,), dtype="float32"), *_dense(architecture, None)], name="idxflow"
    )
    _set(model, weights)
    return model


def logits(architecture: Architecture, weights: Weights, rows: np.ndarray) -> np.ndarray:
    """Return the logits of the network, computed with NumPy alone, because TensorFlow takes seconds to load.

    Args:
        architecture: of the network.
        weights: its arrays.
        rows: normalised pixels, float32 of shape (n, inputs).

    Returns:
        Float32 of shape (n, classes), equal to those of `build` except for rounding.
    """
    activate = _ACTIVATE[architecture.activation]
    values = rows
    for name, _, _ in architecture.layers:
        values = values @ weights[f"{name}.kernel"] + weights[f"{name}.bias"]
        if name != "classes":
            values = activate(values).astype(np.float32, copy=False)
    return values


def _sigmoid(values: np.ndarray) -> np.ndarray:
    # Through tanh, which does not overflow.
    return 0.5 * (np.tanh(0.5 * values) + 1)


def _elu(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.expm1(np.minimum(values, 0)))


def _selu(values: np.ndarray) -> np.ndarray:
    # The constants of Klambauer et al., Self-Normalizing Neural Networks, 2017.
    return np.float32(1.0507009873554805) * np.where(values > 0, values, np.float32(1.6732632423543772) * _elu(values))


def _gelu(values: np.ndarray) -> np.ndarray:
    # The exact form, Keras's default: Hendrycks and Gimpel, Gaussian Error Linear Units, 2016.
    from scipy.special import erf

    halves: np.ndarray = 0.5 * values * (1 + erf(values * np.float32(0.7071067811865476)))
    return halves


_ACTIVATE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda values: np.maximum(values, 0),
    "sigmoid": _sigmoid,
    "elu": _elu,
    "selu": _selu,
    "gelu": _gelu,
    "silu": lambda values: values * _sigmoid(values),
}
ACTIVATIONS = tuple(_ACTIVATE)


def export(
    path: Path, architecture: Architecture, weights: Weights, statistics: Statistics, shape: tuple[int, int]
) -> None:
    """Write a `.keras` file for users: images of 0-255, shape (n, height, width), in; probabilities out.

    It includes the normalisation, so it needs no other file. Equal models give equal bytes.
    """
    tensorflow()
    import keras

    model = keras.Sequential(
        [
            keras.Input(shape, dtype="float32", name="pixels"),
            keras.layers.Flatten(dtype="float32", name="flatten"),
            # A number per pixel belongs in the weights: as text in the configuration, it takes thirty times the space.
            keras.layers.EinsumDense(
                "ab,b->ab",
                architecture.inputs,
                bias_axes="b",
                kernel_initializer="zeros",
                trainable=False,
                dtype="float32",
                name="normalize",
            ),
            *_dense(architecture, "softmax"),
        ],
        name="idxflow",
    )
    _set(model, weights)
    scale, offset = scale_and_offset(statistics)
    model.get_layer("normalize").set_weights([np.full(offset.shape, scale), offset])
    with without_copy_warning():
        model.save(path)
    _without_times(path)


@contextmanager
def without_copy_warning() -> Iterator[None]:
    """Suppress NumPy 2's warning about how Keras 3.15 copies TensorFlow's variables when it saves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
        yield


def save_weights(path: Path, weights: Weights) -> None:
    """Write weights; equal weights give equal bytes."""
    arrays.write(path, weights)


def load_weights(path: Path, architecture: Architecture) -> dict[str, np.ndarray]:
    """Read the weights of `architecture`.

    Raises:
        DamagedEntry: arrays are missing, unexpected, of another shape or type, or not finite.
    """
    weights = arrays.read(path, {name: (np.float32, shape) for name, shape in architecture.shapes.items()})
    for name, values in weights.items():
        if not np.isfinite(values).all():
            raise DamagedEntry(f"{path}: expected finite weights; {name} has others; {made_again(path)}")
    return weights


def save_architecture(path: Path, architecture: Architecture) -> None:
    """Write `architecture` as JSON."""
    write_json(
        path,
        {
            "inputs": architecture.inputs,
            "hidden": list(architecture.hidden),
            "activation": architecture.activation,
            "classes": architecture.classes,
        },
    )


def load_architecture(path: Path) -> Architecture:
    """Read what `save_architecture` wrote.

    Raises:
        DamagedEntry: the file does not describe such a network.
    """
    try:
        values = read_json(path)
        architecture = Architecture(**values | {"hidden": tuple(values["hidden"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedEntry(f"{path}: expected the description of a network; {error}; {made_again(path)}") from error
    sizes = (architecture.inputs, *architecture.hidden, architecture.classes)
    if architecture.activation not in ACTIVATIONS or not all(type(n) is int and 0 < n <= MAX_UNITS for n in sizes):
        raise DamagedEntry(f"{path}: expected sizes above 0 and a known activation; found {values}; {made_again(path)}")
    return architecture


def weights_digest(weights: Weights) -> str:
    """Return the SHA-256 over names, shapes and bytes of all weights."""
    return arrays.digest(weights)


def _dense(architecture: Architecture, last: str | None) -> Iterator[Any]:
    import keras

    for name, _, units in architecture.layers:
        activation = last if name == "classes" else architecture.activation
        # The zeros are replaced at once: Keras's own initial weights would depend on its version.
        yield keras.layers.Dense(units, activation, kernel_initializer="zeros", dtype="float32", name=name)


def _set(model: Any, weights: Weights) -> None:
    for layer in model.layers:
        if f"{layer.name}.kernel" in weights:
            layer.set_weights([weights[f"{layer.name}.kernel"], weights[f"{layer.name}.bias"]])


def _without_times(path: Path) -> None:
    """Rewrite a `.keras` file without the time it was saved, which is in its members and its metadata."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in sorted(archive.namelist())}
    metadata = json.loads(members["metadata.json"])
    members["metadata.json"] = json.dumps(metadata | {"date_saved": "not recorded"}, sort_keys=True).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
