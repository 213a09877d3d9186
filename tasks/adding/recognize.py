"""Tell what a source is by looking at it: at the first bytes of a file, and at the names in a folder."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from storage.errors import ConfigError, FormatError
from storage.files import alike, kind_of
from tasks.adding import arrays, columnar, csv_files, idx_files, pictures, tables, unpack
from tasks.adding.batches import Reading, Remarks, Source, refused, shown_of, splits_of

_MATLAB = b"MATLAB 5.0"
_GZIP = b"\x1f\x8b"
_UNPACK = "unpack it, and give what was in it"
_ALONE = (
    (
        (b"\0\0\x08", b"\0\0\x09", b"\0\0\x0b", b"\0\0\x0c"),
        "one IDX file",
        "give the folder with the images and the labels",
    ),
    (
        (b"\x93NUMPY",),
        "one .npy file",
        "give the folder with the images and the labels, such as x_train.npy and y_train.npy",
    ),
    (
        (b"\x89HDF", b"MATLAB 7.3"),
        "an HDF5 file, such as a .mat of version 7.3",
        "save it as .npz, or as a .mat of version 5",
    ),
    (pictures.BEGINNINGS, "one picture", "give the folder with a folder for each class"),
    ((_GZIP,), "a damaged gzip file", "copy the file again"),
    ((b"PK\x03\x04",), "a ZIP archive or .npz that ends early", "copy the file again"),
    ((b"\xff\xff\xff\xff",), "a stream of Arrow, as in Hugging Face's cache", "write it with to_parquet"),
    ((b"\xff\xfe", b"\xfe\xff"), "text in UTF-16", "save it in UTF-8"),
    ((b"\xfd7zXZ\0",), "a file packed by xz", _UNPACK),
    ((b"BZh",), "a file packed by bzip2", _UNPACK),
    ((b"\x28\xb5\x2f\xfd",), "a file packed by zstd", _UNPACK),
    ((b"7z\xbc\xaf",), "a 7z archive", _UNPACK),
    ((b"Rar!",), "a RAR archive", _UNPACK),
)
"""The beginnings of files that are no source by themselves, what they are, and what to do."""
_TABLES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".parquet", ".feather", ".arrow")
_START = 512
_MATCH = "match"
"""A field of `Reading`, for folders and archives."""
_SHOWN = 6
_KINDS = (
    "a folder of pictures with a folder for each class, a CSV or TSV table, a Parquet or Feather file, .npz, .npy, "
    "EMNIST's .mat, IDX files, or a ZIP or tar archive of these"
)


def source(path: Path, scratch: Path, reading: Reading, remarks: Remarks) -> Source:
    """Return what is at a path as a source.

    Args:
        scratch: an empty folder, to unpack archives into.

    Raises:
        ConfigError: there is nothing.
        FormatError: it is nothing that can be read.
    """
    if path.is_dir():
        found = _folder(path, scratch, reading, remarks)
        return replace(found, uses=found.uses | {_MATCH})
    if not path.is_file():
        raise ConfigError(f"expected {_KINDS} at {path}; found {kind_of(path)}{alike(path)}; correct the path")
    return _file(path, scratch, reading, remarks)


def _unpacked(path: Path, scratch: Path, reading: Reading, remarks: Remarks) -> Source:
    folder = unpack.unpack(path, scratch, reading.match)
    # What was unpacked is what the user chose, by the whole paths in the archive.
    if reading.match and not any(folder.iterdir()):
        raise refused(path, f"files with {reading.match!r} in their paths", "none", "correct --match")
    found = _folder(folder, scratch, replace(reading, match=""), remarks)
    return replace(found, uses=found.uses | {_MATCH})


def _file(path: Path, scratch: Path, reading: Reading, remarks: Remarks) -> Source:
    start = _start(path)
    if zipfile.is_zipfile(path):
        names: list[str] = []
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if names and all(name.endswith(".npy") for name in names):
            return arrays.npz_source([path], scratch, reading, remarks)
        return _unpacked(path, scratch, reading, remarks)
    if unpack.is_tar(start):
        return _unpacked(path, scratch, reading, remarks)
    if start.startswith(_MATLAB):
        return arrays.mat_source(path, reading, remarks)
    if start.startswith(columnar.BEGINNINGS):
        return tables.source([(None, columnar.table(path, reading))], reading, remarks)
    if wrong := _alone(start):
        raise refused(path, _KINDS, *wrong)
    return tables.source([(None, csv_files.table(path, reading))], reading, remarks)


def _start(path: Path) -> bytes:
    """Return the first bytes of a file, without its compression."""
    with path.open("rb") as stream:
        start = stream.read(_START)
    if start.startswith(_GZIP):
        with suppress(OSError, EOFError, zlib.error), gzip.open(path) as packed:
            return packed.read(_START)
    return start


def _alone(start: bytes) -> tuple[str, str] | None:
    """Return what a file is that is no source by itself, and what to do; None if it may be a table."""
    if not start:
        return "an empty file", "copy the file again"
    for beginnings, what, remedy in _ALONE:
        if start.startswith(beginnings):
            return what, remedy
    return (f"bytes {start[:4].hex()}", "convert it to one of these") if b"\0" in start else None


def _folder(folder: Path, scratch: Path, reading: Reading, remarks: Remarks) -> Source:
    if idx_files.has_files(folder, reading):
        return idx_files.source(folder, reading, remarks)
    inside = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    if pictures.has_pictures(folder):
        is_around = len(inside) == 1 and pictures.is_around_classes(inside[0])
        return _folder(inside[0], scratch, reading, remarks) if is_around else pictures.source(folder, reading, remarks)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _counts(path, folder, reading)]
    found = [path for path in files if path.name.lower().endswith(_TABLES)]
    if found:
        splits = splits_of([path.relative_to(folder) for path in found], remarks)
        return tables.source(list(zip(splits, _tables(found, reading), strict=True)), reading, remarks)
    if of_numpy := [path for path in files if path.suffix == ".npy"]:
        return arrays.npy_source(folder, of_numpy, reading, remarks)
    if len(packed := [path for path in files if path.suffix == ".npz"]) > 1:
        return arrays.npz_source(packed, scratch, reading, remarks)
    if len(files) == 1:
        return _file(files[0], scratch, reading, remarks)
    if len(inside) == 1:
        return _folder(inside[0], scratch, reading, remarks)
    raise _nothing(folder, reading)


def _nothing(folder: Path, reading: Reading) -> FormatError:
    """Return the error for a folder that has nothing to read."""
    names = sorted(path.name for path in folder.iterdir())
    if any(path.suffix.lower() in pictures.SUFFIXES for path in folder.iterdir()):
        return refused(
            folder, "a folder for each class", shown_of(names), "put each picture into the folder of its class"
        )
    if names and reading.match:
        return refused(folder, f"files with {reading.match!r} in their names", shown_of(names), "correct --match")
    kinds = sorted({path.suffix.lower() for path in folder.rglob("*") if path.is_file() and path.suffix})
    shown = shown_of(names) + (f" with files of the kinds {', '.join(kinds[:_SHOWN])}" if kinds else "")
    remedy = "give the folder or the file that has the images and their classes"
    return refused(folder, _KINDS, shown if names else "an empty folder", remedy)


def _counts(path: Path, folder: Path, reading: Reading) -> bool:
    """Return whether a file is to be looked at: not hidden, and of those that the user chose."""
    place = path.relative_to(folder)
    return reading.match in place.as_posix() and not any(part.startswith(".") for part in place.parts)


def _tables(paths: Sequence[Path], reading: Reading) -> list[tables.Table]:
    found = []
    for path in paths:
        is_columnar = _start(path).startswith(columnar.BEGINNINGS)
        found.append(columnar.table(path, reading) if is_columnar else csv_files.table(path, reading))
    return found
