"""Splits and models for tests, made by the real tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storage.datasets.catalog import Dataset
from storage.datasets.training import TrainingConfig
from storage.files import sha256_of
from storage.records import Archive, Done, Split, SplitName, TrainedModel
from storage.store import Store
from tasks.decode import decode
from tasks.normalize import normalize
from tasks.train import train


def split(store: Store, dataset: Dataset, name: SplitName, folder: Path | None = None) -> Split:
    """Decode the archives in `folder`, or where the data set's own source is."""
    source = folder or dataset.source
    files = [(role, source / dataset.archive(role).file) for role in (f"{name}-images", f"{name}-labels")]
    archives = [Archive(source, role, f.name, f.stat().st_size, sha256_of(f), "test") for role, f in files]
    return decode.fn(store, dataset, name, *archives).record


def trained(
    store: Store, dataset: Dataset, config: TrainingConfig | None = None, folder: Path | None = None, **parameters: Any
) -> Done[TrainedModel]:
    """Decode, normalize and train, for 3 epochs unless `parameters` say otherwise."""
    config = config or TrainingConfig(**{"epochs": 3, "batch_size": 16, "learning_rate": 0.05, **parameters})
    rows = split(store, dataset, "train", folder)
    return train.fn(store, dataset, rows, normalize.fn(store, dataset, rows, config).record, config)
