"""A split as Parquet: one row per image, `image` (its pixels in row-major order) and `label`.

Pixels are a fixed-size binary column: Parquet has no 8-bit integers, so a list of them is stored as
32-bit integers with levels, five to ten times slower to read and to write. Page checksums are written and
verified, because without them Parquet does not detect most flipped bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import DamagedEntry, made_again
from storage.files import check_regular
from storage.runtime.ranged import Ranged, Source

ROW_GROUP = 8192
"""Rows per row group, and therefore per block when streaming."""

_METADATA = b"idxflow"
_MAX_PIXELS = (1 << 31) - 1
"""The most bytes of a fixed-size binary value: Arrow counts them in 32 bits."""


class Writer:
    """Writes a split block by block; the metadata comes at the end, when all digests are known."""

    def __init__(self, path: Path, image_shape: tuple[int, int], class_names: tuple[str, ...]) -> None:
        pixels = image_shape[0] * image_shape[1]
        self._schema = _columns(pixels).with_metadata({b"huggingface": _huggingface(class_names)})
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=["label"],
            write_statistics=["label"],
            write_page_checksum=True,
        )

    def write(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Append images (uint8, shape (n, height, width)) and their labels (uint8, shape (n,)) as one row group."""
        pixels = pa.py_buffer(np.ascontiguousarray(images))
        column = pa.FixedSizeBinaryArray.from_buffers(self._schema.field("image").type, len(labels), [None, pixels])
        table = pa.table([column, column_of(labels)], self._schema)
        self._writer.write_table(table, row_group_size=len(labels))

    def close(self, metadata: Mapping[str, Any]) -> None:
        """Finish the file, with `metadata` as JSON in its footer."""
        self._writer.add_key_value_metadata({_METADATA: json.dumps(metadata, sort_keys=True).encode()})
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


def column_of(numbers: np.ndarray) -> pa.Array:
    """Return an array of numbers, shape (n,), as a column without copying it. `pa.array` would import pandas."""
    kind = pa.from_numpy_dtype(numbers.dtype)
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(np.ascontiguousarray(numbers))])


def numbers_of(column: pa.Array) -> np.ndarray:
    """Return the numbers of a column without missing values, shape (n,). `to_numpy` would import pandas."""
    numbers: np.ndarray = np.frombuffer(column.buffers()[1], column.type.to_pandas_dtype())
    return numbers[column.offset : column.offset + len(column)]


def column_of_text(text: str, rows: int) -> pa.Array:
    """Return a column with `text` in each row. `pa.repeat` would import pandas."""
    encoded = text.encode()
    ends = np.arange(rows + 1, dtype=np.int32) * len(encoded)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(ends), pa.py_buffer(encoded * rows))


def metadata(source: Source) -> dict[str, Any]:
    """Return the metadata given to `Writer.close`.

    Raises:
        DamagedEntry: the file is not a split.
    """
    with _opened(source) as file:
        return _metadata(file)


def blocks(source: Source, start: int = 0, stop: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (images, labels) of each row group: uint8 of shape (n, height, width), 0-255, and uint8 of shape (n,).

    Args:
        start: the first row, counted from 0; row groups before it are not read.
        stop: the row after the last one; row groups from there on are not read. None: to the end.

    Raises:
        DamagedEntry: a page fails its checksum, or the columns are not those of a split.
    """
    with _opened(source) as file:
        shape, first = _image_shape(file, source), 0
        last = file.metadata.num_rows if stop is None else stop
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if end > start and first < last:
                table = file.read_row_group(group, use_threads=False)
                wanted = slice(max(0, start - first), last - first)
                yield _images(table.column("image").combine_chunks(), shape)[wanted], _labels(table)[wanted]
            first = end


def read(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return all images and labels of a split, as arrays like those of `blocks`."""
    images, labels = zip(*blocks(source), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def labels(source: Source) -> np.ndarray:
    """Return only the labels, uint8 of shape (rows,), without reading any pixels."""
    with _opened(source) as file:
        _image_shape(file, source)
        return _labels(file.read(columns=["label"]))


def rows(source: Source, numbers: list[int]) -> np.ndarray:
    """Return the images of the rows `numbers`, uint8 of shape (len(numbers), height, width).

    Reads only the row groups in which they are.
    """
    images_by_row: dict[int, np.ndarray] = {}
    with _opened(source) as file:
        shape, first = _image_shape(file, source), 0
        for group in range(file.num_row_groups):
            stop = first + file.metadata.row_group(group).num_rows
            here = [row for row in numbers if first <= row < stop]
            if here:
                table = file.read_row_group(group, columns=["image"], use_threads=False)
                images = _images(table.column("image").combine_chunks(), shape)
                # Copies: a view would keep the whole row group in memory.
                images_by_row |= {row: images[row - first].copy() for row in here}
            first = stop
    return np.stack([images_by_row[row] for row in numbers])


@contextmanager
def _opened(source: Source) -> Iterator[pq.ParquetFile]:
    try:
        if isinstance(source, Path):
            # To open a FIFO could take forever.
            check_regular(source)
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            yield file
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError) as error:
        if isinstance(source, Ranged):
            # Its SHA-256 tells whether the file is damaged.
            source.whole()
        raise DamagedEntry(f"{source}: expected the Parquet file of a split; {error}; {made_again(source)}") from error


def _metadata(file: pq.ParquetFile) -> dict[str, Any]:
    described = (file.metadata.metadata or {}).get(_METADATA)
    if described is None:
        raise ValueError("it has no description of one")
    values: dict[str, Any] = json.loads(described)
    return values


def _image_shape(file: pq.ParquetFile, source: Source) -> tuple[int, int]:
    """Return height and width after checking that columns and rows are those of a split."""
    values = _metadata(file)
    height, width = values["image_shape"]
    if not (type(height) is type(width) is int and min(height, width) > 0 and height * width <= _MAX_PIXELS):
        raise ValueError(f"its images are {height} by {width} pixels")
    expected, actual = _columns(height * width), file.schema_arrow
    # Do not rely only on Arrow's schema, which is just metadata: definition level 0 means that there are no nulls.
    # Not `file.schema`: it and the footer refer to each other, so neither is freed before Python collects garbage.
    schema = pq.ParquetSchema(file.metadata)
    levels = [schema.column(number).max_definition_level for number in range(len(schema))]
    if list(actual) != list(expected) or levels != [0, 0]:
        raise DamagedEntry(
            f"{source}: expected the columns {_named(expected)}; found {_named(actual)}; {made_again(source)}"
        )
    rows = file.metadata.num_rows
    if rows < 1 or values.get("rows", rows) != rows:
        raise DamagedEntry(
            f"{source}: expected {values.get('rows', 'some')} rows; found {rows:,}; {made_again(source)}"
        )
    return height, width


def _columns(pixels: int) -> pa.Schema:
    return pa.schema(
        [pa.field("image", pa.binary(pixels), nullable=False), pa.field("label", pa.uint8(), nullable=False)]
    )


def _named(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name}: {f.type}{' or null' if f.nullable else ''}" for f in schema) or "none"


def _images(column: pa.FixedSizeBinaryArray, shape: tuple[int, int]) -> np.ndarray:
    if not len(column):
        return np.empty((0, *shape), np.uint8)
    size = shape[0] * shape[1]
    pixels = np.frombuffer(column.buffers()[1], np.uint8)
    return pixels[column.offset * size : (column.offset + len(column)) * size].reshape(-1, *shape)


def _labels(table: pa.Table) -> np.ndarray:
    return numbers_of(table.column("label").combine_chunks())


def _huggingface(class_names: tuple[str, ...]) -> bytes:
    """Let `datasets.load_dataset("parquet")` name the classes."""
    features = {
        "image": {"dtype": "binary", "_type": "Value"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
    }
    return json.dumps({"info": {"features": features}}).encode()
