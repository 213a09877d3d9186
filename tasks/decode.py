"""Turn an image archive and a label archive into one Parquet split."""

from __future__ import annotations

import hashlib
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import idx, parquet, source
from storage.catalog import Dataset
from storage.errors import FormatError
from storage.files import canonical
from storage.records import Archive, Done, Split, SplitName
from storage.store import Plan, Store
from tasks.steps import log_step

_log = logging.getLogger(__name__)


@task(task_run_name="decode-{name}", cache_policy=NO_CACHE)
def decode(store: Store, dataset: Dataset, name: SplitName, images: Archive, labels: Archive) -> Done[Split]:
    """Decode one split of `dataset` from its two archives, or find it decoded.

    Raises:
        FormatError: an archive is not a complete IDX file of the declared type, shape and number of rows.
    """
    plan = Plan(
        dataset.name,
        "decode",
        name,
        inputs={images.role: images.sha256, labels.role: labels.sha256},
        parameters=_declared(dataset, name),
        code=source.digests(__name__),
    )
    done = store.once(plan, Split, lambda folder: write_split(dataset, name, images, labels, folder), _line)
    log_step(_log, done.step)
    return done


def write_split(dataset: Dataset, name: SplitName, images: Archive, labels: Archive, folder: Path) -> Split:
    """Write `<folder>/<name>.parquet`, block by block: memory does not grow with the number of rows.

    Raises:
        FormatError: see `decode`.
    """
    split = Split(folder, name, 0, dataset.image_shape, len(dataset.classes), "", {})
    with ExitStack() as stack:
        image_reader = stack.enter_context(idx.Reader(images.file, f"{dataset.name}: {images.file_name}"))
        label_reader = stack.enter_context(idx.Reader(labels.file, f"{dataset.name}: {labels.file_name}"))
        rows = _agreed_rows(dataset, name, image_reader, label_reader)
        writer = stack.enter_context(parquet.Writer(split.file, dataset.image_shape, dataset.classes))
        blocks = zip(
            image_reader.blocks(parquet.ROW_GROUP),
            _class_labels(dataset, label_reader, parquet.ROW_GROUP),
            strict=True,
        )
        for image_block, label_block in blocks:
            writer.write(image_block, label_block)
        sources = {images.role: image_reader.payload_sha256, labels.role: label_reader.payload_sha256}
        digest = hashlib.sha256(canonical([sources, dataset.label_column])).hexdigest()
        writer.close({"image_shape": dataset.image_shape, "rows": rows, "digest": digest, "sources": sources})
    return Split(folder, name, rows, dataset.image_shape, len(dataset.classes), digest, sources)


def _declared(dataset: Dataset, name: SplitName) -> dict[str, Any]:
    return {
        "image_shape": list(dataset.image_shape),
        "classes": list(dataset.classes),
        "rows": dataset.rows.get(name),
        "label_column": dataset.label_column,
    }


def _agreed_rows(dataset: Dataset, name: SplitName, images: idx.Reader, labels: idx.Reader) -> int:
    """Return the rows of the split, once both headers and the manifest agree on it."""
    shape, kind = images.header.shape, images.header.dtype
    if len(shape) != 3 or shape[1:] != dataset.image_shape:
        hint = "; this looks like a label file" if len(shape) == 1 else ""
        raise FormatError(
            f"{images.name}: expected images of {_times(dataset.image_shape)} pixels, as the manifest declares; "
            f"the header declares {_times(shape)}{hint}"
        )
    if kind != np.uint8:
        raise FormatError(f"{images.name}: expected pixels of type uint8; the header declares {kind.name}")
    _check_labels(dataset, labels)
    rows = labels.header.shape[0]
    if rows != shape[0]:
        raise FormatError(
            f"{images.name} and {labels.name}: expected as many labels as images; "
            f"found {shape[0]:,} images and {rows:,} labels"
        )
    if dataset.rows.get(name, rows) != rows:
        raise FormatError(
            f"{images.name}: expected {dataset.rows[name]:,} rows for the split {name!r}, as the manifest declares; "
            f"the header declares {rows:,}; are train and test exchanged?"
        )
    return rows


def _check_labels(dataset: Dataset, labels: idx.Reader) -> None:
    shape, kind = labels.header.shape, labels.header.dtype
    if kind.kind not in "ui":
        raise FormatError(f"{labels.name}: expected labels of a whole-number type; the header declares {kind.name}")
    if len(shape) > 2 or (len(shape) == 2 and dataset.label_column >= shape[1]):
        hint = "; this looks like an image file" if len(shape) == 3 else ""
        raise FormatError(
            f"{labels.name}: expected one label per row, or rows of at least {dataset.label_column + 1} columns; "
            f"the header declares {_times(shape)}{hint}"
        )


def _class_labels(dataset: Dataset, reader: idx.Reader, rows: int) -> Any:
    """Yield blocks of labels as uint8 of shape (n,), with values 0 to 255."""
    start = 0
    for block in reader.blocks(rows):
        column = block if block.ndim == 1 else block[:, dataset.label_column]
        outside = np.flatnonzero((column < 0) | (column > 255))
        if len(outside):
            raise FormatError(
                f"{reader.name}: expected labels from 0 to {len(dataset.classes) - 1}; "
                f"row {start + outside[0]} is {column[outside[0]]}"
            )
        yield column.astype(np.uint8)
        start += len(block)


def _line(split: Split) -> str:
    return f"{split.rows:,} images of {_times(split.image_shape)}"


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(f"{n:,}" for n in shape)
