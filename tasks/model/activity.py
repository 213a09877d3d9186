"""What the units of a trained network put out: whether they are saturated, or dead."""

from __future__ import annotations

from typing import Any

import numpy as np

from storage.records import LayerActivity

ROWS = 2048
"""Rows to look at: one call of the network."""
FLAT = 0.05
"""A unit is saturated where the slope of its activation is less than this share of the largest slope."""

_SLOPES = {"tanh": lambda outputs: 1 - outputs**2, "sigmoid": lambda outputs: 4 * outputs * (1 - outputs)}
"""The slope at an output, as a share of the largest."""


def measured(model: Any, pixels: Any) -> tuple[LayerActivity, ...]:
    """Return what the units of each hidden layer put out, for the activations `tanh`, `sigmoid` and `relu`.

    Args:
        model: a Keras model, built.
        pixels: what it takes, a tensor of shape (rows, inputs).
    """
    import keras

    layers = [layer for layer in model.layers if _activation(layer) in (*_SLOPES, "relu")]
    if not layers:
        return ()
    outputs = keras.Model(model.inputs, [layer.output for layer in layers])(pixels, training=False)
    found = outputs if isinstance(outputs, list | tuple) else [outputs]
    return tuple(
        # A filter is one unit, wherever it looks.
        _of(layer.name, _activation(layer), values.numpy().reshape(-1, values.shape[-1]))
        for layer, values in zip(layers, found, strict=True)
    )


def _activation(layer: Any) -> str:
    return getattr(getattr(layer, "activation", None), "__name__", "")


def _of(name: str, activation: str, outputs: np.ndarray) -> LayerActivity:
    """Return the activity of a layer with the given outputs, float32 of shape (rows, units)."""
    slope = _SLOPES.get(activation)
    saturated = float((slope(outputs) < FLAT).mean()) if slope else None
    dead = float((outputs == 0).all(axis=0).mean()) if activation == "relu" else None
    return LayerActivity(name, activation, outputs.shape[1], saturated, dead)
