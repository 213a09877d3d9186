"""The tables that an audit writes: suspects, and near-duplicates. A row of each is about one image."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import DamagedEntry, made_again
from storage.formats import arrays, parquet


@dataclass(frozen=True)
class _Table:
    """Arrays of equal length, by the name of their column."""

    KINDS: ClassVar[dict[str, type[np.generic]]]

    def __len__(self) -> int:
        return len(next(iter(self.columns().values())))

    @classmethod
    def none(cls) -> Self:
        """Return a table without rows."""
        return cls(*(np.empty(0, kind) for kind in cls.KINDS.values()))

    def columns(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, of the types in `KINDS`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def write(self, file: Path) -> str:
        """Write the table as Parquet and return the digest of its numbers; equal tables give equal bytes."""
        columns = {name: np.asarray(self.columns()[name], kind) for name, kind in self.KINDS.items()}
        file.unlink(missing_ok=True)
        table = pa.Table.from_arrays([_column(values) for values in columns.values()], schema=self._schema())
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        return arrays.digest(columns)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            DamagedEntry: the file does not hold such a table.
        """
        try:
            with pq.ParquetFile(file, page_checksum_verification=True) as source:
                if not source.schema_arrow.equals(cls._schema()):
                    raise ValueError(f"its columns are {', '.join(source.schema_arrow.names)}")
                table = source.read(use_threads=False)
            columns = [_numbers(table.column(name).combine_chunks()) for name in cls.KINDS]
            if not all(np.isfinite(values).all() for values in columns):
                raise ValueError("it has a number that is not finite")
        except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, RuntimeError) as error:
            raise DamagedEntry(f"{file}: expected a table of an audit; {error}; {made_again(file)}") from error
        return cls(*columns)

    @classmethod
    def _schema(cls) -> pa.Schema:
        return pa.schema(
            [pa.field(name, pa.from_numpy_dtype(kind), nullable=False) for name, kind in cls.KINDS.items()]
        )


@dataclass(frozen=True)
class Suspects(_Table):
    """Training rows whose label another class beats, most suspicious first."""

    KINDS: ClassVar[dict[str, type[np.generic]]] = {
        "row": np.int64,
        "label": np.uint8,
        "suggested": np.uint8,
        "probability": np.float32,
        "suggested_probability": np.float32,
        "flagged": np.bool_,
    }

    row: np.ndarray
    """Row of the training split, counted from 0, in the order of the archive."""
    label: np.ndarray
    """The class that the row has."""
    suggested: np.ndarray
    """The class that a network which has not seen the row finds most probable."""
    probability: np.ndarray
    """The probability that the network gives to the label, in [0, 1]; the order of the table."""
    suggested_probability: np.ndarray
    flagged: np.ndarray
    """Whether confident learning counts the label as wrong."""


@dataclass(frozen=True)
class NearDuplicates(_Table):
    """Test images that are in the training split, equal or almost, the nearest pairs first."""

    KINDS: ClassVar[dict[str, type[np.generic]]] = {
        "test_row": np.int64,
        "train_row": np.int64,
        "distance": np.float32,
        "test_label": np.uint8,
        "train_label": np.uint8,
    }

    test_row: np.ndarray
    train_row: np.ndarray
    """The training row whose image is nearest, the first of several."""
    distance: np.ndarray
    """0 for equal images; see `tasks.auditing.near_duplicates`."""
    test_label: np.ndarray
    train_label: np.ndarray


def _column(values: np.ndarray) -> pa.Array:
    if values.dtype != np.bool_:
        return parquet.column_of(values)
    # Arrow packs truth values into bits.
    packed = np.packbits(values, bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(packed)])


def _numbers(column: pa.Array) -> np.ndarray:
    if not len(column):
        return np.empty(0, column.type.to_pandas_dtype())
    if not pa.types.is_boolean(column.type):
        return parquet.numbers_of(column)
    bits = np.unpackbits(np.frombuffer(column.buffers()[1], np.uint8), bitorder="little")
    return bits[column.offset : column.offset + len(column)].astype(bool)
