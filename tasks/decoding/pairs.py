"""Decode pairs of archives, of images and of their labels, and the parts of large ones: by workers, if there are some.

A pair of at most `PART_ROWS` rows becomes one file. A larger one is cut into parts, each an entry of its own: plain IDX
by arithmetic, each part by itself, and gzip, which can only be read from its start, in one pass that makes the parts
that are missing. The key of a part says nothing of the others, so that a pair that is added, or left out, changes none.

What protects a range of a plain archive: the archive was verified when it was fetched, and the digests of its chunks
were noted in its entry then; a range is read in whole chunks, each compared with its digest (`storage.formats.chunks`).

A worker imports this module, and so it does without Prefect.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from storage.datasets.catalog import Dataset
from storage.errors import FormatError
from storage.files import digest_of
from storage.formats import idx, members, split_rows
from storage.records import Archive, Done, FolderEntry, Split, SplitName
from storage.runtime import cancellation, code_digests
from storage.runtime.prefetch import prefetch
from storage.store import Plan, Store
from storage.workers.current import in_order
from tasks.decoding.reading import agreed_rows, class_labels, rows_at_once, sets_labels_aside, upright
from tasks.decoding.writing import TooManyRows, file_name, is_compressed, opened, rows_of, write_part, write_split
from tasks.ui import summaries
from tasks.ui.steps import with_new


@dataclass(frozen=True)
class Pair:
    """An archive of images and that of their labels, to be decoded wherever that is done."""

    store: Store
    dataset: Dataset
    name: SplitName
    images: Archive
    labels: Archive
    one_of_many: bool = False
    """Whether there are others: nobody asks of each why it is made."""
    why: str = ""
    """Why it is made, if that is known (`Plan.why`)."""

    @property
    def label(self) -> str:
        """What people call it."""
        return file_name(self.dataset, self.images)

    @property
    def plan(self) -> Plan:
        """What all rows are made from."""
        plan = _plan(self.dataset, self.name, self.images, self.labels)
        return replace(plan, one_of_many=self.one_of_many, why=self.why)

    def plan_of(self, rows: tuple[int, int]) -> Plan:
        """Return what some of the rows are made from: from a first one up to but not including a second one."""
        plan = _plan(replace(self.dataset, rows={}), self.name, self.images, self.labels)
        parameters = {**plan.parameters, "part": [*rows]}
        return replace(plan, subject=f"{self.name} part", parameters=parameters, one_of_many=True)


@dataclass(frozen=True)
class _Part:
    """Some of the rows of a pair."""

    pair: Pair
    rows: tuple[int, int]

    @property
    def label(self) -> str:
        """What people call it."""
        first, last = self.rows
        return f"rows {first:,} to {last - 1:,} of {self.pair.label}"


@dataclass(frozen=True)
class _Found:
    """What is known of a pair after a look."""

    rows: int
    done: Done[Split] | None
    """None if it is to be made in parts."""


@dataclass(frozen=True)
class _Passed:
    """What a pass over a compressed pair has made or found."""

    parts: tuple[Done[Split], ...]
    sources: dict[str, str]


class _Compressed(Exception):
    """A part of a compressed archive cannot be made by itself. Never shown to people."""


def _plan(dataset: Dataset, name: SplitName, images: Archive, labels: Archive) -> Plan:
    return Plan(
        dataset.name,
        "decode",
        name,
        inputs={images.role: images.sha256, labels.role: labels.sha256},
        parameters=_declared(dataset, name),
        code=code_digests.digests(__name__),
    )


def _declared(dataset: Dataset, name: SplitName) -> dict[str, Any]:
    return {
        "image_shape": list(dataset.image_shape),
        "classes": list(dataset.classes),
        "rows": dataset.rows.get(name),
        "label_column": dataset.label_column,
        **({"labels": list(dataset.labels)} if dataset.labels else {}),
        **({"transpose": True} if dataset.transpose else {}),
        **({"unknown_labels": "set aside"} if sets_labels_aside(dataset) else {}),
    }


def of_one(pair: Pair) -> Done[Split]:
    """Decode the only pair of a split, or find it decoded.

    Raises:
        FormatError: see `tasks.decode`.
    """
    started = time.perf_counter()
    pair = replace(pair, why=pair.store.explained(pair.plan).why)
    found = _look(pair)
    if found.done and not found.done.record.parts:
        return found.done
    ((result, new),) = _in_parts([(pair, found)])
    return with_new(result, result.record.parts, new, time.perf_counter() - started)


def of_several(store: Store, dataset: Dataset, name: SplitName, images: Archive, labels: Archive) -> Done[Split]:
    """Decode all pairs of a split, or find them decoded.

    Raises:
        FormatError: see `tasks.decode`.
    """
    started, plan = time.perf_counter(), store.explained(_plan(dataset, name, images, labels))
    # Each pair may have any number of rows: the manifest declares that of all together. And nothing in it may grow with
    # the number of archives, because each item goes to another process.
    specs = zip(*(dataset.archives_of(archive.role) for archive in (images, labels)), strict=True)
    archives = zip(members.of(images), members.of(labels), specs, strict=True)
    pairs = [
        Pair(store, replace(dataset, rows={}, archives=of_both), name, of_images, of_labels, one_of_many=True)
        for of_images, of_labels, of_both in archives
    ]
    done = _all(pairs)
    splits = [one.record for one, _ in done]
    parts = [part for split in splits for part in split_rows.parts(split)]
    sources = {
        archive.role: digest_of([split.sources[archive.role] for split in splits]) for archive in (images, labels)
    }
    # The lists of large pairs, with the digests of what was decompressed: without them, it would be decompressed again.
    lists = [split.entry.key for split in splits if split.parts]
    make = partial(_joined, dataset, name, parts, sources, lists)
    result = store.get_or_make(plan, Split, make, summaries.split)
    new = sum(new for _, new in done)
    return with_new(result, result.record.parts, new, time.perf_counter() - started)


def _all(pairs: Sequence[Pair]) -> list[tuple[Done[Split], int]]:
    """Decode each pair; return the results with how many of the parts are new."""
    looks = in_order(_look, pairs, f"decode {pairs[0].name}")
    large = [place for place, found in enumerate(looks) if not found.done or found.done.record.parts]
    in_parts = dict(zip(large, _in_parts([(pairs[place], looks[place]) for place in large]), strict=True))
    return [
        in_parts[place] if place in in_parts else (found.done, int(not found.done.step.reused))  # type: ignore[union-attr, misc]
        for place, found in enumerate(looks)
    ]


def _look(pair: Pair) -> _Found:
    """Find the decoded rows of a pair, or make them if they fit into one file."""
    arguments = (pair.dataset, pair.name, pair.images, pair.labels)
    make = partial(write_split, *arguments, most=split_rows.PART_ROWS)
    try:
        done = pair.store.get_or_make(pair.plan, Split, make, summaries.split)
    except TooManyRows as found:
        return _Found(found.rows, None)
    return _Found(done.record.rows, done)


def _in_parts(pairs: Sequence[tuple[Pair, _Found]]) -> list[tuple[Done[Split], int]]:
    """Find or make each part of some pairs, and the entries that list them; return how many parts are new, too."""
    if not pairs:
        return []
    cut = [[*idx.cuts(found.rows, split_rows.PART_ROWS)] for _, found in pairs]
    items = [_Part(pair, rows) for (pair, _), parts in zip(pairs, cut, strict=True) for rows in parts]
    made = iter(in_order(_part, items, f"decode {pairs[0][0].name}"))
    parts = [[*islice(made, len(rows))] for rows in cut]
    passing = [place for place, found in enumerate(parts) if not all(found)]
    passed = in_order(_pass, [pairs[place][0] for place in passing], f"decode {pairs[0][0].name}")
    sources: dict[int, dict[str, str]] = {}
    for place, one in zip(passing, passed, strict=True):
        parts[place], sources[place] = [*one.parts], one.sources
    return [
        (_listed(pair, [part for part in parts[place] if part], sources.get(place)), _new(parts[place]))
        for place, (pair, _) in enumerate(pairs)
    ]


def _new(parts: Sequence[Done[Split] | None]) -> int:
    return sum(not part.step.reused for part in parts if part)


def _part(part: _Part) -> Done[Split] | None:
    """Find a part of a pair, or make it; None if the pair is compressed, so that a pass over all of it is needed."""
    pair = part.pair
    try:
        return pair.store.get_or_make(pair.plan_of(part.rows), Split, partial(_write_range, part), summaries.split)
    except _Compressed:
        return None


def _write_range(part: _Part, folder: Path) -> Split:
    pair, (first, last) = part.pair, part.rows
    if any(is_compressed(archive) for archive in (pair.images, pair.labels)):
        raise _Compressed
    images, labels = rows_of(pair.dataset, pair.images), rows_of(pair.dataset, pair.labels)
    agreed_rows(pair.dataset, pair.name, images, labels)
    at_once = rows_at_once(pair.dataset)
    blocks = zip(
        upright(pair.dataset, images.blocks(first, last, at_once)),
        class_labels(pair.dataset, labels.name, labels.blocks(first, last, at_once), first),
        strict=True,
    )
    with closing(prefetch(blocks)) as coming:
        return write_part(pair.dataset, pair.name, coming, folder)


def _pass(pair: Pair) -> _Passed:
    """Read a compressed pair once, and make the parts that are missing on the way."""
    done = []
    with opened(pair.dataset, pair.images, pair.labels) as (images, labels):
        rows = agreed_rows(pair.dataset, pair.name, images, labels)
        at_once, part_rows = rows_at_once(pair.dataset), split_rows.PART_ROWS
        blocks = zip(
            upright(pair.dataset, images.blocks(at_once, part_rows)),
            class_labels(pair.dataset, labels.name, labels.blocks(at_once, part_rows)),
            strict=True,
        )
        with closing(prefetch(blocks)) as coming:
            for first, last in idx.cuts(rows, part_rows):
                mine = islice(coming, len([*idx.cuts(last - first, at_once)]))
                make = partial(write_part, pair.dataset, pair.name, mine)
                done.append(pair.store.get_or_make(pair.plan_of((first, last)), Split, make, summaries.split))
                _skip(mine)
            # To the end, where its checksum is.
            deque(coming, maxlen=0)
        sources = {pair.images.role: images.payload_sha256, pair.labels.role: labels.payload_sha256}
    return _Passed(tuple(done), sources)


def _skip(blocks: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
    """Read the rest of a part that was there."""
    for _ in blocks:
        cancellation.check()


def _listed(pair: Pair, parts: Sequence[Done[Split]], sources: dict[str, str] | None) -> Done[Split]:
    """Return the entry that lists the parts of a pair.

    Args:
        sources: digests of the decompressed archives; None: they are not compressed.
    """
    plain = {archive.role: archive.sha256 for archive in (pair.images, pair.labels)}
    make = partial(_joined, pair.dataset, pair.name, [part.record for part in parts], sources or plain, ())
    return pair.store.get_or_make(pair.plan, Split, make, summaries.split)


def _joined(
    dataset: Dataset,
    name: SplitName,
    parts: Sequence[Split],
    sources: dict[str, str],
    lists: Sequence[str],
    folder: Path,
) -> Split:
    """Write the list of the parts of a split.

    Args:
        lists: keys of entries that list some of the parts, to be kept as long as this one.

    Raises:
        FormatError: they have other rows than the manifest declares.
    """
    rows = sum(part.rows for part in parts)
    if dataset.rows.get(name, rows) != rows:
        raise FormatError(
            f"{dataset.name}: expected {dataset.rows[name]:,} rows for the split {name!r}, as the manifest declares; "
            f"found {rows:,} in its archives together; give all archives of this split, or correct [rows] {name} in "
            f"{dataset.manifest}"
        )
    members.write(folder, parts, lists)
    digest = digest_of([part.digest for part in parts])
    shape, classes = dataset.image_shape, len(dataset.classes)
    return Split(FolderEntry(folder), name, rows, shape, classes, digest, sources, parts=len(parts))
