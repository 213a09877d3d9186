"""Read a column of label archives with several, such as the writer of each image of QMNIST, for the rows of a split."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from storage.datasets.catalog import Dataset
from storage.errors import ConfigError, DamagedEntry, made_again
from storage.formats import idx, members, parquet, split_rows
from storage.records import Archive, Split
from tasks.slicing.columns import Column


def read(dataset: Dataset, labels: Archive, split: Split, number: int) -> Column:
    """Return a column of the label archives of a split, float64, for the rows that were not set aside.

    Decoding keeps no column but that of the class, so the archives are read again.

    Args:
        dataset: names the manifest in messages.
        labels: all archives of the labels of the split.
        split: with the rows that are wanted.
        number: of the column, from 0.

    Raises:
        ConfigError: an archive has no such column.
        FormatError: an archive is not a complete IDX file.
        DamagedEntry: the archives have other rows than the split.
    """
    return Column(_kept(split, _numbers(dataset, labels, number), labels), np.float64)


def check(dataset: Dataset, labels: Archive, number: int) -> None:
    """Check that the first label archive has a column, without reading its rows.

    Raises:
        ConfigError: it has no such column.
        FormatError: it has no header of IDX.
    """
    with idx.Reader(next(members.of(labels)).file) as reader:
        _check_column(dataset, reader, number)


def _check_column(dataset: Dataset, reader: idx.Reader, number: int) -> None:
    columns = reader.header.shape[1] if len(reader.header.shape) > 1 else 1
    if number >= columns:
        raise ConfigError(
            f"{dataset.name}: expected column {number} in {reader.name}, because [slices] by of {dataset.manifest} "
            f"names it; found {columns:,}, counted from 0; correct by"
        )


def _numbers(dataset: Dataset, labels: Archive, number: int) -> Iterator[np.ndarray]:
    for archive in members.of(labels):
        with idx.Reader(archive.file) as reader:
            _check_column(dataset, reader, number)
            for block in reader.blocks(parquet.ROW_GROUP):
                yield block.reshape(len(block), -1)[:, number].astype(np.float64)


def _kept(split: Split, blocks: Iterator[np.ndarray], labels: Archive) -> Iterator[np.ndarray]:
    """Yield the numbers of a split's rows, out of those of all rows of its archives."""
    waiting = np.empty(0)
    for part in split_rows.parts(split):
        found, missing = [], part.rows + part.set_aside
        while missing:
            if not len(waiting):
                waiting = next(blocks, np.empty(0))
            if not len(waiting):
                raise _differs(split, labels, f"{missing:,} fewer")
            found.append(waiting[:missing])
            waiting, missing = waiting[missing:], missing - len(found[-1])
        numbers = np.concatenate(found)
        yield np.delete(numbers, parquet.metadata(part.source)["set_aside"]) if part.set_aside else numbers
    # To the end of the archives, where their checksums are.
    more = len(waiting) + sum(map(len, blocks))
    if more:
        raise _differs(split, labels, f"{more:,} more")


def _differs(split: Split, labels: Archive, how: str) -> DamagedEntry:
    place, rows = next(members.of(labels)).file, split.rows + split.set_aside
    return DamagedEntry(f"{place}: expected {rows:,} rows, as decoded; found {how}; {made_again(place)}")
