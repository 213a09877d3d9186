"""Columns of numbers as Parquet, sorted by the first one, so that a reader gets the rows of a range of it.

Row groups have the least and the greatest value of the first column: those that lie outside of the range are not read.
Page checksums are written and verified, as for a split.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import DamagedEntry, made_again
from storage.formats import parquet
from storage.runtime.ranged import Ranged, Source

Kinds = Mapping[str, type[np.generic]]
"""The types of the columns, by name, in order."""

_ROW_GROUP = 8192


def write(path: Path, columns: Mapping[str, np.ndarray], kinds: Kinds) -> None:
    """Write columns of equal length, each of shape (rows,), sorted by the first one; equal columns give equal bytes."""
    first = next(iter(kinds))
    arrays = [parquet.column_of(columns[name].astype(kind, copy=False)) for name, kind in kinds.items()]
    path.unlink(missing_ok=True)
    pq.write_table(
        pa.Table.from_arrays(arrays, schema=_schema(kinds)),
        path,
        row_group_size=_ROW_GROUP,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=[first],
        write_page_checksum=True,
    )


def between(source: Source, kinds: Kinds, low: int, high: int) -> tuple[int, dict[str, np.ndarray]]:
    """Return the rows whose value in the first column is at least `low` and at most `high`.

    Returns:
        The number of the first of these rows in the file, from 0, and their columns by name, each of shape (n,).

    Raises:
        DamagedEntry: a page fails its checksum, or the columns are not those of `kinds`.
    """
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            return _between(file, kinds, low, high)
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(source, Ranged):
            # Its SHA-256 tells whether the file is damaged.
            source.whole()
        named = ", ".join(kinds)
        raise DamagedEntry(f"{source}: expected the columns {named}; {error}; {made_again(source)}") from error


def _between(file: pq.ParquetFile, kinds: Kinds, low: int, high: int) -> tuple[int, dict[str, np.ndarray]]:
    if not file.schema_arrow.equals(_schema(kinds)):
        raise ValueError(f"its columns are {', '.join(file.schema_arrow.names)}")
    groups: list[int] = []
    start = first = 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        values = group.column(0).statistics
        # The only group of an empty file has none.
        if group.num_rows and values.max >= low and values.min <= high:
            if not groups:
                start = first
            groups.append(number)
        first += group.num_rows
    columns = {name: np.empty(0, kind) for name, kind in kinds.items()}
    if not groups:
        return 0, columns
    table = file.read_row_groups(groups, use_threads=False)
    columns = {name: parquet.numbers_of(table.column(name).combine_chunks()) for name in kinds}
    by = next(iter(columns.values()))
    begin, end = np.searchsorted(by, low, "left"), np.searchsorted(by, high, "right")
    # Copies: a view would keep whole row groups in memory.
    return start + int(begin), {name: values[begin:end].copy() for name, values in columns.items()}


def _schema(kinds: Kinds) -> pa.Schema:
    return pa.schema([pa.field(name, pa.from_numpy_dtype(kind), nullable=False) for name, kind in kinds.items()])
