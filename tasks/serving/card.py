"""The model card of a version by itself, without an export."""

from __future__ import annotations

from typing import Any

from storage.errors import ConfigError, DamagedEntry, StoreError
from storage.records import TrainedModel
from storage.registry import Registry, Version
from storage.store import Store
from tasks.report.model_card import model_card
from tasks.serving.predict import find_version, pixel_range


def card(store: Store, dataset: str, version: str, licence: str = "") -> str:
    """Return the model card of the champion or of a version as Markdown, also if `gc` has removed its model.

    Args:
        version: `champion`, or a number such as `7` or `v7`.
        licence: under which the model is published; empty: its publisher will choose one.

    Raises:
        ConfigError: there is no such data set or version, or the licence has control characters.
        StoreError: the store cannot be read.
    """
    if not licence.isprintable():
        raise ConfigError(
            f"expected the name of a licence in printable characters, such as Apache-2.0; found {licence[:40]!a}; "
            "correct it"
        )
    found = find_version(store, dataset, version)
    with store.in_use(dataset):
        return model_card(Registry(store, dataset), found, _described(store, found), licence)


def _described(store: Store, version: Version) -> dict[str, Any]:
    """Return what the `model.json` of an export has, without what is of the export alone."""
    try:
        record = store.get(version.dataset, "train", version.model, TrainedModel)
    except (DamagedEntry, StoreError):
        record = None
    return {
        "dataset": version.dataset,
        "version": version.number,
        "format": None,
        "classes": list(version.classes),
        "input": {"shape": [None, *version.image_shape], "type": "float32", "range": list(pixel_range(record))},
        "output": {"shape": [None, len(version.classes)], "type": "float32", "meaning": "probability of each class"},
        "weights_digest": version.weights_digest,
        "test_accuracy": version.test_accuracy,
        "checked": None,
        "files": {},
    }
