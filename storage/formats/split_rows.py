"""Read a split, whether it is one Parquet file or several parts: its rows, in the order of the archives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from storage.formats import members, parquet
from storage.records import Split

PART_ROWS = 1 << 20
"""The most rows of a part, which are cut from the start of each archive. It decides bytes, and the keys of parts."""


def parts(split: Split) -> Iterator[Split]:
    """Yield the parts of a split, each with one file, in order: the split itself if it is one file.

    Raises:
        DamagedEntry: the list of parts cannot be read.
    """
    if split.parts:
        # A quarantine lists what is left of both splits.
        yield from (part for part in members.read(split.entry, Split) if part.name == split.name)
    else:
        yield split


def numbered(split: Split) -> Iterator[tuple[int, Split]]:
    """Yield the parts of a split, each with the number of its first row in the split, counted from 0.

    Raises:
        DamagedEntry: the list of parts cannot be read.
    """
    start = 0
    for part in parts(split):
        yield start, part
        start += part.rows


def named(part: Split, start: int) -> str:
    """Return what people call a part of a split: its rows, counted through all archives from 0."""
    return f"rows {start:,} to {start + part.rows - 1:,} of {part.name}"


def blocks(split: Split, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (images, labels) of each row group: uint8 of shape (n, height, width), 0-255, and uint8 of shape (n,).

    Args:
        start: the first row, counted from 0; row groups before it are not read.

    Raises:
        DamagedEntry: a page fails its checksum, or the columns are not those of a split.
    """
    for first, part in numbered(split):
        if first + part.rows > start:
            yield from parquet.blocks(part.file, max(0, start - first))


def labels(split: Split) -> np.ndarray:
    """Return only the labels, uint8 of shape (rows,), without reading any pixels.

    Raises:
        DamagedEntry: a file is not that of a split.
    """
    found = [parquet.labels(part.source) for part in parts(split)]
    return found[0] if len(found) == 1 else np.concatenate(found)


def images(split: Split, numbers: list[int]) -> np.ndarray:
    """Return the images of the rows `numbers`, uint8 of shape (len(numbers), height, width).

    Reads only the row groups in which they are.

    Raises:
        DamagedEntry: a file is not that of a split.
        LookupError: the split has no such row.
    """
    by_row: dict[int, np.ndarray] = {}
    for first, part in numbered(split):
        here = [number for number in numbers if first <= number < first + part.rows]
        if here:
            by_row |= zip(here, parquet.rows(part.source, [number - first for number in here]), strict=True)
    return np.stack([by_row[number] for number in numbers])
