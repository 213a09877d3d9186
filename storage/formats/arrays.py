"""Named arrays in one `.npz` file: written reproducibly, read without trusting the file.

The format is NumPy's (a ZIP of `.npy` members, readable by `numpy.load`), but members have no timestamps, and
the reader never unpickles, never inflates and never allocates more than the expected arrays need.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from storage.errors import DamagedEntry, made_again
from storage.files import canonical
from storage.runtime.ranged import Ranged, Source

Expected = Mapping[str, tuple[type[np.generic], tuple[int, ...]]]
"""Type and shape of each array, by name."""

_MEMBER_TIME = (1980, 1, 1, 0, 0, 0)
_FOREIGN = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)
"""The errors that `zipfile` raises about damaged or foreign files."""
_HEADER = re.compile(r"\{'descr': '([<>|]\w{1,9})', 'fortran_order': (True|False), 'shape': (\([\d, ]{0,99}\)), \}")
_NPY = b"\x93NUMPY\x01\0"
_SHOWN = 200
"""The most characters of the file's text repeated in a message."""


def write(target: Path | IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` by name; equal arrays give equal bytes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", _MEMBER_TIME)
            with archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)


def read(path: Source, expected: Expected, only: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of `path`, which must be exactly the `expected` ones; read-only.

    Args:
        only: the names of those to read and return; empty for all.

    Raises:
        DamagedEntry: the file cannot be read, an array is missing or not expected, or has another type or shape.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_names(path, archive.namelist(), [f"{name}.npy" for name in expected])
            return {name: _member(path, archive, name, *expected[name]) for name in only or expected}
    except _FOREIGN as error:
        if isinstance(path, Ranged):
            # Its SHA-256 tells whether the file is damaged.
            path.whole()
        raise DamagedEntry(
            f"{path}: expected arrays in NumPy's npz format; {_shown(str(error))}; {made_again(path)}"
        ) from error


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes, in the order of names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        total.update(canonical([name, array.dtype.str, array.shape]))
        total.update(np.asarray(array, order="C").tobytes())
    return total.hexdigest()


def _check_names(path: Source, actual: list[str], expected: list[str]) -> None:
    """Check the names as lists, not sets: no name may appear twice, since readers differ on which they use."""
    if sorted(actual) != sorted(expected):
        expected_text, actual_text = (
            ", ".join(sorted(name.removesuffix(".npy") for name in names)) for names in (expected, actual)
        )
        raise DamagedEntry(
            f"{path}: expected the arrays {expected_text}; found {_shown(actual_text) or 'none'}; {made_again(path)}"
        )


def _member(
    path: Source, archive: zipfile.ZipFile, name: str, kind: type[np.generic], shape: tuple[int, ...]
) -> np.ndarray:
    if archive.getinfo(f"{name}.npy").compress_type != zipfile.ZIP_STORED:
        raise DamagedEntry(f"{path}: expected array {name} stored without compression; {made_again(path)}")
    dtype, sizes = np.dtype(kind), tuple(map(int, shape))
    with archive.open(f"{name}.npy") as stream:
        start = stream.read(len(_NPY) + 2)
        if start[:-2] != _NPY:
            raise ValueError(f"array {name} has another version of the npy format")
        # A Python literal that is compared, never evaluated (numpy.lib.format, "Format Version 1.0").
        header = stream.read(int.from_bytes(start[-2:], "little")).decode("latin-1").strip()
        if header != f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {sizes}, }}":
            raise DamagedEntry(
                f"{path}: expected array {name} of {dtype} and shape {sizes}; found {_described(header)}; "
                f"{made_again(path)}"
            )
        size = math.prod(shape) * dtype.itemsize
        data = stream.read(size)
        # Reading past the end makes the ZIP reader check the CRC.
        if len(data) != size or stream.read(1):
            raise ValueError(f"array {name} is not {size:,} bytes long")
    return np.frombuffer(data, dtype).reshape(shape)


def _described(header: str) -> str:
    match = _HEADER.fullmatch(header)
    if not match:
        return _shown(header)
    return f"{np.dtype(match[1])} and shape {match[3]}{' in Fortran order' if match[2] == 'True' else ''}"


def _shown(text: str) -> str:
    """Return a file's text as one short printable line."""
    return "".join(c if c.isprintable() else "·" for c in text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")
