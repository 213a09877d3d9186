"""Predict with a trained model in NumPy alone, without loading TensorFlow or Prefect.

Only a network that a user's own function has made needs TensorFlow: NumPy would have to know all layers of Keras.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from storage.errors import ConfigError, DamagedEntry, made_again
from storage.records import TrainedModel
from tasks.model import forward, network, own_network, scaling
from tasks.model.own_network import OwnNetwork

SCORED_AT_ONCE = 2048
"""Rows per call; bounds the memory for activations."""


def predict(model: TrainedModel, images: np.ndarray) -> np.ndarray:
    """Return the probability of each class for `images`, raw pixels of 0-255.

    Args:
        images: uint8 of shape (n, height, width).

    Returns:
        Float32 of shape (n, classes); each row sums to 1.

    Raises:
        ConfigError: the images do not have as many pixels as those the model was trained on.
        DamagedEntry: a file of the model is not what its record says.
    """
    return softmax(Classifier(model).logits(images))


class Classifier:
    """A trained model, rebuilt from its arrays; none of its files is executed.

    Raises:
        DamagedEntry: a file of the model is not what its record says.
    """

    def __init__(self, model: TrainedModel) -> None:
        self.architecture = own_network.load(model.architecture)
        self._weights = network.load_weights(model.weights, self.architecture)
        if network.weights_digest(self._weights) != model.weights_digest:
            raise DamagedEntry(
                f"{model.weights}: expected the weights {model.weights_digest[:12]}…; found others; "
                f"{made_again(model.weights)}"
            )
        self._statistics = scaling.read(model.normalization, self.architecture.inputs)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return float32 of shape (n, classes) for `images`, uint8 of shape (n, height, width)."""
        if images.ndim != 3 or math.prod(images.shape[1:]) != self.architecture.inputs or images.dtype != np.uint8:
            raise ConfigError(
                f"expected images of {self.architecture.inputs:,} pixels as uint8, like those that the model was "
                f"trained on; found {images.dtype} of shape {images.shape}; convert them in NumPy with "
                ".astype(np.uint8) and .reshape(-1, height, width)"
            )
        starts = range(0, len(images), SCORED_AT_ONCE)
        blocks = [scaling.apply(images[start : start + SCORED_AT_ONCE], self._statistics) for start in starts]
        none = np.empty((0, self.architecture.classes), np.float32)
        return np.concatenate([none, *(self._of_block(block) for block in blocks)])

    def _of_block(self, rows: np.ndarray) -> np.ndarray:
        if isinstance(self.architecture, OwnNetwork):
            return own_network.logits(self.architecture, self._keras_model, rows)
        return forward.logits(self.architecture, self._weights, rows)

    @cached_property
    def _keras_model(self) -> Any:
        assert isinstance(self.architecture, OwnNetwork), "others need no TensorFlow"  # noqa: S101
        return own_network.build(self.architecture, self._weights)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities, float32, for logits of shape (n, classes)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def libraries_of(model: TrainedModel) -> tuple[str, ...]:
    """Return the libraries besides NumPy and SciPy that compute the answers of a model."""
    return ("tensorflow", "keras") if model.own else ()
