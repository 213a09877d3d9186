"""Tell what a source is by looking at it: at the first bytes of a file, and at the names in a folder."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from storage.datasets.catalog import one_line
from storage.errors import ConfigError
from storage.files import alike, kind_of
from tasks.adding import arrays, columnar, csv_files, idx_files, pictures, tables, unpack
from tasks.adding.batches import Reading, Remarks, Source, refused, splits_of

_MATLAB = b"MATLAB 5.0"
_HDF5 = b"\x89HDF"
_NUMPY = b"\x93NUMPY"
_GZIP = b"\x1f\x8b"
_TABLES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".parquet", ".feather", ".arrow")
_START = 512
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
        return _folder(path, scratch, reading, remarks)
    if not path.is_file():
        raise ConfigError(f"expected {_KINDS} at {path}; found {kind_of(path)}{alike(path)}; correct the path")
    return _file(path, scratch, reading, remarks)


def _file(path: Path, scratch: Path, reading: Reading, remarks: Remarks) -> Source:
    start = _start(path)
    if zipfile.is_zipfile(path):
        names: list[str] = []
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if names and all(name.endswith(".npy") for name in names):
            return arrays.npz_source([path], scratch, reading, remarks)
        return _folder(unpack.unpack(path, scratch, reading.match), scratch, reading, remarks)
    if unpack.is_tar(start):
        return _folder(unpack.unpack(path, scratch, reading.match), scratch, reading, remarks)
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
    if start.startswith((b"\0\0\x08", b"\0\0\x09", b"\0\0\x0b", b"\0\0\x0c")):
        return "one IDX file", "give the folder with the images and the labels"
    if start.startswith(_NUMPY):
        return "one .npy file", "give the folder with the images and the labels, such as x_train.npy and y_train.npy"
    if start.startswith(_HDF5):
        return "an HDF5 file, such as a .mat of version 7.3", "save it as .npz, or as a .mat of version 5"
    if start.startswith(pictures.BEGINNINGS):
        return "one picture", "give the folder with a folder for each class"
    if start.startswith(_GZIP):
        return "a damaged gzip file", "copy the file again"
    if not start:
        return "an empty file", "copy the file again"
    return (f"bytes {start[:4].hex()}", "convert it to one of these") if b"\0" in start else None


def _folder(folder: Path, scratch: Path, reading: Reading, remarks: Remarks) -> Source:
    if idx_files.has_files(folder, reading):
        return idx_files.source(folder, reading, remarks)
    if pictures.has_pictures(folder):
        return pictures.source(folder, reading, remarks)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _counts(path, folder, reading)]
    found = [path for path in files if path.name.lower().endswith(_TABLES)]
    if found:
        opened = zip(splits_of(found, remarks), _tables(found, reading), strict=True)
        return tables.source(list(opened), reading, remarks)
    if of_numpy := [path for path in files if path.suffix == ".npy"]:
        return arrays.npy_source(folder, of_numpy, reading, remarks)
    if len(packed := [path for path in files if path.suffix == ".npz"]) > 1:
        return arrays.npz_source(packed, scratch, reading, remarks)
    if len(files) == 1:
        return _file(files[0], scratch, reading, remarks)
    inside = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    if len(inside) == 1:
        return _folder(inside[0], scratch, reading, remarks)
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    shown = one_line(f"{', '.join(names[:_SHOWN])}{more}") if names else "an empty folder"
    raise refused(folder, _KINDS, shown, "give the folder or the file that has the images and their classes")


def _counts(path: Path, folder: Path, reading: Reading) -> bool:
    """Return whether a file is to be looked at: not hidden, and of those that the user chose."""
    return reading.match in path.name and not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _tables(paths: Sequence[Path], reading: Reading) -> list[tables.Table]:
    found = []
    for path in paths:
        is_columnar = _start(path).startswith(columnar.BEGINNINGS)
        found.append(columnar.table(path, reading) if is_columnar else csv_files.table(path, reading))
    return found
