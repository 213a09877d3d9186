"""Write the decoded rows of two archives as one Parquet file: all of them, or those of a part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from storage.datasets.catalog import Dataset
from storage.files import digest_of
from storage.formats import chunks, idx, parquet
from storage.records import Archive, FolderEntry, Split, SplitName
from storage.runtime import cancellation
from storage.runtime.prefetch import prefetch
from tasks.decoding.reading import (
    NO_CLASS,
    agreed_rows,
    class_labels,
    rows_at_once,
    sets_labels_aside,
    upright,
)

Blocks = Iterable[tuple[np.ndarray, np.ndarray]]
"""Upright images, uint8 of shape (n, height, width), and their classes, uint8 of shape (n,)."""


class TooManyRows(Exception):
    """Two archives have more rows than may be in one file. Never shown to people."""

    def __init__(self, rows: int) -> None:
        super().__init__(f"{rows:,} rows")
        self.rows = rows


def write_split(
    dataset: Dataset, name: SplitName, images: Archive, labels: Archive, folder: Path, most: int | None = None
) -> Split:
    """Write `<folder>/<name>.parquet`, block by block: memory does not grow with the number of rows.

    Args:
        most: the most rows of a file; None: any number.

    Raises:
        FormatError: an archive is not a complete IDX file of the declared type, shape and number of rows.
        TooManyRows: there are more than `most`; nothing was written.
        Cancelled: the run is being ended.
    """
    if most is not None and all(chunks.are_noted(archive.entry) for archive in (images, labels)):
        # Large ones: to look at their headers, those that are elsewhere are not fetched as a whole.
        _check_number(agreed_rows(dataset, name, rows_of(dataset, images), rows_of(dataset, labels)), most)
    split = Split(FolderEntry(folder), name, 0, dataset.image_shape, len(dataset.classes), "", {})
    with opened(dataset, images, labels) as (image_reader, label_reader):
        rows = agreed_rows(dataset, name, image_reader, label_reader)
        _check_number(rows, most)
        at_once = rows_at_once(dataset)
        with parquet.Writer(split.file, dataset.image_shape, dataset.classes) as writer:
            blocks = zip(
                upright(dataset, image_reader.blocks(at_once)),
                class_labels(dataset, label_reader.name, label_reader.blocks(at_once)),
                strict=True,
            )
            # Inflate and hash in another thread, compress and write in this one.
            with closing(prefetch(blocks)) as coming:
                for image_block, label_block in coming:
                    cancellation.check()
                    writer.write(image_block, label_block)
            sources = {images.role: image_reader.payload_sha256, labels.role: label_reader.payload_sha256}
            digest = digest_of([sources, dataset.label_column or 0, *reading_of(dataset)])
            writer.close({"image_shape": dataset.image_shape, "rows": rows, "digest": digest, "sources": sources})
    return Split(FolderEntry(folder), name, rows, dataset.image_shape, len(dataset.classes), digest, sources)


def write_part(dataset: Dataset, name: SplitName, blocks: Blocks, folder: Path) -> Split:
    """Write `<folder>/<name>.parquet` with some of the rows of two archives.

    Its digest is that of the decoded pixels and classes, however they are compressed or read. It names no sources: an
    archive is the source of several parts.

    Raises:
        Exception: what `blocks` raises.
        Cancelled: the run is being ended.
    """
    split = Split(FolderEntry(folder), name, 0, dataset.image_shape, len(dataset.classes), "", {})
    pixels, classes, rows = hashlib.sha256(), hashlib.sha256(), 0
    with parquet.Writer(split.file, dataset.image_shape, dataset.classes) as writer:
        for image_block, label_block in blocks:
            cancellation.check()
            pixels.update(np.ascontiguousarray(image_block).data)
            classes.update(label_block.data)
            rows += len(label_block)
            writer.write(image_block, label_block)
        digest = digest_of([pixels.hexdigest(), classes.hexdigest(), dataset.label_column or 0, *reading_of(dataset)])
        writer.close({"image_shape": dataset.image_shape, "rows": rows, "digest": digest})
    return Split(FolderEntry(folder), name, rows, dataset.image_shape, len(dataset.classes), digest, {})


def reading_of(dataset: Dataset) -> list[Any]:
    """Return the part of a split's digest due to how archives are read: nothing if unused, as in older digests."""
    labels: list[Any] = [list(dataset.labels)] if dataset.labels else []
    labels += [f"no class is {NO_CLASS}"] if sets_labels_aside(dataset) else []
    return [*labels, "transpose"] if dataset.transpose else labels


@contextmanager
def opened(dataset: Dataset, images: Archive, labels: Archive) -> Iterator[tuple[idx.Reader, idx.Reader]]:
    """Open two archives, to be read from front to back.

    Raises:
        FormatError: one has no header of an IDX file.
    """
    with ExitStack() as stack:
        yield (
            stack.enter_context(idx.Reader(images.file, _named(dataset, images))),
            stack.enter_context(idx.Reader(labels.file, _named(dataset, labels))),
        )


def rows_of(dataset: Dataset, archive: Archive) -> idx.Rows:
    """Return the rows of an archive that is not compressed, to be read by themselves.

    Each chunk that is read is checked against the digest that was noted when the archive was fetched and verified.

    Raises:
        FormatError: it is not a complete IDX file, or is compressed.
        DamagedEntry: a chunk is not what was fetched.
    """
    return idx.Rows(chunks.reader(archive.entry, archive.file_name), archive.size_bytes, _named(dataset, archive))


def is_compressed(archive: Archive) -> bool:
    """Return whether the rows of an archive can only be read from its start."""
    # Chunks are noted of plain archives only; one that is elsewhere is not fetched as a whole to tell.
    return not chunks.are_noted(archive.entry) and idx.is_compressed(archive.file)


def file_name(dataset: Dataset, archive: Archive) -> str:
    """Return the name that people know the file of an archive by: that at its source, or in the manifest.

    In the store, the file may be that of another archive with the same content, or have lost a suffix `.gz` that was
    wrong.

    Args:
        dataset: with the archive among its own.
    """
    declared = next((spec.file for spec in dataset.archives_of(archive.role)), archive.file_name)
    found = archive.source.rpartition("/")[2]
    return found if found.removesuffix(".gz") == declared.removesuffix(".gz") else declared


def _named(dataset: Dataset, archive: Archive) -> str:
    return f"{dataset.name}: {file_name(dataset, archive)}"


def _check_number(rows: int, most: int | None) -> None:
    if most is not None and rows > most:
        raise TooManyRows(rows)
