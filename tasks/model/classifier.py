"""Predict with a trained model in NumPy alone, without loading TensorFlow or Prefect."""

from __future__ import annotations

import math

import numpy as np

from storage.errors import ConfigError, DamagedEntry, made_again
from storage.records import TrainedModel
from tasks.model import forward, network, scaling

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
        self.architecture = network.load_architecture(model.architecture)
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
        return np.concatenate([none, *(forward.logits(self.architecture, self._weights, block) for block in blocks)])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities, float32, for logits of shape (n, classes)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities
