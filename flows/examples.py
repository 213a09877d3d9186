"""Find one example image of each class of a data set, in the newest run whose images can be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.dataset_in_store import DatasetInStore
from flows.terminal.output import remark
from storage.errors import ConfigError, DamagedEntry
from storage.outcomes import steps_of
from storage.records import Split

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Examples:
    """The first image of each class that has one."""

    images: np.ndarray
    """uint8 of shape (classes with images, height, width)."""
    names: list[str]
    """Names of these classes, in the same order."""
    without: list[str]
    """Names of the classes that have no image."""


def examples(data: DatasetInStore, split: str) -> Examples:
    """Return the first image of each class; print a remark if they are not from the newest run.

    Args:
        split: `train` or `test`.

    Raises:
        ConfigError: no run has decoded this split, or it has no images of the classes.
    """
    from storage.formats import split_rows

    decoded = _newest(data, split)
    labels = split_rows.labels(decoded).tolist()
    classes = _classes(data, decoded)
    first = {label: labels.index(label) for label in sorted(set(labels)) if label < len(classes)}
    if not first:
        raise ConfigError(
            f"expected images of the classes of {data.name}; found none in the {decoded.name} images; "
            "correct the labels, or classes in the manifest"
        )
    images = split_rows.images(decoded, list(first.values()))
    without = [name for label, name in enumerate(classes) if label not in first]
    return Examples(images, [classes[label] for label in first], without)


def _newest(data: DatasetInStore, split: str) -> Split:
    lost = 0
    for record in data.ledger.newest("runs"):
        key = next((s.key for s in steps_of(record) if (s.step, s.subject) == ("decode", split)), "")
        if not key:
            continue
        try:
            decoded = data.store.get(data.name, "decode", key, Split)
        except DamagedEntry:
            lost += 1
            continue
        if lost:
            remark(f"the images of the newest run were removed or are damaged; taken from run {record.get('run')}")
        return decoded
    problem = "were removed from the store or are damaged" if lost else "have not been decoded yet"
    raise ConfigError(
        f"expected decoded {split} images of {data.name}; they {problem}; {data.run_command} decodes them"
    )


def _classes(data: DatasetInStore, split: Split) -> list[str]:
    parameters: dict[str, Any] = data.store.made_from(data.name, "decode", split.entry.key)["parameters"]
    return [str(name) for name in parameters["classes"]]
