"""A network that a user's own function has made: Keras's description of its layers, as data, and its weights.

The description is all that is needed to use the network: the function is not called again, and its source may have
changed since, or be gone. Only Keras's own layers can be described so.
"""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import DamagedEntry, made_again
from storage.files import read_json, write_json
from tasks.model import network
from tasks.model.network import Architecture, Weights
from tasks.model.scaling import Statistics

_REFUSED = (
    *("Lambda", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer"),
    *("StringLookup", "IntegerLookup", "TextVectorization"),
)
"""Layers of Keras whose description refers to code or to other files."""

_VALUES = ("__keras_tensor__", "__tensor__", "__numpy__", "__tuple__", "__slice__", "__ellipsis__")
"""What a description calls values that JSON does not have; `__lambda__`, which is code, is none of them."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class OwnNetwork:
    """From images of shape (height, width, 1) to logits, as a user's function has made it."""

    inputs: int
    """Pixels of an image."""
    classes: int
    image_shape: tuple[int, int]
    """Height and width of an image."""
    function: str
    """The user's function, such as `my_models:build`."""
    source: str
    """SHA-256 of its source."""
    layers: tuple[str, ...]
    """In words, such as `Conv2D 8`."""
    largest_output: int
    """The most numbers that a layer makes of one image."""
    trained_shapes: Shapes
    """Shape of each trained array, by name, in Keras's order."""
    kept_shapes: Shapes
    """Shape of each array that no gradient changes, such as moving averages, or weights of a frozen layer."""
    description: Mapping[str, Any]
    """Keras's own, from which it rebuilds the layers."""
    start: Weights = field(default_factory=dict, repr=False, compare=False)
    """The weights before training; empty if it was loaded."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array of weights: the trained ones, then the others."""
        return {**self.trained_shapes, **self.kept_shapes}

    @property
    def parameters(self) -> int:
        """Number of trained weights."""
        return sum(math.prod(shape) for shape in self.trained_shapes.values())

    @property
    def rows_at_once(self) -> int:
        """How many images to score at once, so that the outputs of the largest layer fit into 64 MiB."""
        return max(1, network.SCORED_NUMBERS // self.largest_output)


def check_description(description: Any) -> None:
    """Check that a description of layers names only what is in Keras and runs no other code.

    Raises:
        ValueError: names what is not, such as `my_models.Attention`.
    """
    for part in _parts(description):
        module, name = str(part.get("module") or ""), str(part["class_name"])
        if not module and name in _VALUES:
            continue
        is_keras = module == "builtins" if name == "function" else module.split(".")[0] == "keras"
        registered = part.get("registered_name")
        if not is_keras or name in _REFUSED or registered not in (None, name, part.get("config")):
            raise ValueError(f"{module or 'a module without a name'}.{name}")
        config = part.get("config")
        own_name = str(config.get("name", "")) if isinstance(config, Mapping) else ""
        if own_name.startswith(".") or "/" in own_name:
            # Keras makes folders of such names when it saves a model.
            raise ValueError(f"{module}.{name} with the name {own_name}")


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield each object in a description, inner ones too."""
    if isinstance(value, Mapping):
        if "class_name" in value:
            yield value
        value = [*value.values()]
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _parts(inner)


def rebuilt(description: Mapping[str, Any]) -> Any:
    """Return the Keras model of a description, with other weights.

    Raises:
        ValueError: the description names what is not in Keras.
        Exception: what Keras raises if it cannot rebuild it.
    """
    check_description(description)
    network.tensorflow()
    import keras

    # Keras takes the description apart.
    return keras.saving.deserialize_keras_object(copy.deepcopy(dict(description)), safe_mode=True)


def build(own: OwnNetwork, weights: Weights) -> Any:
    """Return a Keras model from normalised pixels (float32, shape (n, inputs)) to logits (n, classes).

    Args:
        weights: by name, as `OwnNetwork.shapes` has them.

    Raises:
        Exception: see `rebuilt`.
    """
    inner = rebuilt(own.description)
    import keras

    pixels = keras.Input((own.inputs,), dtype="float32", name="idxflow_pixels")
    images = keras.layers.Reshape((*own.image_shape, 1), dtype="float32", name="idxflow_image")(pixels)
    model = keras.Model(pixels, inner(images), name="idxflow")
    for name, variable in zip(own.shapes, variables_of(model), strict=True):
        variable.assign(weights[name])
    return model


def variables_of(model: Any) -> list[Any]:
    """Return the weights of a Keras model: the trained ones, then the others."""
    return [*model.trainable_weights, *model.non_trainable_weights]


def names_of(model: Any) -> list[str]:
    """Return a name for each of `variables_of`, such as `dense_1.kernel`; all differ."""
    names, seen = [], Counter[str]()
    for variable in variables_of(model):
        name = variable.path.removeprefix(f"{model.name}/").replace("/", ".")
        seen[name] += 1
        layer, _, array = name.rpartition(".")
        names.append(name if seen[name] == 1 else f"{layer}_again_{seen[name] - 1}.{array}")
    return names


def logits(own: OwnNetwork, model: Any, rows: np.ndarray) -> np.ndarray:
    """Return the logits, float32 of shape (n, classes), for normalised pixels, float32 of shape (n, inputs).

    Args:
        model: of `build`.
    """
    found = [np.empty((0, own.classes), np.float32)]
    for start in range(0, len(rows), own.rows_at_once):
        found.append(model(rows[start : start + own.rows_at_once], training=False).numpy())
    return np.concatenate(found)


def export(path: Path, own: OwnNetwork, weights: Weights, statistics: Statistics) -> None:
    """Write a `.keras` file for users: images of 0-255, shape (n, height, width), in; probabilities out."""
    model = build(own, weights)
    import keras

    inner = model.layers[-1]
    image = keras.layers.Reshape((*own.image_shape, 1), dtype="float32", name="idxflow_image")
    softmax = keras.layers.Softmax(dtype="float32", name="probabilities")
    network.save(path, network.from_pixels(own.inputs, (image, inner, softmax), statistics, own.image_shape))


def save(path: Path, own: OwnNetwork) -> None:
    """Write `own` as JSON, without its weights."""
    values = {name: value for name, value in vars(own).items() if name != "start"}
    # A list, because JSON in the store has its keys sorted.
    values |= {name: [*values[name].items()] for name in ("trained_shapes", "kept_shapes")}
    write_json(path, values)


def load(path: Path) -> Architecture | OwnNetwork:
    """Read what `save` or `network.save_architecture` wrote.

    Raises:
        DamagedEntry: the file does not describe a network.
    """
    if not _is_own(path):
        return network.load_architecture(path)
    try:
        values = read_json(path)
        shapes = {name: _shapes(values[name]) for name in ("trained_shapes", "kept_shapes")}
        height, width = values["image_shape"]
        own = OwnNetwork(**{**values, **shapes, "image_shape": (height, width), "layers": tuple(values["layers"])})
        sizes = (own.inputs, own.classes, own.largest_output, height, width)
        if not all(type(size) is int and size > 0 for size in sizes) or height * width != own.inputs:
            raise ValueError(f"it has the sizes {sizes}")
        check_description(own.description)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedEntry(
            f"{path}: expected the description of a network; found another ({error}); {made_again(path)}"
        ) from error
    return own


def _is_own(path: Path) -> bool:
    # What is wrong with a file that cannot be read, the other reader says.
    with suppress(OSError, ValueError, TypeError):
        return "description" in read_json(path)
    return False


def _shapes(values: Sequence[tuple[str, Sequence[int]]]) -> Shapes:
    shapes = {str(name): tuple(shape) for name, shape in values}
    if not all(type(size) is int and 0 < size <= network.MAX_UNITS for shape in shapes.values() for size in shape):
        raise ValueError("it has weights of another shape")
    return shapes


def described(model: Any) -> dict[str, Any]:
    """Return Keras's description of a model, as JSON values, without what only `fit` needs."""
    values: dict[str, Any] = json.loads(model.to_json())
    values.pop("compile_config", None)
    return values


def last_layer(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a description that is the last layer, to look at or to change.

    Raises:
        LookupError: it is of no form that is known.
    """
    config = description["config"]
    layers = config["layers"]
    if "output_layers" in config:
        first = config["output_layers"]
        name = first[0] if isinstance(first[0], str) else first[0][0]
        last = next(layer for layer in layers if layer["config"]["name"] == name)
    else:
        last = layers[-1]
    return last_layer(last) if "layers" in last["config"] else last


def without_softmax(description: dict[str, Any]) -> str:
    """Remove a softmax from the end of a description; return what activation is left there, `linear` if none.

    Raises:
        LookupError: see `last_layer`.
    """
    last = last_layer(description)
    if last["class_name"] == "Softmax":
        name = last["config"]["name"]
        last |= {"module": "keras.layers", "class_name": "Activation", "registered_name": None}
        last["config"] = {"name": name, "trainable": True, "dtype": "float32", "activation": "linear"}
        for node in last.get("inbound_nodes", ()):
            # Only a softmax takes a mask.
            node["kwargs"].pop("mask", None)
    elif last["config"].get("activation") == "softmax":
        last["config"]["activation"] = "linear"
    return str(last["config"].get("activation") or "linear")
