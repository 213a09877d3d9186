"""The forward pass of the network with NumPy alone, because TensorFlow takes seconds to load."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from storage.formats.products import product
from tasks.model.network import CLASSES, SIDE, Architecture, Weights

_EPSILON = np.float32(1e-3)
"""Keras's default: what batch normalization adds to a variance."""
_BLOCK_BYTES = 1 << 24
"""Memory for the patches of a convolution at a time: a few times as much as a processor has cache is slower."""


def logits(architecture: Architecture, weights: Weights, rows: np.ndarray) -> np.ndarray:
    """Return the logits of the network.

    Args:
        architecture: of the network.
        weights: its arrays.
        rows: normalised pixels, float32 of shape (n, inputs).

    Returns:
        Float32 of shape (n, classes), equal to those of `network.build` except for rounding.
    """
    arrays = folded(architecture, weights)
    activate = _ACTIVATE[architecture.activation]
    values = _features(architecture, arrays, rows) if architecture.conv else rows
    for name, _, _ in architecture.layers:
        values = product(values, arrays[f"{name}.kernel"]) + arrays[f"{name}.bias"]
        if name != CLASSES:
            values = activate(values).astype(np.float32, copy=False)
    return values


def folded(architecture: Architecture, weights: Weights) -> Weights:
    """Return a kernel and a bias for each layer that also do what its normalization does.

    `gamma * (x - mean) / sqrt(variance + epsilon) + beta` of a layer's outputs is linear in them, so the factor belongs
    to the columns of the kernel, and the rest is the bias.
    """
    if not architecture.batch_norm:
        return weights
    arrays: dict[str, np.ndarray] = {}
    for name in architecture.kernels:
        kernel = weights[f"{name}.kernel"]
        if norm := architecture.norms.get(name):
            factor = weights[f"{norm}.gamma"] / np.sqrt(weights[f"{norm}.moving_variance"] + _EPSILON)
            bias = weights[f"{norm}.beta"] - weights[f"{norm}.moving_mean"] * factor
            arrays |= {f"{name}.kernel": kernel * factor, f"{name}.bias": bias}
        else:
            arrays |= {f"{name}.kernel": kernel, f"{name}.bias": weights[f"{name}.bias"]}
    return arrays


def _features(architecture: Architecture, weights: Weights, rows: np.ndarray) -> np.ndarray:
    """Return the inputs of the first dense layer, float32 of shape (n, features), block by block of the rows."""
    most = max(_patch_sizes(architecture))
    at_once = max(1, _BLOCK_BYTES // (rows.itemsize * most))
    features = np.empty((len(rows), architecture.features), np.float32)
    activate = _ACTIVATE[architecture.activation]
    for start in range(0, len(rows), at_once):
        block = rows[start : start + at_once]
        images = block.reshape(len(block), *(architecture.image_shape or ()), 1)
        for name, _, _ in architecture.convolutions:
            images = convolved(images, weights[f"{name}.kernel"])
            images += weights[f"{name}.bias"]
            images = _pooled(activate(images).astype(np.float32, copy=False))
        features[start : start + at_once] = images.reshape(len(block), -1)
    return features


def _patch_sizes(architecture: Architecture) -> Iterator[int]:
    """Yield how many numbers the patches of one image have in each convolution."""
    height, width = architecture.image_shape or (0, 0)
    for number, (_, channels, _) in enumerate(architecture.convolutions):
        yield (height >> number) * (width >> number) * SIDE * SIDE * channels


def convolved(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return the convolution of `images` with a kernel of 3×3, around them zeros: float32, (n, height, width, filters).

    All patches, copied, are one matrix, and the convolution its product with the kernel.

    Args:
        images: float32 of shape (n, height, width, channels).
        kernel: float32 of shape (3, 3, channels, filters).
    """
    count, height, width, channels = images.shape
    padded = np.zeros((count, height + 2, width + 2, channels), np.float32)
    padded[:, 1:-1, 1:-1] = images
    of_image, of_row, of_pixel, of_channel = padded.strides
    # Three pixels of a row with all of their channels are in one piece, so a patch is copied in three pieces.
    patches = np.lib.stride_tricks.as_strided(
        padded,
        (count, height, width, SIDE, SIDE * channels),
        (of_image, of_row, of_pixel, of_row, of_channel),
        writeable=False,
    )
    size = math.prod(kernel.shape[:-1])
    products = product(np.ascontiguousarray(patches).reshape(-1, size), kernel.reshape(size, -1))
    return products.reshape(count, height, width, -1)


def _pooled(images: np.ndarray) -> np.ndarray:
    """Return the largest of each 2×2 values; an odd last row or column is left out, as Keras does."""
    _, height, width, _ = images.shape
    images = images[:, : height // 2 * 2, : width // 2 * 2]
    rows = np.maximum(images[:, ::2], images[:, 1::2])
    largest: np.ndarray = np.maximum(rows[:, :, ::2], rows[:, :, 1::2])
    return largest


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
