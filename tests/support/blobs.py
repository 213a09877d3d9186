"""A small data set, blobs, and versions of models that are trained on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.registry import Registry, Version
from storage.store import Store
from tasks.evaluate import evaluate
from tests.support import stores
from tests.support.archives import write_archives
from tests.support.models import split, trained

SHAPE = (10, 8)


def blobs(train: int = 120, test: int = 30) -> dict[str, np.ndarray]:
    """Return arrays by role: a bright bar in row 4, 5 or 6, away from the dark border."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for name, rows in (("train", train), ("test", test)):
        labels = (np.arange(rows) % 3).astype(np.uint8)
        images = random.integers(0, 30, (rows, *SHAPE), dtype=np.uint8)
        images[np.arange(rows), 4 + labels, 1:-1] = random.integers(220, 256, (rows, SHAPE[1] - 2), dtype=np.uint8)
        arrays |= {f"{name}-images": images, f"{name}-labels": labels}
    return arrays


def blobs_dataset(folder: Path) -> Dataset:
    """Write the archives and the manifest of `blobs` into `folder`."""
    write_archives(folder, blobs())
    manifest = folder / "tiny.toml"
    manifest.write_text(
        f'name = "tiny"\nclasses = ["bar 0", "bar 1", "bar 2"]\nimage_shape = {list(SHAPE)}\nsource = "."\n'
    )
    return catalog.read(manifest)


def registered(store: Store, dataset: Dataset, promote: bool = True, **parameters: float | str) -> Version:
    """Train, evaluate and register a version of `dataset`, and make it the champion."""
    model = trained(store, dataset, **{"epochs": 12, **parameters}).record
    evaluation = evaluate.fn(store, dataset, model, split(store, dataset, "test")).record
    registry = Registry(store, dataset.name)
    version = registry.register(
        model=model.entry.key,
        evaluation=evaluation.entry.key,
        weights_digest=model.weights_digest,
        test_digest=evaluation.split_digest,
        test_accuracy=evaluation.accuracy,
        train_accuracy=model.train_accuracy,
        classes=dataset.classes,
        image_shape=dataset.image_shape,
        run="run",
    )
    if promote:
        with registry.deciding():
            stores.promote(registry, version.number)
    return version


def store_with_champion(folder: Path) -> Store:
    """Make a store in `folder` with a champion of `tiny`."""
    store = Store(folder / "store")
    store.prepare()
    registered(store, blobs_dataset(folder))
    return store
