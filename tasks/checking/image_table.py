"""The table of images that is checked, as Parquet: a column `split`, followed by those of `summary.IMAGE_COLUMNS`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expectations import summary
from storage.formats import parquet
from storage.records import SplitName
from storage.runtime.ranged import Source

FILE = "summary.parquet"
TABLE_ROWS = 1 << 18
"""Rows passed to Great Expectations at a time, 25 MB of numbers: common data sets fit in one table."""

_COLUMNS = pa.schema({"split": pa.string()} | {n: pa.from_numpy_dtype(t) for n, t in summary.IMAGE_COLUMNS.items()})


def writer(path: Path) -> pq.ParquetWriter:
    """Return what `written` writes with."""
    return pq.ParquetWriter(path, _COLUMNS, compression="zstd", write_page_checksum=True)


def written(
    writer: pq.ParquetWriter,
    name: SplitName,
    parts: Iterable[summary.Table],
    counters: Collection[summary.Matches | summary.PixelRange],
) -> Iterator[summary.Table]:
    """Write and count each part of a table, then yield it."""
    for part in parts:
        for counter in counters:
            counter.add(part)
        writer.write_table(_table(name, part))
        yield part


def _table(name: SplitName, part: summary.Table) -> pa.Table:
    kinds = summary.IMAGE_COLUMNS.items()
    numbers = [parquet.column_of(part[column].astype(kind, copy=False)) for column, kind in kinds]
    return pa.Table.from_arrays([parquet.column_of_text(name, len(part["index"])), *numbers], schema=_COLUMNS)


def column(source: Source, split: str, name: str) -> np.ndarray:
    """Return one column of the rows of a split, shape (rows,).

    Raises:
        OSError, pyarrow.ArrowException, LookupError, ValueError: there is no such file, column or split.
    """
    # Not with `read_table` and filters, which import pandas.
    with pq.ParquetFile(source, read_dictionary=["split"]) as file:
        table = file.read(columns=["split", name]).unify_dictionaries()
    names = table.column("split").combine_chunks()
    in_split = parquet.numbers_of(names.indices) == names.dictionary.to_pylist().index(split)
    numbers: np.ndarray = parquet.numbers_of(table.column(name).combine_chunks())[in_split]
    return numbers
