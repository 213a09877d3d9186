"""Splits and models for tests, made by the real tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from storage.datasets.catalog import Dataset
from storage.datasets.training import TrainingConfig
from storage.files import sha256_of
from storage.records import Archive, Done, FolderEntry, Split, SplitName, TrainedModel
from storage.store import Store
from tasks.decode import decode
from tasks.model import network
from tasks.model.fitting import Fitting
from tasks.model.scaling import Statistics
from tasks.model.training_rows import InMemory
from tasks.normalize import normalize
from tasks.train import train

STATISTICS = Statistics(np.linspace(-0.1, 0.1, 12), 0.6)


def split(store: Store, dataset: Dataset, name: SplitName, folder: Path | None = None) -> Split:
    """Decode the archives in `folder`, or where the data set's own source is."""
    source = folder or dataset.source
    files = [(role, source / dataset.archive(role).file) for role in (f"{name}-images", f"{name}-labels")]
    archives = [Archive(FolderEntry(source), role, f.name, f.stat().st_size, sha256_of(f), "test") for role, f in files]
    return decode.fn(store, dataset, name, *archives).record


def trained(
    store: Store, dataset: Dataset, config: TrainingConfig | None = None, folder: Path | None = None, **parameters: Any
) -> Done[TrainedModel]:
    """Decode, normalize and train, for 3 epochs unless `parameters` say otherwise."""
    config = config or TrainingConfig(**{"epochs": 3, "batch_size": 16, "learning_rate": 0.05, **parameters})
    rows = split(store, dataset, "train", folder)
    return train.fn(store, dataset, rows, normalize.fn(store, dataset, rows, config).record, config)


def random_rows(rows: int, pixels: int = 12, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (rows, pixels), np.uint8), random.integers(0, classes, rows).astype(np.uint8)


def architecture_of(config: TrainingConfig) -> network.Architecture:
    """The network of a configuration for images of 3 × 4 pixels of three classes."""
    shape = (3, 4) if config.conv else None
    return network.Architecture(12, config.hidden, config.activation, 3, config.conv, shape, config.batch_norm)


def fitted(config: TrainingConfig, rows: int = 50, epochs: int = 3) -> tuple[Fitting, list[tuple[float, float]]]:
    """Fit a network to random rows; return it, and what each epoch reported."""
    fitting = Fitting(
        architecture_of(config), config, STATISTICS, InMemory(*random_rows(rows), rows, config.seed), rows
    )
    return fitting, [fitting.epoch(number) for number in range(1, epochs + 1)]
