"""The network: described by a few numbers, its weights as plain arrays, as a Keras model, and its export for users."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import threading
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from storage.errors import DamagedEntry, made_again
from storage.files import read_json, write_json
from storage.formats import arrays
from storage.runtime import imports
from tasks.model.scaling import Statistics, scale_and_offset
from tasks.ui.banners import without_banners

MAX_UNITS = 1 << 24
SCORED_NUMBERS = 1 << 24
"""The most numbers that a layer may make at once while rows are scored: 64 MiB."""
SIDE = 3
"""Height and width of the kernel of a convolution."""
CLASSES = "classes"
"""The name of the last layer."""
_PARTS = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
"""The arrays of a layer, in Keras's order."""

Weights = Mapping[str, np.ndarray]
"""Float32 arrays by name: `hidden_1.kernel` of shape (inputs, units), `hidden_1.bias` of shape (units,), …"""

_log = logging.getLogger(__name__)
_loading = threading.Lock()
_OPTIONAL = ("jax", "matplotlib", "pandas", "scipy", "sklearn")
"""TensorFlow and Keras import these if they are installed."""


@dataclass(frozen=True)
class Architecture:
    """Blocks of convolution and pooling, or none, then dense layers, and a softmax over the classes.

    A block is a convolution of 3×3 that keeps the size of the image, the activation, and max pooling of 2×2. With
    `batch_norm`, each convolution and each hidden layer is normalized before its activation.
    """

    inputs: int
    """Pixels of an image."""
    hidden: tuple[int, ...]
    """Units of each hidden dense layer."""
    activation: str
    """Activation of the convolutions and hidden layers, by its name in Keras."""
    classes: int
    conv: tuple[int, ...] = ()
    """Filters of each convolution."""
    image_shape: tuple[int, int] | None = None
    """Height and width of an image; only convolutions need it."""
    batch_norm: bool = False

    @property
    def features(self) -> int:
        """Number of inputs of the first dense layer: the pixels, or what the last pooling leaves."""
        if not self.conv:
            return self.inputs
        height, width = self._image
        return (height >> len(self.conv)) * (width >> len(self.conv)) * self.conv[-1]

    @property
    def layers(self) -> tuple[tuple[str, int, int], ...]:
        """Name, inputs and units of each dense layer, starting at the pixels or at the last pooling."""
        sizes = (self.features, *self.hidden, self.classes)
        names = (*(f"hidden_{n + 1}" for n in range(len(self.hidden))), CLASSES)
        return tuple(zip(names, sizes[:-1], sizes[1:], strict=True))

    @property
    def convolutions(self) -> tuple[tuple[str, int, int], ...]:
        """Name, channels in and filters of each convolution."""
        channels = (1, *self.conv)
        return tuple((f"conv_{n}", channels[n - 1], filters) for n, filters in enumerate(self.conv, start=1))

    @property
    def kernels(self) -> dict[str, tuple[int, ...]]:
        """Shape of the kernel of each layer, by the layer's name: (3, 3, channels, filters), or (inputs, units)."""
        return {name: (SIDE, SIDE, channels, filters) for name, channels, filters in self.convolutions} | {
            name: (inputs, units) for name, inputs, units in self.layers
        }

    @property
    def norms(self) -> dict[str, str]:
        """Name of the normalization after each layer that has one, by the layer's name."""
        if not self.batch_norm:
            return {}
        return {name: f"norm_{n}" for n, name in enumerate(self.kernels, start=1) if name != CLASSES}

    @property
    def trained_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each trained array, in Keras's order. A normalized layer has no bias: its `beta` is one."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, kernel in self.kernels.items():
            shapes[f"{name}.kernel"] = kernel
            if norm := self.norms.get(name):
                shapes |= {f"{norm}.gamma": kernel[-1:], f"{norm}.beta": kernel[-1:]}
            else:
                shapes[f"{name}.bias"] = kernel[-1:]
        return shapes

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array of weights: the trained ones, then the moving averages of the normalizations."""
        averages = {
            f"{norm}.{part}": self.kernels[name][-1:]
            for name, norm in self.norms.items()
            for part in ("moving_mean", "moving_variance")
        }
        return self.trained_shapes | averages

    @property
    def parameters(self) -> int:
        """Number of trained weights."""
        return sum(math.prod(shape) for shape in self.trained_shapes.values())

    @property
    def largest_output(self) -> int:
        """The most numbers that a layer makes of one image."""
        outputs = [units for _, _, units in self.layers]
        if self.conv:
            height, width = self._image
            outputs += [(height >> n) * (width >> n) * filters for n, filters in enumerate(self.conv)]
        return max(outputs)

    @property
    def _image(self) -> tuple[int, int]:
        if self.image_shape is None:
            raise ValueError("expected the shape of the images, because there are convolutions; found none")
        return self.image_shape


class Shaped(Protocol):
    """A network, as far as its weights can be read."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each array of weights, by name."""


@cache
def tensorflow() -> Any:
    """Import TensorFlow, which takes seconds, and configure it: quiet, deterministic, one thread.

    The matrices are so small that distributing them takes longer than multiplying them: one thread is fastest and
    leaves the other cores free. A fixed number of threads also fixes the order of sums: more would compute convolutions
    faster, but their gradients have other last digits with each number of threads. What only converters, plots and
    adapters use is not imported with it: that would take half as long again, and a quarter more memory.
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


def out_of_memory(error: Exception) -> bool:
    """Return whether an error is Python's or TensorFlow's for too little memory."""
    # TensorFlow may not have been imported.
    return isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Have Python's and NumPy's global random numbers begin with a seed in the block; what they were is restored."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def device() -> str:
    """Return what TensorFlow computes on: `CPU`, or the name of the first GPU that it can use."""
    tf = tensorflow()
    for gpu in tf.config.list_physical_devices("GPU"):
        return str(tf.config.experimental.get_device_details(gpu).get("device_name", "GPU"))
    return "CPU"


def initial_weights(architecture: Architecture, seed: int, initialization: str = "glorot") -> dict[str, np.ndarray]:
    """Return random kernels, zero biases and normalizations without effect; the same for a seed on any machine.

    Kernels are uniform, with the variance of Keras's `GlorotUniform`, `HeUniform` or `LecunUniform`: 2 / (fan in + fan
    out), 2 / fan in, or 1 / fan in. Glorot and Bengio, Understanding the difficulty of training deep feedforward neural
    networks, 2010, equation 16; He et al., Delving deep into rectifiers, 2015, equation 10; LeCun et al., Efficient
    backprop, 1998, section 4.6. `fit` takes the one that the activation is made for, and Glorot's for the classes.
    """
    weights: dict[str, np.ndarray] = {}
    for number, (name, shape) in enumerate(architecture.kernels.items()):
        kind = initialization
        if kind == "fit":
            kind = "glorot" if name == CLASSES else _FITTING.get(architecture.activation, "glorot")
        field = math.prod(shape[:-2])
        limit = np.sqrt(_variance(kind, field * shape[-2], field * shape[-1]))
        # The second number keeps these streams separate from those of the epochs, which count from 1.
        random = np.random.Generator(np.random.PCG64([seed, 0, number]))
        weights[f"{name}.kernel"] = random.uniform(-limit, limit, shape).astype(np.float32)
    return {
        name: weights[name] if name in weights else np.full(shape, _START.get(name.split(".")[1], 0), np.float32)
        for name, shape in architecture.shapes.items()
    }


def _variance(kind: str, fan_in: int, fan_out: int) -> float:
    """Return three times the variance of the initial weights of a layer: the square of the largest."""
    return {"glorot": 6 / (fan_in + fan_out), "he": 6 / fan_in, "lecun": 3 / fan_in}[kind]


_FITTING = {"relu": "he", "elu": "he", "gelu": "he", "silu": "he", "selu": "lecun"}
"""The initialization for an activation; Glorot's for all others."""
_START = {"gamma": 1, "moving_variance": 1}
"""What the arrays of a normalization hold at the start, if not 0."""


def build(architecture: Architecture, weights: Weights, dropout: float = 0.0) -> Any:
    """Return a `keras.Sequential` from normalised pixels (float32, shape (n, inputs)) to logits (n, classes).

    Args:
        dropout: share of the inputs of each dense layer, pixels excepted, that a call with `training=True` drops.
    """
    tensorflow()
    import keras

    model = keras.Sequential(
        [keras.Input((architecture.inputs,), dtype="float32"), *_layers(architecture, None, dropout)], name="idxflow"
    )
    _set(model, weights)
    return model


def random_states(model: Any) -> list[Any]:
    """Return the variables from which the layers of a Keras model draw random numbers, uint32 of shape (2,).

    Their second number counts the calls.
    """
    kept = {id(variable) for variable in model.weights}
    return [variable for variable in model.non_trainable_variables if id(variable) not in kept]


def random_state(seed: int, epoch: int, number: int) -> np.ndarray:
    """Return the state with which the random layer `number` (from 0) of a network begins an epoch (from 1)."""
    # The third and fourth numbers keep these streams separate from those of the order of rows.
    return np.random.SeedSequence([seed, epoch, 0, 1 + number]).generate_state(2)


ACTIVATIONS = ("tanh", "relu", "sigmoid", "elu", "selu", "gelu", "silu")


def export(
    path: Path, architecture: Architecture, weights: Weights, statistics: Statistics, shape: tuple[int, int]
) -> None:
    """Write a `.keras` file for users: images of 0-255, shape (n, height, width), in; probabilities out.

    It includes the normalisation, so it needs no other file. Equal models give equal bytes.
    """
    tensorflow()
    model = from_pixels(architecture.inputs, _layers(architecture, "softmax"), statistics, shape)
    _set(model, weights)
    save(path, model)


def from_pixels(inputs: int, layers: Iterable[Any], statistics: Statistics, shape: tuple[int, int]) -> Any:
    """Return a Keras model that takes raw pixels of 0-255, shape (n, height, width): they are normalised at first.

    Args:
        inputs: pixels of an image.
        layers: from normalised pixels, shape (n, inputs), to the output.
    """
    import keras

    model = keras.Sequential(
        [
            keras.Input(shape, dtype="float32", name="pixels"),
            keras.layers.Flatten(dtype="float32", name="flatten"),
            # A number per pixel belongs in the weights: as text in the configuration, it takes thirty times the space.
            keras.layers.EinsumDense(
                "ab,b->ab",
                inputs,
                bias_axes="b",
                kernel_initializer="zeros",
                trainable=False,
                dtype="float32",
                name="normalize",
            ),
            *layers,
        ],
        name="idxflow",
    )
    scale, offset = scale_and_offset(statistics)
    model.get_layer("normalize").set_weights([np.full(offset.shape, scale), offset])
    return model


def save(path: Path, model: Any) -> None:
    """Write a Keras model as a `.keras` file; equal models give equal bytes."""
    with without_copy_warning():
        model.save(path)
    _reproducible(path)


_SHARED = re.compile(rb'("shared_object_id": )(\d+)')


@contextmanager
def without_copy_warning() -> Iterator[None]:
    """Suppress NumPy 2's warning about how Keras 3.15 copies TensorFlow's variables when it saves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
        yield


def save_weights(path: Path, weights: Weights) -> None:
    """Write weights; equal weights give equal bytes."""
    arrays.write(path, weights)


def load_weights(path: Path, architecture: Shaped) -> dict[str, np.ndarray]:
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
    """Write `architecture` as JSON; what only other networks need is left out."""
    values = {
        "inputs": architecture.inputs,
        "hidden": list(architecture.hidden),
        "activation": architecture.activation,
        "classes": architecture.classes,
    }
    if architecture.conv:
        values |= {"conv": list(architecture.conv), "image_shape": list(architecture.image_shape or ())}
    if architecture.batch_norm:
        values |= {"batch_norm": True}
    write_json(path, values)


def load_architecture(path: Path) -> Architecture:
    """Read what `save_architecture` wrote, in this version or in one without convolutions.

    Raises:
        DamagedEntry: the file does not describe such a network.
    """
    try:
        values = read_json(path)
        lists: dict[str, Any] = {
            name: tuple(values[name]) for name in ("hidden", "conv", "image_shape") if name in values
        }
        architecture = Architecture(**{**values, **lists})
        is_one = _is_network(architecture)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedEntry(f"{path}: expected the description of a network; {error}; {made_again(path)}") from error
    if not is_one:
        raise DamagedEntry(
            f"{path}: expected sizes above 0, a known activation and images that can be pooled; found {values}; "
            f"{made_again(path)}"
        )
    return architecture


def _is_network(architecture: Architecture) -> bool:
    sizes = (architecture.inputs, *architecture.hidden, architecture.classes, *architecture.conv)
    if architecture.activation not in ACTIVATIONS or type(architecture.batch_norm) is not bool:
        return False
    if not all(type(n) is int and 0 < n <= MAX_UNITS for n in sizes):
        return False
    if not architecture.conv:
        return architecture.image_shape is None
    height, width = architecture.image_shape or (0, 0)
    return height * width == architecture.inputs and min(height, width) >> len(architecture.conv) > 0


def weights_digest(weights: Weights) -> str:
    """Return the SHA-256 over names, shapes and bytes of all weights."""
    return arrays.digest(weights)


def _layers(architecture: Architecture, last: str | None, dropout: float = 0.0) -> Iterator[Any]:
    """Yield the layers after the pixels.

    Args:
        last: activation of the classes.
    """
    from keras import layers

    for number, (name, _, filters) in enumerate(architecture.convolutions, start=1):
        if number == 1:
            yield layers.Reshape((*(architecture.image_shape or ()), 1), dtype="float32", name="image")
        yield from _activated(architecture, name, layers.Conv2D, filters, SIDE, padding="same")
        yield layers.MaxPooling2D(2, dtype="float32", name=f"pool_{number}")
    if architecture.conv:
        yield layers.Flatten(dtype="float32", name="features")
    for number, (name, _, units) in enumerate(architecture.layers, start=1):
        if dropout and (architecture.conv or number > 1):
            # The seed is replaced before each epoch.
            yield layers.Dropout(dropout, seed=number, dtype="float32", name=f"dropout_{number}")
        if name == CLASSES:
            yield layers.Dense(units, last, kernel_initializer="zeros", dtype="float32", name=name)
        else:
            yield from _activated(architecture, name, layers.Dense, units)


def _activated(architecture: Architecture, name: str, kind: Any, *sizes: int, **more: Any) -> Iterator[Any]:
    """Yield a layer with its activation, and with the normalization between them if there is one."""
    from keras import layers

    # The zeros are replaced at once: Keras's own initial weights would depend on its version.
    more |= {"kernel_initializer": "zeros", "dtype": "float32", "name": name}
    if norm := architecture.norms.get(name):
        yield kind(*sizes, use_bias=False, **more)
        yield layers.BatchNormalization(dtype="float32", name=norm)
        yield layers.Activation(architecture.activation, dtype="float32", name=f"{norm}_activation")
    else:
        yield kind(*sizes, activation=architecture.activation, **more)


def _set(model: Any, weights: Weights) -> None:
    for layer in model.layers:
        values = [weights[name] for part in _PARTS if (name := f"{layer.name}.{part}") in weights]
        if values:
            layer.set_weights(values)


def _reproducible(path: Path) -> None:
    """Rewrite a `.keras` file without the time it was saved, which is in its members and its metadata.

    Where Keras writes addresses in memory, to say which objects are the same, they are counted instead.
    """
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in sorted(archive.namelist())}
    seen: dict[bytes, int] = {}
    members["config.json"] = _SHARED.sub(
        lambda match: match[1] + b"%d" % seen.setdefault(match[2], len(seen) + 1), members["config.json"]
    )
    metadata = json.loads(members["metadata.json"])
    members["metadata.json"] = json.dumps(metadata | {"date_saved": "not recorded"}, sort_keys=True).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
