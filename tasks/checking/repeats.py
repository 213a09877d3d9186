"""Images that occur more than once, across all parts of both splits, in bounded memory.

Images go into buckets by the first bits of their digests, so equal ones meet in one bucket. A bucket has each different
image of a part at most once: a million equal images of a part do not make it any larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from expectations import summary
from storage.formats import members, sorted_columns
from storage.records import Entry, FolderEntry
from storage.runtime import cancellation, code_digests
from storage.runtime.ranged import Source
from storage.store import Plan, Store
from storage.workers.current import in_order
from tasks.checking.surveys import IMAGES, SplitSurvey

BUCKET_IMAGES = 1 << 21
"""About how many images a bucket has at most; it takes 28 bytes of memory for each, or 72 if all occur repeatedly."""

AGAIN, CONFLICT, LEAKED = np.uint8(1), np.uint8(2), np.uint8(4)
"""Bits of what is said of an image of a part: it is in an earlier part of the same split, it has several labels in the
split, it is in the training split although this is a part of the test split."""

_KINDS: sorted_columns.Kinds = {"part": np.int32, "image": np.uint32, "said": np.uint8}


@dataclass(frozen=True)
class Bucket:
    """What is said of the images of one bucket."""

    entry: Entry
    images: int
    """Number of those of which something is said."""

    @property
    def said(self) -> Source:
        return self.entry.source("repeats.parquet")


@dataclass(frozen=True)
class Repeats:
    """What is said of the images of both splits."""

    entry: Entry
    buckets: int

    def said(self, part: int, images: int) -> np.ndarray:
        """Return what is said of each different image of a part, as bits: uint8 of shape (images,).

        Args:
            part: its number, from 0: first those of the training split, then those of the test split.
            images: how many different images it has.

        Raises:
            DamagedEntry: a file cannot be read.
        """
        said = np.zeros(images, np.uint8)
        for bucket in members.read(self.entry, Bucket):
            cancellation.check()
            _, found = sorted_columns.between(bucket.said, _KINDS, part, part)
            said[found["image"]] = found["said"]
        return said


@dataclass(frozen=True)
class _Item:
    store: Store
    plan: Plan
    train: SplitSurvey
    test: SplitSurvey
    number: int
    of: int


def find(store: Store, dataset: str, train: SplitSurvey, test: SplitSurvey, digests: dict[str, str]) -> Repeats:
    """Compare the images of all parts, bucket by bucket, or find that done.

    Args:
        store: the store.
        dataset: the name of the data set.
        train: the survey of the training split.
        test: that of the test split.
        digests: those of both splits, by name.
    """
    code = code_digests.digests(__name__)
    buckets = _buckets(train.rows + test.rows)
    of_both = {"classes": train.classes}
    plans = [
        Plan(
            dataset,
            "validate",
            "bucket",
            digests,
            {**of_both, "bucket": number, "of": buckets},
            code,
            one_of_many=True,
        )
        for number in range(buckets)
    ]
    items = [_Item(store, plan, train, test, number, buckets) for number, plan in enumerate(plans)]
    found = in_order(_find_in_bucket, items, "compare images")
    plan = Plan(dataset, "validate", "repeats", digests, {**of_both, "buckets": buckets}, code)
    return store.get_or_make(plan, Repeats, partial(_together, found), str).record


def _buckets(rows: int) -> int:
    """Return the number of buckets for so many rows: a power of two."""
    return 1 << max(0, (rows - 1) // BUCKET_IMAGES).bit_length()


def _find_in_bucket(item: _Item) -> Bucket:
    return item.store.get_or_make(item.plan, Bucket, partial(_compare, item), str).record


def _compare(item: _Item, folder: Path) -> Bucket:
    images = _met(item)
    said = compare_images(images, images["part"] >= item.train.parts)
    rows = np.flatnonzero(said)
    columns = {"part": images["part"][rows], "image": images["image"][rows], "said": said[rows]}
    sorted_columns.write(folder / "repeats.parquet", columns, _KINDS)
    return Bucket(FolderEntry(folder), len(rows))


def _met(item: _Item) -> dict[str, np.ndarray]:
    """Return the images of a bucket of which something can be said, in the order of the parts.

    These are the images whose first 64 bits another one has too, and those that have several labels in their part:
    usually few, so the 18 bytes of each image of the bucket are most of the memory that is needed.

    Returns:
        The columns `IMAGES`, `part` (int32), the number of the part, and `image` (uint32), the place in it.
    """
    width = (1 << 64) // item.of
    low = -(1 << 63) + item.number * width
    parts: list[tuple[int, dict[str, np.ndarray]]] = []
    for part in chain(item.train.of_parts(), item.test.of_parts()):
        cancellation.check()
        parts.append(sorted_columns.between(part.different, IMAGES, low, low + width - 1))
    repeated = _repeated([found["digest"] for _, found in parts])
    met: dict[str, list[np.ndarray]] = {name: [] for name in (*IMAGES, "part", "image")}
    for number in range(len(parts)):
        first, found = parts[number]
        # What is not needed of a part is let go before the next one.
        parts[number] = (first, {})
        rows = np.flatnonzero(summary.among(found["digest"], repeated) | (found["mixed"] > 0))
        for name in IMAGES:
            met[name].append(found[name][rows])
        met["part"].append(np.full(len(rows), number, np.int32))
        met["image"].append((first + rows).astype(np.uint32))
    return {name: np.concatenate(met.pop(name)) for name in [*met]}


def _repeated(digests: list[np.ndarray]) -> np.ndarray:
    """Return the digests that occur more than once, int64 of shape (n,), ascending, each at least once."""
    ordered = np.concatenate(digests)
    ordered.sort()
    repeated: np.ndarray = ordered[1:][_as_before(ordered)[1:]]
    return repeated


def compare_images(images: dict[str, np.ndarray], in_test: np.ndarray) -> np.ndarray:
    """Return what is said of each image of a bucket, uint8 of shape (n,).

    Args:
        images: the columns `IMAGES`, in the order of the parts.
        in_test: whether each is of the test split; these come last.
    """
    said = np.zeros(len(in_test), np.uint8)
    if not len(said):
        return said
    # Equal images stay in the order of the parts: those of the training split first.
    order = np.lexsort((images["more"], images["digest"]))
    test = in_test[order]
    same = _as_before(images["digest"][order])
    same &= _as_before(images["more"][order])
    again = same & _as_before(test)
    # An image begins where it is not the same as the one before; in a split, where it is not there again.
    begins, begins_in_split = (np.flatnonzero(~repeated) for repeated in (same, again))
    label = images["label"][order]
    twofold = np.minimum.reduceat(label, begins_in_split) != np.maximum.reduceat(label, begins_in_split)
    conflict = twofold | (np.maximum.reduceat(images["mixed"][order], begins_in_split) > 0)
    said[order] = AGAIN * again.view(np.uint8)
    said[order] |= CONFLICT * conflict[np.cumsum(~again) - 1].view(np.uint8)
    said[order] |= LEAKED * (test & ~test[begins][np.cumsum(~same) - 1]).view(np.uint8)
    return said


def _as_before(values: np.ndarray) -> np.ndarray:
    """Return whether each value is the same as the one before, bool of shape (n,)."""
    same = np.zeros(len(values), bool)
    same[1:] = values[1:] == values[:-1]
    return same


def _together(buckets: list[Bucket], folder: Path) -> Repeats:
    members.write(folder, buckets)
    return Repeats(FolderEntry(folder), len(buckets))
