"""Train with a user's own model: what Keras or TensorFlow raises about its layers is an error about its source."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from storage.datasets.catalog import one_line
from storage.datasets.own_models import Source
from storage.datasets.training import TrainingConfig
from storage.errors import ConfigError, IdxflowError
from tasks.model.fitting import Fitting
from tasks.model.network import out_of_memory
from tasks.model.own_network import OwnNetwork
from tasks.model.scaling import Statistics
from tasks.model.training_rows import InMemory

_ROWS = 2
_LIBRARIES = ("keras", "tensorflow")


def check(source: Source, own: OwnNetwork, config: TrainingConfig) -> None:
    """Train on blank images for a step, and score them, so that layers that cannot be trained show at once.

    Raises:
        ConfigError: a layer cannot be trained.
    """
    rows = InMemory(np.zeros((_ROWS, own.inputs), np.uint8), np.zeros(_ROWS, np.uint8), _ROWS, config.seed)
    with blamed(source):
        fitting = Fitting(own, config, Statistics(np.zeros(own.inputs), 1.0), rows, _ROWS)
        fitting.epoch(1)
        fitting.score(0, _ROWS)


@contextmanager
def blamed(source: Source | None) -> Iterator[None]:
    """Turn what Keras or TensorFlow raises in the block into an error about the user's own model, if there is one.

    Raises:
        ConfigError: they cannot train its layers.
    """
    try:
        yield
    except Exception as error:
        if source is None or isinstance(error, IdxflowError) or out_of_memory(error) or not _is_of_libraries(error):
            raise
        raise ConfigError(
            f"{source.path}: expected layers that TensorFlow can train, with the same result each time, from the "
            f"function {source.function}; found {type(error).__name__}: {one_line(' '.join(str(error).split()))}; "
            "replace the layer that this is about by another"
        ) from error


def _is_of_libraries(error: Exception) -> bool:
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__", "").split(".")[0] in _LIBRARIES for frame in frames)
