"""Choose the held-out rows of each part of a training split, and sum the pixels: by workers, an entry for each part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage.datasets.catalog import Dataset
from storage.datasets.training import TrainingConfig
from storage.formats import arrays, split_rows
from storage.records import FolderEntry, PartSums, Split
from storage.runtime import code_digests
from storage.runtime.prefetch import prefetch
from storage.store import Plan, Store
from storage.workers.current import current
from tasks.model import holdout
from tasks.model.holdout import Choice
from tasks.model.pixel_sums import PixelSums
from tasks.model.sides import LABELS

Brightness = tuple[tuple[int, int], tuple[int, int]]
"""As `PartSums.brightness`."""


@dataclass(frozen=True)
class Item:
    """One part, and what to do with its rows."""

    store: Store
    plan: Plan
    part: Split
    choice: Choice
    leave_out: bool
    """Whether the pixels of held-out rows do not count."""


@dataclass(frozen=True)
class Found:
    """The sums of a part, or of several."""

    pixels: PixelSums
    labels: np.ndarray
    """int64, shape (2, 256): fitted and held-out rows by label."""
    brightness: Brightness
    records: Sequence[PartSums]
    """In the order of the parts."""
    new: int
    """How many of the parts were not found in the store."""


def of_parts(store: Store, dataset: Dataset, train: Split, config: TrainingConfig) -> Found:
    """Return the sums of all parts of a training split, found in the store or made; the same for any workers.

    Raises:
        DamagedEntry: a part cannot be read.
    """
    items = _items(store, dataset, train, config)
    pixels, labels = PixelSums.none(math.prod(train.image_shape)), np.zeros((2, LABELS), np.int64)
    records: dict[int, PartSums] = {}
    brightness: Brightness = ((0, 0), (0, 0))
    new = 0
    # Whole numbers: the order in which workers are done does not matter.
    for index, of_part in current().each(of_item, items, "normalize"):
        pixels, labels = pixels + of_part.pixels, labels + of_part.labels
        brightness = _added(brightness, of_part.brightness)
        records[index], new = of_part.records[0], new + of_part.new
    return Found(pixels, labels, brightness, [records[index] for index in range(len(items))], new)


def of_item(item: Item) -> Found:
    """Return the sums of one part, found in the store or made.

    Raises:
        DamagedEntry: the part cannot be read.
    """
    made = item.store.get_or_make(item.plan, PartSums, lambda folder: _write(folder, item), lambda _: "")
    record: PartSums = made.record
    size = math.prod(item.part.image_shape)
    values = arrays.read(record.file, {"pixels": (np.int64, (size,)), "labels": (np.int64, (2, LABELS))})
    pixels = PixelSums(record.rows, values["pixels"], record.squares, record.pixel_range)
    fitted, held = record.brightness
    return Found(pixels, values["labels"], (fitted, held), (record,), int(not made.step.reused))


def _items(store: Store, dataset: Dataset, train: Split, config: TrainingConfig) -> list[Item]:
    parts, leave_out = list(split_rows.parts(train)), config.normalize_on == "fitted"
    code, items = code_digests.digests(__name__), []
    for part, choice in zip(parts, holdout.choices(train, parts, config), strict=True):
        parameters: dict[str, Any] = {"normalize_on": config.normalize_on, **asdict(choice)}
        inputs = {"part": part.digest}
        plan = Plan(dataset.name, "normalize", f"{train.name} part", inputs, parameters, code, one_of_many=True)
        items.append(Item(store, plan, part, choice, leave_out))
    return items


def _write(folder: Path, item: Item) -> PartSums:
    for file in folder.iterdir():
        file.unlink()
    part, start = item.part, 0
    pixels, labels = PixelSums.none(math.prod(part.image_shape)), np.zeros((2, LABELS), np.int64)
    brightness: Brightness = ((0, 0), (0, 0))
    choices = []
    for images, of_images in prefetch(split_rows.blocks(part)):
        held = item.choice.of(images, start, part.rows)
        rows = images.reshape(len(images), -1)
        pixels += PixelSums.of(rows[~held] if item.leave_out else rows)
        labels += np.stack([np.bincount(of_images[side], minlength=LABELS) for side in (~held, held)])
        totals = rows.sum(axis=1, dtype=np.int64)
        brightness = _added(brightness, (_powers(totals[~held]), _powers(totals[held])))
        choices.append(held)
        start += len(images)
    record = PartSums(
        FolderEntry(folder), pixels.rows, int(labels[1].sum()), pixels.squares, pixels.pixel_range, brightness
    )
    arrays.write(record.file, {"pixels": pixels.pixels, "labels": labels})
    holdout.write(record.held_out, np.concatenate(choices))
    return record


def _powers(totals: np.ndarray) -> tuple[int, int]:
    """Return the sum of whole numbers and that of their squares, which may exceed 64 bits."""
    numbers = totals.tolist()
    return sum(numbers), sum(number * number for number in numbers)


def _added(first: Brightness, second: Brightness) -> Brightness:
    fitted, held = ((a[0] + b[0], a[1] + b[1]) for a, b in zip(first, second, strict=True))
    return fitted, held
