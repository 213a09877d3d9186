"""Parquet and Feather files, read in parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.adding.arrays import USES
from tasks.adding.batches import IMAGES, Reading, column, refused, rows_at_once
from tasks.adding.tables import AGAIN, Layout, Table, is_nested, label_by_name

_IMAGES_AT_ONCE = 64
_NUMBER_BYTES = 8
"""Of the largest type of numbers."""
BEGINNINGS = (b"PAR1", b"ARROW1")
"""The first bytes of the files; Feather's are those of an Arrow file."""


def table(path: Path, reading: Reading) -> Table:
    """Return the table in a file.

    Raises:
        FormatError: it is damaged, or a column that the user named is not there.
    """
    try:
        with path.open("rb") as stream:
            is_parquet = stream.read(4) == BEGINNINGS[0]
        schema = pq.read_schema(path) if is_parquet else _feather_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    layout = _layout(path, schema, reading)
    _check_names(path, schema, layout)

    def rows() -> Iterator[pa.RecordBatch]:
        names = [schema.names[place] for place in layout.used] if layout else []
        try:
            step = _rows_at_once(layout) if layout else 1
            yield from _parquet(path, names, step) if is_parquet else _feather(path, names, step)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from error

    form = "a Parquet file" if is_parquet else "a Feather file"
    return Table(path, form, schema.names, layout, rows, _class_names(schema, layout), _uses(schema, layout))


def _check_names(path: Path, schema: pa.Schema, layout: Layout | None) -> None:
    """Refuse columns of one name: Arrow reads columns by their names."""
    used = [schema.names[place] for place in layout.used] if layout else []
    counts = Counter(schema.names)
    if twice := next((name for name in used if counts[name] > 1), None):
        raise refused(path, "columns of different names", f"{counts[twice]} named {twice!r}", AGAIN)


def _uses(schema: pa.Schema, layout: Layout | None) -> frozenset[str]:
    """Return what of `Reading` changes what is read: files of pictures may be broken, and their white is known."""
    is_file = layout and layout.image is not None and not is_nested(schema.field(layout.image).type)
    return USES - {"white"} | {"skip_bad"} if is_file else USES


def _damaged(path: Path, error: Exception) -> Exception:
    return refused(path, "an undamaged Parquet or Feather file", str(error).partition("\n")[0], AGAIN)


def _rows_at_once(layout: Layout) -> int:
    """Return how many rows to have in memory; a column of images does not say how large these are."""
    return _IMAGES_AT_ONCE if layout.image is not None else rows_at_once(_NUMBER_BYTES * len(layout.pixels))


def _parquet(path: Path, names: list[str], step: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        for rows in file.iter_batches(step, columns=names):
            yield rows.select(names)


def _feather_schema(path: Path) -> pa.Schema:
    with pa.memory_map(str(path)) as mapped:
        return pa.ipc.open_file(mapped).schema


def _feather(path: Path, names: list[str], step: int) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as file:
        for number in range(file.num_record_batches):
            rows = file.get_batch(number).select(names)
            for start in range(0, rows.num_rows, step):
                yield rows.slice(start, step)


def _layout(path: Path, schema: pa.Schema, reading: Reading) -> Layout | None:
    label = label_by_name(path, schema.names, reading)
    if label is None:
        return None
    group = column(path, schema.names, reading.group_by) if reading.group_by else None
    rest = [place for place in range(len(schema.names)) if place not in (label, group)]
    images = [place for place in rest if _holds_images(schema.field(place).type)]
    usual = [place for place in images if schema.names[place].lower() in IMAGES]
    if images:
        return Layout(label, image=(usual or images)[0], group=group)
    return Layout(label, tuple(place for place in rest if _is_number(schema.field(place).type)), group=group)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _holds_images(kind: pa.DataType) -> bool:
    is_picture = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return is_nested(kind) or is_picture or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _class_names(schema: pa.Schema, layout: Layout | None) -> dict[str, str]:
    """Return the names of classes that Hugging Face's `datasets` writes into the schema of its Parquet files."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[schema.names[layout.label]]["names"] if layout else []
        return {str(number): str(name) for number, name in enumerate(names)}
    except (KeyError, TypeError, ValueError):
        return {}
