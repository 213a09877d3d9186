"""Save and load the checkpoint from which an interrupted training resumes."""

from __future__ import annotations

import dataclasses
import io
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.errors import DamagedEntry
from storage.files import write_bytes
from storage.formats import arrays
from storage.records import Epoch
from tasks.model.fitting import layers_with_weights

_log = logging.getLogger(__name__)

_COLUMNS = tuple(field.name for field in dataclasses.fields(Epoch) if field.name != "gradients")

Named = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after its last complete epoch."""

    epochs: tuple[Epoch, ...]
    weights: Named
    slots: Mapping[str, Named]
    """What the optimizer keeps for each weight, by the slot's and the weight's name."""
    best: Named
    """The best weights so far, if the training keeps those; otherwise empty."""


def save(path: Path, state: Checkpoint, most_epochs: int) -> None:
    """Replace the checkpoint atomically: a kill leaves either the old one or the new one."""
    layers = layers_with_weights({name: array.shape for name, array in state.weights.items()})
    values = {"epochs": _table(state.epochs, most_epochs), "gradients": _gradients(state.epochs, most_epochs, layers)}
    for part, named in _parts(state).items():
        values |= {f"{part}.{name}": array for name, array in named.items()}
    buffer = io.BytesIO()
    arrays.write(buffer, values)
    write_bytes(path, buffer.getvalue())


def load(path: Path, parts: Mapping[str, Mapping[str, tuple[int, ...]]], most_epochs: int) -> Checkpoint | None:
    """Return the checkpoint, or None if it is missing or incomplete.

    Args:
        parts: the shape of each array by its name, of each part: `weights`, `best` if the training keeps the best
            weights, too, and the slots of its optimizer.
        most_epochs: maximum number of epochs of the training.
    """
    if not path.exists():
        return None
    layers = layers_with_weights(parts["weights"])
    expected: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
        "epochs": (np.float64, (most_epochs, len(_COLUMNS))),
        "gradients": (np.float64, (most_epochs, len(layers))),
        **{f"{part}.{name}": (np.float32, shape) for part, shapes in parts.items() for name, shape in shapes.items()},
    }
    try:
        values = arrays.read(path, expected)
    except DamagedEntry as error:
        _log.warning("the checkpoint is not used, training starts over: %s", error)
        return None
    named = {part: {name: values[f"{part}.{name}"] for name in shapes} for part, shapes in parts.items()}
    weights, best = named.pop("weights"), named.pop("best", {})
    return Checkpoint(_epochs(values["epochs"], values["gradients"], layers), weights, named, best)


def _parts(state: Checkpoint) -> dict[str, Named]:
    return {"weights": state.weights, "best": state.best, **state.slots}


def _table(epochs: tuple[Epoch, ...], rows: int) -> np.ndarray:
    """Return epochs as float64 numbers: a row of zeros is an epoch not yet run, NaN is None."""
    table = np.zeros((rows, len(_COLUMNS)))
    for row, epoch in zip(table, epochs, strict=False):
        values = (getattr(epoch, name) for name in _COLUMNS)
        row[:] = [math.nan if value is None else value for value in values]
    return table


def _gradients(epochs: tuple[Epoch, ...], rows: int, layers: tuple[str, ...]) -> np.ndarray:
    """Return the norms of the gradients of each layer by epoch, float64; NaN is none."""
    table = np.zeros((rows, len(layers)))
    for row, epoch in zip(table, epochs, strict=False):
        row[:] = [epoch.gradients.get(layer, math.nan) for layer in layers]
    return table


def _epochs(table: np.ndarray, gradients: np.ndarray, layers: tuple[str, ...]) -> tuple[Epoch, ...]:
    rows = [dict(zip(_COLUMNS, row, strict=True)) for row in table.tolist() if row[0]]
    norms = [dict(zip(layers, row, strict=True)) for row in gradients.tolist()]
    return tuple(_epoch(row, those) for row, those in zip(rows, norms, strict=False))


def _epoch(row: dict[str, float], norms: dict[str, float]) -> Epoch:
    held_out = {n: None if math.isnan(row[n]) else row[n] for n in ("validation_loss", "validation_accuracy")}
    return Epoch(
        int(row["epoch"]),
        row["learning_rate"],
        row["loss"],
        row["accuracy"],
        held_out["validation_loss"],
        held_out["validation_accuracy"],
        row["seconds"],
        {layer: norm for layer, norm in norms.items() if not math.isnan(norm)},
    )
