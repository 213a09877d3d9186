"""Check two archives against the manifest, and turn their rows into upright images and indexes of classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from storage.datasets.catalog import MAX_LABEL_COLUMNS, Dataset
from storage.errors import FormatError
from storage.formats import idx, parquet
from storage.records import SplitName
from storage.words import times

_BLOCK_BYTES = 1 << 26
NO_CLASS = 255
"""The label of a row whose value in the file is that of no class, if such rows are set aside."""
_LABELS_NAMED = 12
_LIKE_LABELS = ", which looks like a label file"


class Headed(Protocol):
    """An archive whose header has been read: `idx.Reader` or `idx.Rows`."""

    @property
    def name(self) -> str: ...
    @property
    def header(self) -> idx.Header: ...


def sets_labels_aside(dataset: Dataset) -> bool:
    """Return whether rows whose label is no class are set aside later, and a number is left to mark them."""
    return "label" in dataset.quarantine.checks and len(dataset.classes) <= NO_CLASS


def rows_at_once(dataset: Dataset) -> int:
    """Return the rows of a block: a row group, or fewer if images are large."""
    return min(parquet.ROW_GROUP, max(1, _BLOCK_BYTES // math.prod(dataset.image_shape)))


def agreed_rows(dataset: Dataset, name: SplitName, images: Headed, labels: Headed) -> int:
    """Return the number of rows of the split, after checking that both headers and the manifest agree on it."""
    _check_images(dataset, images)
    _check_labels(dataset, labels)
    rows, image_rows = labels.header.shape[0], images.header.shape[0]
    if rows != image_rows:
        raise FormatError(
            f"{images.name} and {labels.name}: expected as many labels as images; "
            f"found {image_rows:,} images and {rows:,} labels; give the two files that belong together"
        )
    if dataset.rows.get(name, rows) != rows:
        raise FormatError(
            f"{images.name}: expected {dataset.rows[name]:,} rows for the split {name!r}, as the manifest declares; "
            f"found {rows:,} in the header; give the files of this split (are train and test exchanged?), "
            f"or correct [rows] {name} in {dataset.manifest}"
        )
    return rows


def _check_images(dataset: Dataset, images: Headed) -> None:
    shape, kind = images.header.shape, images.header.dtype
    expected = _stored_shape(dataset)
    if not _has_images_of(shape, expected):
        stored = " with transpose = true" if dataset.transpose else ""
        raise FormatError(
            f"{images.name}: expected images of {times(expected)} pixels, as the manifest declares{stored}; "
            f"found {times(shape)} in the header{_LIKE_LABELS if len(shape) == 1 else ''}; give the archive of the "
            f"images, or correct image_shape in {dataset.manifest}{_or_transpose(dataset, shape)}"
        )
    if kind != np.uint8:
        raise FormatError(
            f"{images.name}: expected pixels of type uint8; found {kind.name} in the header; write the images as uint8"
        )


def _stored_shape(dataset: Dataset) -> tuple[int, int]:
    """Return the rows and columns that an image has in the archive."""
    height, width = dataset.image_shape
    return (width, height) if dataset.transpose else (height, width)


def _has_images_of(shape: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Return whether the header is that of grey images of this size, with a dimension for their one channel or not."""
    return shape[1:] in (size, (*size, 1), (1, *size))


def _or_transpose(dataset: Dataset, shape: tuple[int, ...]) -> str:
    """Return a remedy for images that would fit with rows and columns swapped; otherwise an empty string."""
    rows, columns = _stored_shape(dataset)
    if not _has_images_of(shape, (columns, rows)):
        return ""
    return ", or remove transpose there" if dataset.transpose else ", or set transpose = true there"


def upright(dataset: Dataset, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield blocks of images as upright ones, uint8 of shape (n, height, width)."""
    for block in blocks:
        images = block.reshape(-1, *_stored_shape(dataset))
        yield np.ascontiguousarray(images.swapaxes(1, 2)) if dataset.transpose else images


def _check_labels(dataset: Dataset, labels: Headed) -> None:
    shape, kind = labels.header.shape, labels.header.dtype
    if kind.kind not in "ui":
        raise FormatError(
            f"{labels.name}: expected labels of a whole-number type; found {kind.name} in the header; "
            "write the labels as uint8"
        )
    if len(shape) > 2:
        hint = ", which looks like an image file" if len(shape) == 3 else ""
        raise FormatError(
            f"{labels.name}: expected one label per row; found {times(shape)} in the header{hint}; "
            "give the archive of the labels"
        )
    if len(shape) == 2:
        _check_columns(dataset, labels)


def _check_columns(dataset: Dataset, labels: Headed) -> None:
    """Accept labels with several columns, such as QMNIST's, only if the manifest says which column is the class."""
    shape, column = times(labels.header.shape), dataset.label_column
    if column is None:
        raise FormatError(
            f"{labels.name}: expected one label per row; found {shape} in the header, as QMNIST has it; "
            f"declare in {dataset.manifest} which column is the class, such as label_column = 0"
        )
    if not column < labels.header.shape[1] <= MAX_LABEL_COLUMNS:
        raise FormatError(
            f"{labels.name}: expected rows of {column + 1:,} to {MAX_LABEL_COLUMNS:,} columns, because the manifest "
            f"declares label_column = {column}; found {shape} in the header; correct label_column in "
            f"{dataset.manifest}, or give the archive that it describes"
        )


def class_labels(dataset: Dataset, name: str, blocks: Iterable[np.ndarray], start: int = 0) -> Iterator[np.ndarray]:
    """Yield blocks of labels as uint8 of shape (n,): the index of the class, or 0 to 255 as in the file.

    A value taken from the file as it is may not be a class; the data checks report that, for all rows together. If such
    rows are set aside, all other values are `NO_CLASS`.

    Args:
        name: of the archive, for messages.
        start: number of the first row in it, counted from 0.

    Raises:
        FormatError: a value is none that the manifest declares.
    """
    values = np.array(dataset.labels or range(256), np.int64)
    order = np.argsort(values)
    for block in blocks:
        column = block if block.ndim == 1 else block[:, dataset.label_column]
        index = order[np.searchsorted(values, column, sorter=order).clip(max=len(values) - 1)]
        outside = np.flatnonzero(values[index] != column)
        if sets_labels_aside(dataset):
            index[outside] = NO_CLASS
        elif len(outside):
            expected = _listed(dataset.labels) if dataset.labels else f"from 0 to {len(dataset.classes) - 1}"
            raise FormatError(
                f"{name}: expected labels {expected}; found {column[outside[0]]} at row {start + outside[0]:,}; "
                f"correct the labels, or declare the value of each class as labels = […] in {dataset.manifest} "
                "(label_base = N for N, N+1, …)"
            )
        yield index.astype(np.uint8)
        start += len(block)


def _listed(values: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, values[:_LABELS_NAMED]))
    return f"{shown}, …" if len(values) > _LABELS_NAMED else shown
