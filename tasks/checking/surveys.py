"""The first pass over a split in parts: what is known of each part, and what the parts together say of the split.

A survey of a part depends on nothing but the part. If a part is appended, only that one is surveyed.

Images are compared by 128 bits: two of n different images have the same digest with a probability below n²/2¹²⁹, which
is less than 10⁻¹⁸ for six billion. With 64 bits, as for a split in one file, one such pair is to be expected there
(n²/2⁶⁵). The first 64 bits are the `digest` of `summary.IMAGE_COLUMNS`; the others are BLAKE2b as well, personalized,
which makes it an independent function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from expectations import summary
from storage.formats import arrays, members, parquet, sorted_columns, split_rows
from storage.records import Entry, FolderEntry, Split, SplitName
from storage.runtime import cancellation, code_digests
from storage.runtime.ranged import Source
from storage.store import Plan, Store
from storage.workers.current import in_order

IMAGES: sorted_columns.Kinds = {"digest": np.int64, "more": np.int64, "label": np.uint8, "mixed": np.uint8}
"""The different images of a part: `digest` and `more`, by which they are sorted, are 128 bits; `label` is that of the
first row with this image, and `mixed` is 1 if another row of the part has it with another label."""
_SECOND = b"idxflow second"


@dataclass(frozen=True)
class PartSurvey:
    """What is known of one part of a split."""

    entry: Entry
    rows: int
    images: int
    """Number of different images."""

    @property
    def different(self) -> Source:
        """The different images: the columns `IMAGES`."""
        return self.entry.source("images.parquet")

    def digests(self) -> np.ndarray:
        """Return the `digest` of each different image, int64 of shape (images,).

        Raises:
            DamagedEntry: the file cannot be read.
        """
        limits = np.iinfo(np.int64)
        return sorted_columns.between(self.different, IMAGES, limits.min, limits.max)[1]["digest"]

    def of_rows(self) -> dict[str, np.ndarray]:
        """Return what is known of each row, by name, each of shape (rows,).

        `image` (uint32) is its place among the different images, `label` (uint8) is as in the archive, and `blank`
        (uint8) is 1 if all pixels have one value.

        Raises:
            DamagedEntry: the file cannot be read.
        """
        of_rows = (self.rows,)
        expected: arrays.Expected = {
            "image": (np.uint32, of_rows),
            "label": (np.uint8, of_rows),
            "blank": (np.uint8, of_rows),
        }
        return arrays.read(self.entry.path("rows.npz"), expected)


@dataclass(frozen=True)
class SplitSurvey:
    """What the surveys of all parts say of a split."""

    entry: Entry
    name: SplitName
    rows: int
    classes: int
    pixels: int
    """Of an image."""
    parts: int

    def of_parts(self) -> Iterator[PartSurvey]:
        """Yield the surveys of the parts, in order.

        Raises:
            DamagedEntry: the list of parts cannot be read.
        """
        return members.read(self.entry, PartSurvey)

    def labels(self) -> np.ndarray:
        """Return the number of rows with each label, int64 of shape (256,)."""
        return _sums(self.entry, self.classes, self.pixels)["labels"]

    def means(self) -> summary.Centroids:
        """Return the mean image of each class that has images."""
        sums = _sums(self.entry, self.classes, self.pixels)
        return summary.class_means(sums["sums"], sums["labels"][: self.classes])


@dataclass(frozen=True)
class _Item:
    store: Store
    plan: Plan
    part: Split


def survey(store: Store, dataset: str, split: Split) -> SplitSurvey:
    """Survey a split part by part, or find that done.

    Raises:
        DamagedEntry: a part cannot be read.
    """
    code = code_digests.digests(__name__)
    items = [_item(store, dataset, part, code) for part in split_rows.parts(split)]
    parts = in_order(_survey_part, items, f"survey {split.name}")
    plan = Plan(dataset, "validate", f"{split.name} survey", {split.name: split.digest}, _parameters(split), code)
    return store.get_or_make(plan, SplitSurvey, partial(_together, split, parts), str).record


def _item(store: Store, dataset: str, part: Split, code: dict[str, str]) -> _Item:
    subject, inputs = f"{part.name} part survey", {"part": part.digest}
    return _Item(store, Plan(dataset, "validate", subject, inputs, _parameters(part), code, one_of_many=True), part)


def _parameters(split: Split) -> dict[str, int]:
    return {"classes": split.classes}


def _survey_part(item: _Item) -> PartSurvey:
    return item.store.get_or_make(item.plan, PartSurvey, partial(_survey, item.part), str).record


def _survey(part: Split, folder: Path) -> PartSurvey:
    rows: dict[str, list[np.ndarray]] = {"digest": [], "more": [], "label": [], "blank": []}
    pixels = part.image_shape[0] * part.image_shape[1]
    sums, counts = np.zeros((part.classes, pixels), np.int64), np.zeros(256, np.int64)
    for flat, labels in summary.pieces(parquet.blocks(part.file)):
        cancellation.check()
        sums += summary.class_sums(flat, labels, part.classes).astype(np.int64)
        counts += np.bincount(labels, minlength=256)
        rows["digest"].append(np.frombuffer(summary.digests(flat), "<i8"))
        rows["more"].append(np.frombuffer(summary.digests(flat, _SECOND), "<i8"))
        rows["label"].append(labels)
        rows["blank"].append(flat.min(axis=1) == flat.max(axis=1))
    of_rows = {name: np.concatenate(rows.pop(name)) for name in [*rows]}
    place, different = _different(of_rows)
    arrays.write(
        folder / "rows.npz",
        {"image": place, "label": of_rows["label"], "blank": of_rows["blank"].astype(np.uint8)},
    )
    arrays.write(folder / "sums.npz", {"labels": counts, "sums": sums})
    sorted_columns.write(folder / "images.parquet", different, IMAGES)
    return PartSurvey(FolderEntry(folder), len(place), len(different["label"]))


def _different(rows: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the place of each row among the different images, uint32 of shape (rows,), and the columns of these.

    Takes `digest` and `more` out of `rows`. What is no longer needed is let go at once: this takes most of the memory
    of a survey.
    """
    # Equal images stay in the order of their rows.
    order = np.lexsort((rows["more"], rows["digest"]))
    columns = {"digest": rows.pop("digest")[order], "more": rows.pop("more")[order]}
    is_new = np.ones(len(order), bool)
    is_new[1:] = columns["digest"][1:] != columns["digest"][:-1]
    is_new[1:] |= columns["more"][1:] != columns["more"][:-1]
    place = np.empty(len(order), np.uint32)
    place[order] = np.cumsum(is_new, dtype=np.uint32) - np.uint32(1)
    labels = rows["label"][order]
    del order
    starts = np.flatnonzero(is_new)
    mixed = np.minimum.reduceat(labels, starts) != np.maximum.reduceat(labels, starts)
    different = {name: columns.pop(name)[starts] for name in [*columns]}
    return place, different | {"label": labels[starts], "mixed": mixed}


def _together(split: Split, parts: list[PartSurvey], folder: Path) -> SplitSurvey:
    """Add the sums of the parts, as whole numbers, in the order of the parts; those of one are in memory at a time."""
    pixels = split.image_shape[0] * split.image_shape[1]
    labels, sums = np.zeros(256, np.int64), np.zeros((split.classes, pixels), np.int64)
    for part in parts:
        found = _sums(part.entry, split.classes, pixels)
        labels += found["labels"]
        sums += found["sums"]
    arrays.write(folder / "sums.npz", {"labels": labels, "sums": sums})
    members.write(folder, parts)
    rows = sum(part.rows for part in parts)
    return SplitSurvey(FolderEntry(folder), split.name, rows, split.classes, pixels, len(parts))


def _sums(entry: Entry, classes: int, pixels: int) -> dict[str, np.ndarray]:
    expected: arrays.Expected = {"labels": (np.int64, (256,)), "sums": (np.int64, (classes, pixels))}
    return arrays.read(entry.path("sums.npz"), expected)
