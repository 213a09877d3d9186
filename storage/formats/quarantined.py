"""The rows that were set aside, as Parquet with a row for each: where it is from, its picture, and what is wrong.

Pictures are PNG files in the form of Hugging Face data sets, so that viewers show them and `idxflow dataset add` reads
them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import DamagedEntry, made_again
from storage.formats import parquet, split_rows
from storage.records import Split

FILE = "quarantine.parquet"
"""The name of such a file in an entry."""

_COLUMNS = pa.schema(
    {
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "split": pa.string(),
        "row": pa.int64(),
        "label": pa.int64(),
        "class": pa.string(),
        "reasons": pa.string(),
        "digest": pa.string(),
    },
    {b"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}}).encode()},
)
_BATCH = 1024
"""Rows read at a time."""


@dataclass(frozen=True)
class SetAside:
    """One row that was set aside."""

    split: str
    row: int
    """Its number in the archive, from 0."""
    label: int
    """Number of its class, from 0; 255 or another number that is no class if its label is none."""
    class_name: str
    """Empty if its label is no class."""
    reasons: tuple[str, ...]
    """The checks that it fails, such as `duplicate`."""
    digest: str
    """Of its pixels and its label, 32 hexadecimal digits: what a release names."""


def row_digest(image: np.ndarray, label: int) -> str:
    """Return the digest of a row: BLAKE2b (128 bits) of its pixels and its label.

    Args:
        image: uint8, any shape.
        label: 0-255.
    """
    return hashlib.blake2b(np.ascontiguousarray(image).tobytes() + bytes([label]), digest_size=16).hexdigest()


class Writer:
    """Writes the rows that are set aside, block by block."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, _COLUMNS, compression="zstd", write_page_checksum=True)

    def write(self, rows: Sequence[SetAside], pictures: Sequence[bytes]) -> None:
        """Append rows, each with its picture as PNG."""
        if not rows:
            return
        columns = {
            "image": [
                {"bytes": picture, "path": f"{row.split}-{row.row}.png"}
                for row, picture in zip(rows, pictures, strict=True)
            ],
            "split": [row.split for row in rows],
            "row": [row.row for row in rows],
            "label": [row.label for row in rows],
            "class": [row.class_name for row in rows],
            "reasons": [", ".join(row.reasons) for row in rows],
            "digest": [row.digest for row in rows],
        }
        self._writer.write_table(pa.table([pa.array(columns[f.name], f.type) for f in _COLUMNS], _COLUMNS))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


def read(path: Path) -> Iterator[tuple[SetAside, bytes]]:
    """Yield the rows that were set aside, each with its picture as PNG.

    Raises:
        DamagedEntry: the file is not one that `Writer` has written.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(_BATCH):
                for values in batch.to_pylist():
                    reasons = tuple(values["reasons"].split(", "))
                    named = (values["split"], values["row"], values["label"], values["class"])
                    yield SetAside(*named, reasons, values["digest"]), values["image"]["bytes"]
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise DamagedEntry(
            f"{path}: expected the rows in quarantine as Parquet; {error}; {made_again(path)}"
        ) from error


def archive_rows(split: Split, rows: Iterable[int]) -> list[int]:
    """Return the numbers in the archive of rows of a split from which others may have been set aside.

    Args:
        rows: numbers in the split, from 0.

    Raises:
        DamagedEntry: the split's file cannot be read.
    """
    if not split.set_aside:
        return [*rows]
    aside = _set_aside(split)
    # As many rows of the split are before each row that was set aside.
    before = aside - np.arange(len(aside))
    return [row + int(np.searchsorted(before, row, side="right")) for row in rows]


def rows_of(split: Split, numbers: Iterable[int]) -> list[int]:
    """Return the rows of a split that have these numbers in the archive: the reverse of `archive_rows`.

    Raises:
        DamagedEntry: the split's file cannot be read.
    """
    if not split.set_aside:
        return [*numbers]
    aside = _set_aside(split)
    return [number - int(np.searchsorted(aside, number)) for number in numbers]


def _set_aside(split: Split) -> np.ndarray:
    """Return the numbers in the archives of the rows that were set aside, int64, ascending."""
    found, start = [np.empty(0, np.int64)], 0
    for part in split_rows.parts(split):
        if part.set_aside:
            found.append(start + np.array(parquet.metadata(part.source)["set_aside"]))
        start += part.rows + part.set_aside
    return np.concatenate(found)
