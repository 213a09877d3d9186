"""Set bad rows of splits in parts aside, part by part.

The reasons of a part come from the first pass over all parts, without reading pixels again. Only a part that has bad
rows is written anew; the others stay the entries that they are. A part of which nothing is left is not in the split any
more; its rows count as set aside from its neighbour, so that all rows keep their numbers in the archives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from storage.datasets.catalog import BadRow, Dataset
from storage.formats import arrays, quarantined, split_rows
from storage.records import Audit, Done, Entry, FolderEntry, Split
from storage.runtime import cancellation, code_digests
from storage.store import Plan, Store
from storage.workers.current import in_order
from tasks.auditing.tables import Suspects
from tasks.checking import bad_rows
from tasks.checking.comparing import Compared, Part

_AT_ONCE = 1024
"""Bad rows, with their pictures, in memory at a time."""


@dataclass(frozen=True)
class Rules:
    """What is set aside."""

    checks: tuple[BadRow, ...]
    classes: tuple[str, ...]
    released: tuple[str, ...]
    """Digests of rows that stay."""
    audit: Audit | None
    """If suspect labels are set aside."""


@dataclass(frozen=True)
class BadRows:
    """The bad rows of one part."""

    entry: Entry
    rows: int
    """Number of them."""
    counts: Mapping[str, int]
    """How many fail each check."""
    released: int
    digest: str
    """Of the numbers and the reasons of these rows."""

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the rows in the part, uint32, and their reasons, uint8, each of shape (rows,).

        Raises:
            DamagedEntry: the file cannot be read.
        """
        expected: arrays.Expected = {"row": (np.uint32, (self.rows,)), "reasons": (np.uint8, (self.rows,))}
        found = arrays.read(self.entry.path("bad.npz"), expected)
        return found["row"], found["reasons"]


@dataclass(frozen=True)
class Looked:
    """The bad rows of a split, part by part."""

    split: Split
    checks: tuple[BadRow, ...]
    parts: tuple[BadRows, ...]
    new: int
    """How many of these were not found in the store."""

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def released(self) -> int:
        return sum(part.released for part in self.parts)

    def counts(self) -> dict[str, int]:
        """Return the number of rows that fail each check."""
        return {check: sum(part.counts[check] for part in self.parts) for check in self.checks}


@dataclass(frozen=True)
class Left:
    """What is left of a split, and where the rows are that were set aside."""

    split: Split
    """Its entry is still that of the whole; the new one is to list the parts."""
    parts: tuple[Split, ...]
    aside: tuple[tuple[int, Entry], ...]
    """For each part with bad rows: the number of its first row in the split, and the entry with the bad ones."""


@dataclass(frozen=True)
class _Look:
    store: Store
    plan: Plan
    part: Part
    rules: Rules

    @property
    def label(self) -> str:
        """What people call it."""
        return self.part.label


@dataclass(frozen=True)
class _Division:
    store: Store
    plan: Plan
    part: Split
    bad: BadRows
    classes: tuple[str, ...]
    before: int = 0
    """Rows before the part that belong to parts of which nothing is left."""
    after: int = 0


def look(
    store: Store, dataset: Dataset, splits: tuple[Split, Split], compared: Compared, rules: Rules
) -> tuple[Looked, Looked]:
    """Find the bad rows of both splits, or find that done.

    Args:
        store: the store.
        dataset: the data set.
        splits: the training split, then the test split.
        compared: what the first pass found.
        rules: what is set aside.
    """
    items = [[*_looks(store, dataset, split, splits, compared, rules)] for split in splits]
    done = iter(in_order(_look_at_part, [item for of_split in items for item in of_split], "find bad rows"))
    train, test = (
        _looked(split, rules.checks, list(islice(done, len(of_split))))
        for split, of_split in zip(splits, items, strict=True)
    )
    return train, test


def _looked(split: Split, checks: tuple[BadRow, ...], done: Sequence[Done[BadRows]]) -> Looked:
    new = sum(not part.step.reused for part in done)
    return Looked(split, checks, tuple(part.record for part in done), new)


def divide(store: Store, dataset: Dataset, looked: Looked) -> Left:
    """Divide the parts of a split that have bad rows, or find that done.

    Args:
        store: the store.
        dataset: the data set.
        looked: its bad rows: some, but not all.
    """
    parts = list(split_rows.parts(looked.split))
    items = _divisions(store, dataset, parts, looked.parts)
    done = iter(in_order(_divide_part, [item for item in items if item], f"divide {looked.split.name}"))
    left: list[Split] = []
    aside: list[tuple[int, Entry]] = []
    for start, part, bad, item in zip(_starts(parts), parts, looked.parts, items, strict=True):
        rest = next(done) if item else part
        if bad.rows:
            aside.append((start, rest.entry))
        if rest.rows:
            left.append(rest)
    split = dataclasses.replace(
        looked.split,
        rows=looked.split.rows - looked.rows,
        digest=bad_rows.digest_without(looked.split, _numbers(parts, looked.parts)),
        set_aside=looked.split.set_aside + looked.rows,
        parts=len(left),
    )
    return Left(split, tuple(left), tuple(aside))


def copy_rows(left: Left, writer: quarantined.Writer) -> None:
    """Write the rows that were set aside, with their numbers in the split, a few at a time."""
    for start, entry in left.aside:
        rows = quarantined.read(entry.path(quarantined.FILE))
        while some := list(islice(rows, _AT_ONCE)):
            cancellation.check()
            numbered = [dataclasses.replace(row, row=start + row.row) for row, _ in some]
            writer.write(numbered, [picture for _, picture in some])


def _looks(
    store: Store,
    dataset: Dataset,
    split: Split,
    splits: tuple[Split, Split],
    compared: Compared,
    rules: Rules,
) -> Iterator[_Look]:
    audit = rules.audit if split.name == "train" else None
    parameters = {
        "checks": list(rules.checks),
        "classes": len(rules.classes),
        "released": list(rules.released),
    }
    code = code_digests.digests(__name__)
    for part in compared.parts(split):
        inputs, more = part.inputs(splits), dict[str, Any]()
        if audit:
            # It numbers the rows of the whole split.
            inputs["suspects"], more["start"] = audit.digest, part.start
        subject = f"{split.name} part reasons"
        plan = Plan(dataset.name, "quarantine", subject, inputs, parameters | more, code, one_of_many=True)
        yield _Look(store, plan, part, dataclasses.replace(rules, audit=audit))


def _look_at_part(item: _Look) -> Done[BadRows]:
    return item.store.get_or_make(item.plan, BadRows, partial(_find, item), str)


def _find(item: _Look, folder: Path) -> BadRows:
    rules, part = item.rules, item.part
    reasons = bad_rows.failed(rules.checks, part.rows(), len(rules.classes))
    if rules.audit:
        reasons[_suspects(rules.audit, part.start, part.split.rows)] |= bad_rows.bit("suspect")
    released = bad_rows.release(part.split, reasons, frozenset(rules.released))
    rows = np.flatnonzero(reasons)
    bad = {"row": rows.astype(np.uint32), "reasons": reasons[rows]}
    arrays.write(folder / "bad.npz", bad)
    counts = bad_rows.counts(rules.checks, bad["reasons"])
    return BadRows(FolderEntry(folder), len(rows), counts, released, arrays.digest(bad))


def _suspects(audit: Audit, start: int, rows: int) -> np.ndarray:
    """Return the numbers in a part of its rows whose labels are likely wrong."""
    found = Suspects.read(audit.suspects)
    numbers: np.ndarray = found.row[found.flagged] - start
    return numbers[(numbers >= 0) & (numbers < rows)]


def _divisions(
    store: Store, dataset: Dataset, parts: Sequence[Split], bad: Sequence[BadRows]
) -> list[_Division | None]:
    """Return what is to be done with each part; None: it stays as it is."""
    gone = [found.rows == part.rows for part, found in zip(parts, bad, strict=True)]
    last = max(number for number, is_gone in enumerate(gone) if not is_gone)
    items: list[_Division | None] = []
    before = 0
    code = code_digests.digests(__name__)
    for number, (part, found) in enumerate(zip(parts, bad, strict=True)):
        around = {"before": 0, "after": 0}
        if gone[number]:
            before += part.rows
        else:
            around["before"], before = before, 0
            if number == last:
                around["after"] = sum(later.rows for later in parts[last + 1 :])
        inputs = {"part": part.digest, "bad rows": found.digest}
        parameters = {"classes": list(dataset.classes), **around}
        subject = f"{part.name} part"
        plan = Plan(dataset.name, "quarantine", subject, inputs, parameters, code, one_of_many=True)
        changes = found.rows or any(around.values())
        items.append(_Division(store, plan, part, found, dataset.classes, **around) if changes else None)
    return items


def _divide_part(item: _Division) -> Split:
    return item.store.get_or_make(item.plan, Split, partial(_divide, item), str).record


def _divide(item: _Division, folder: Path) -> Split:
    part, (rows, found) = item.part, item.bad.read()
    reasons = np.zeros(part.rows, np.uint8)
    reasons[rows] = found
    end = item.before + part.rows
    numbers = np.concatenate(
        [np.arange(item.before), item.before + rows.astype(np.int64), np.arange(end, end + item.after)]
    )
    left = dataclasses.replace(
        part,
        entry=FolderEntry(folder),
        rows=part.rows - len(rows),
        digest=bad_rows.digest_without(part, [rows]) if len(rows) else part.digest,
        set_aside=part.set_aside + len(numbers),
    )
    # A run that was killed may have left one.
    left.file.unlink(missing_ok=True)
    with quarantined.Writer(folder / quarantined.FILE) as writer:
        bad_rows.divide(part, left, item.classes, reasons, writer, numbers)
    return left


def _starts(parts: Sequence[Split]) -> Iterator[int]:
    start = 0
    for part in parts:
        yield start
        start += part.rows


def _numbers(parts: Sequence[Split], bad: Sequence[BadRows]) -> Iterator[np.ndarray]:
    """Yield the numbers in the split of the bad rows of each part."""
    for start, found in zip(_starts(parts), bad, strict=True):
        yield start + found.read()[0].astype(np.int64)
