"""IDX files as they are published: MNIST's four, EMNIST's transposed ones, QMNIST's with eight columns of labels."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from storage.datasets.own_files import files_of
from storage.formats import idx
from storage.records import SPLITS, SplitName
from tasks.adding import arrays
from tasks.adding.batches import Batch, Reading, Remarks, Source, refused, rows_at_once, shown_of
from tasks.adding.sizing import Sized
from tasks.ui.progress import Progress, advance

_EMNIST = "emnist"
_QMNIST_COLUMNS = 8
"""Class, series, writer, number, NIST's class, index, duplicate, unused (https://arxiv.org/abs/1905.10498)."""
_MAPPING = "*mapping*.txt"
_MAPPING_BYTES = 1 << 16
"""Several times as many as EMNIST's largest one."""


def has_files(folder: Path, reading: Reading) -> bool:
    """Return whether a folder has the images and labels of a split, by their names."""
    return any(_pair(folder, split, reading) for split in SPLITS)


def _pair(folder: Path, split: SplitName, reading: Reading) -> tuple[list[Path], list[Path]] | None:
    images, labels = (
        [path for path in _chosen(folder, split, kind, reading) if _is_idx(path)] for kind in ("images", "labels")
    )
    return (images, labels) if images and labels else None


def _chosen(folder: Path, split: SplitName, kind: str, reading: Reading) -> list[Path]:
    """Return the files that by their names have these images or labels, if the user wants them."""
    return [path for path in files_of(folder, f"{split}-{kind}") if reading.match in path.name]


def _is_idx(path: Path) -> bool:
    """Return whether a file begins as one in IDX, plain or gzip; arrays and tables may have the same names."""
    with path.open("rb") as stream:
        start = stream.read(2)
    if start == b"\x1f\x8b":
        with suppress(OSError, EOFError, zlib.error), gzip.open(path) as packed:
            start = packed.read(2)
    return start == b"\0\0"


def source(folder: Path, reading: Reading, remarks: Remarks) -> Source:
    """Return the IDX files in a folder as a source.

    Raises:
        FormatError: several files could be one of the four, or a file is damaged.
    """
    pairs: dict[SplitName, tuple[Path, Path]] = {}
    for split in SPLITS:
        images, labels = _pair(folder, split, reading) or ([], [])
        if len(images) > 1 or len(labels) > 1:
            raise refused(
                folder,
                f"one file of images and one of labels for {split}",
                ", ".join(path.name for path in (*images, *labels)),
                "choose those of one data set, by a part of their names: --match TEXT",
            )
        if images:
            pairs[split] = images[0], labels[0]
        elif alone := [path for kind in ("images", "labels") for path in _chosen(folder, split, kind, reading)]:
            other = [path for path in alone if not _is_idx(path)]
            actual = f"{other[0].name}, which is not in IDX" if other else f"{alone[0].name} alone"
            remedy = f"add what is missing or fetch it again, or move {(other or alone)[0].name} away"
            raise refused(folder, f"one IDX file of images and one of labels for {split}", actual, remedy)
    if all(images.name.lower().startswith(_EMNIST) for images, _ in pairs.values()):
        reading = arrays.upright(reading, remarks)
    kind = f"IDX files of {' and '.join(pairs)}"
    return Source(kind, _batches(pairs, reading, remarks), _names(folder, reading.match, remarks), uses=arrays.USES)


def _batches(pairs: Mapping[SplitName, tuple[Path, Path]], reading: Reading, remarks: Remarks) -> Iterator[Batch]:
    sized = Sized(reading)
    for split, (images_file, labels_file) in pairs.items():
        with idx.Reader(images_file, str(images_file)) as images, idx.Reader(labels_file, str(labels_file)) as labels:
            rows = images.header.shape[0]
            if rows != labels.header.shape[0]:
                raise refused(
                    images_file,
                    f"as many images as {labels_file.name} has labels",
                    f"{rows:,} and {labels.header.shape[0]:,}",
                    "give the files that belong together",
                )
            column = _column(labels_file, labels.header, reading, remarks)
            done, step = 0, rows_at_once(images.header.row_bytes)
            for pixels, block in zip(images.blocks(step), labels.blocks(step), strict=True):
                table = block.reshape(len(block), -1)
                yield Batch(
                    sized.images(images_file, arrays.grey(images_file, pixels, reading, remarks, done)),
                    arrays.texts(labels_file, table[:, column]),
                    split,
                    arrays.groups_of(labels_file, None, table, reading),
                )
                done += len(block)
                advance(Progress(f"read {split}", done, rows, "images"))


def _column(path: Path, header: idx.Header, reading: Reading, remarks: Remarks) -> int:
    if reading.label_column is None and header.shape[1:] == (_QMNIST_COLUMNS,):
        remarks.add("the labels have QMNIST's 8 columns; column 0 is the class")
        return 0
    return arrays.column_of(path, header.shape, reading)


def _names(folder: Path, match: str, remarks: Remarks) -> dict[str, str]:
    """Return the characters of EMNIST's labels, from its file of them: a label and codes of characters in each line."""
    files = [path for path in sorted(folder.glob(_MAPPING)) if match in path.name and path.is_file()]
    for file in files[:1]:
        with file.open("rb") as stream:
            lines = stream.read(_MAPPING_BYTES).split(b"\n")
        try:
            rows = [[int(word) for word in line.split()] for line in lines if line.split()]
            names = {str(label): "/".join(map(chr, codes)) for label, *codes in rows}
        except (ValueError, OverflowError):
            names = {"": ""}
        if len(files) == 1 and all(name.isprintable() and name for name in names.values()):
            return names
        listed = shown_of([path.name for path in files])
        remarks.add(f"classes have their labels as names, because this is no single file of characters: {listed}")
    return {}
