"""The second pass over a split in parts: measure the images of each part, and have Great Expectations check them.

It needs what the first pass says of all parts: the nearest class mean of an image (`centroid_hit`) depends on the means
of the whole training split, and whether it occurs elsewhere on every other part. So where a part is appended to the
training split, all parts of both splits are measured again; to the test split, all parts of that one.

Matrix products go row group by row group, as for a split in one file. Parts of a large archive have the same row groups
as the whole would have. Where several small archives are put together, row groups have other sizes; an image that is as
far from two means, but for rounding, may then be nearer to the other one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from expectations import engine_process, run_suites, suites, summary
from storage.datasets.catalog import Dataset
from storage.errors import DamagedEntry, made_again
from storage.formats import arrays, members, parquet
from storage.records import Done, Entry, FolderEntry, Split, SplitName, Validation
from storage.runtime import cancellation, code_digests
from storage.store import Plan, Store
from storage.workers.current import in_order
from tasks.checking import image_table
from tasks.checking.comparing import Compared, Part
from tasks.checking.surveys import SplitSurvey

_TALLIES: arrays.Expected = {
    "hits": (np.int64, (1,)),
    "labels": (np.int64, (256,)),
    "nearest": (np.int64, (256,)),
    "pixels": (np.int64, (2,)),
}


@dataclass(frozen=True)
class Measured:
    """One part of a split, measured and checked."""

    entry: Entry
    name: SplitName
    start: int
    """Number of its first row in the split."""
    rows: int
    """As found in its file, like the following two."""
    image_shape: tuple[int, int]
    digest: str

    @property
    def table(self) -> Path:
        """See `image_table`; `index` is the number of the row in the split."""
        return self.entry.path(image_table.FILE)

    def look(self, suite: suites.Suite) -> run_suites.Look:
        """Return what Great Expectations found in its rows.

        Raises:
            DamagedEntry: the file cannot be read.
        """
        path = self.entry.path("findings.json")
        try:
            return run_suites.looked(suite, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DamagedEntry(f"{path}: expected findings of checks; {error}; {made_again(path)}") from error

    def count(self, matches: summary.Matches, pixels: summary.PixelRange) -> None:
        """Add its rows to what is counted of the split.

        Raises:
            DamagedEntry: the file cannot be read.
        """
        tallies = self._tallies()
        matches.merge(int(tallies["hits"][0]), tallies["labels"], tallies["nearest"])
        pixels.merge(*map(int, tallies["pixels"]))

    def matches(self) -> summary.Matches:
        """Return how often labels match in its rows.

        Raises:
            DamagedEntry: the file cannot be read.
        """
        tallies, matches = self._tallies(), summary.Matches()
        matches.merge(int(tallies["hits"][0]), tallies["labels"], tallies["nearest"])
        return matches

    def _tallies(self) -> dict[str, np.ndarray]:
        return arrays.read(self.entry.path("tallies.npz"), _TALLIES)


@dataclass(frozen=True)
class _Item:
    store: Store
    plan: Plan
    part: Part
    train: SplitSurvey
    suite: suites.Suite
    engine: str
    """See `engine_process.shared`."""

    @property
    def label(self) -> str:
        """What people call it."""
        return self.part.label


def measure(store: Store, dataset: Dataset, splits: tuple[Split, Split], compared: Compared) -> list[Done[Measured]]:
    """Measure and check the images of all parts of both splits, or find that done; return them in order.

    Args:
        store: the store.
        dataset: with the rows that it declares.
        splits: the training split, then the test split.
        compared: what the first pass found.
    """
    items = [item for split in splits for item in _items(store, dataset, split, splits, compared)]
    return in_order(_measure_part, items, "measure images")


def of(validation: Validation, split: str) -> Iterator[Measured]:
    """Yield the measured parts of a split, in order.

    Raises:
        DamagedEntry: the list of parts cannot be read.
    """
    return (part for part in members.read(validation.entry, Measured) if part.name == split)


def _items(
    store: Store, dataset: Dataset, split: Split, splits: tuple[Split, Split], compared: Compared
) -> Iterator[_Item]:
    suite = suites.images(dataset, split.name)
    # The same objects for all parts: there can be thousands.
    expectations = [[expectation.kind, dict(expectation.arguments)] for expectation in suite.expectations]
    fixed: dict[str, Any] = {
        "code": code_digests.digests(__name__),
        "libraries": {"great-expectations": version("great-expectations")},
        "one_of_many": True,
    }
    for part in compared.parts(split):
        plan = Plan(
            dataset.name,
            "validate",
            f"{split.name} part",
            inputs=part.inputs(splits),
            parameters={"start": part.start, "expectations": expectations},
            **fixed,
        )
        yield _Item(store, plan, part, compared.train, suite, engine_process.address())


def _measure_part(item: _Item) -> Done[Measured]:
    return item.store.get_or_make(item.plan, Measured, partial(_measure, item), str)


def _measure(item: _Item, folder: Path) -> Measured:
    part = item.part.split
    matches, pixels = summary.Matches(), summary.PixelRange()
    # The matrix products are small: on a busy machine, BLAS threads would mostly wait for each other.
    with threadpool_limits(1, "blas"), image_table.writer(folder / image_table.FILE) as writer:
        written = image_table.written(writer, part.name, _tables(item), (matches, pixels))
        with engine_process.shared(item.engine):
            look = run_suites.look(item.suite, written)
    (folder / "findings.json").write_text(json.dumps(run_suites.look_json(look)), encoding="utf-8")
    arrays.write(
        folder / "tallies.npz",
        {
            "hits": np.array([matches.hits]),
            "labels": matches.labels,
            "nearest": matches.nearest,
            "pixels": np.array([pixels.darkest, pixels.brightest]),
        },
    )
    footer = parquet.metadata(part.file)
    rows, shape = int(matches.labels.sum()), tuple(footer["image_shape"])
    return Measured(FolderEntry(folder), part.name, item.part.start, rows, shape, footer["digest"])


def _tables(item: _Item) -> Iterator[summary.Table]:
    part = item.part.split
    pieces = _cancellable(summary.pieces(parquet.blocks(part.file)))
    means, of_them = item.train.means(), part.name == "train"
    return summary.tables(pieces, _compared(item.part), means, of_them, image_table.TABLE_ROWS, item.part.start)


def _cancellable(pieces: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for piece in pieces:
        cancellation.check()
        yield piece


def _compared(part: Part) -> dict[str, np.ndarray]:
    """Return the columns of `summary.IMAGE_COLUMNS` that compare an image with others."""
    rows = part.rows()
    repeated = {name: rows[name] for name in ("duplicate", "conflict", "leaked")}
    return {**repeated, "digest": part.survey.digests()[rows["image"]]}
