"""Named arrays in one `.npz` file, written to the same bytes every time and read without trust.

The format is NumPy's (a ZIP of `.npy` members, `numpy.load` reads it), but members carry no time, and
the reader never unpickles, never inflates and never allocates more than what it was told to expect.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from storage.errors import DamagedEntry
from storage.files import canonical

Expected = Mapping[str, tuple[type[np.generic], tuple[int, ...]]]
"""Type and shape of each array, by name."""

_MEMBER_TIME = (1980, 1, 1, 0, 0, 0)


def write(target: Path | IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` by name; equal arrays give equal bytes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", _MEMBER_TIME)
            with archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)


def read(path: Path, expected: Expected) -> dict[str, np.ndarray]:
    """Return the arrays of `path`, which must be exactly the `expected` ones; read-only.

    Raises:
        DamagedEntry: the file cannot be read, an array is missing or not expected, or has another type or shape.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_names(path, {member.removesuffix(".npy") for member in archive.namelist()}, set(expected))
            return {name: _member(path, archive, name, *expected[name]) for name in expected}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DamagedEntry(f"{path}: expected arrays in NumPy's npz format; {error}; make the step again") from error


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes, in the order of names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        total.update(canonical([name, array.dtype.str, array.shape]))
        total.update(np.asarray(array, order="C").tobytes())
    return total.hexdigest()


def _check_names(path: Path, found: set[str], expected: set[str]) -> None:
    if found != expected:
        raise DamagedEntry(
            f"{path}: expected the arrays {', '.join(sorted(expected))}; found {', '.join(sorted(found)) or 'none'}; "
            "make the step again"
        )


def _member(
    path: Path, archive: zipfile.ZipFile, name: str, kind: type[np.generic], shape: tuple[int, ...]
) -> np.ndarray:
    if archive.getinfo(f"{name}.npy").compress_type != zipfile.ZIP_STORED:
        raise DamagedEntry(f"{path}: expected array {name} stored without compression; make the step again")
    with archive.open(f"{name}.npy") as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"array {name} has another version of the npy format")
        found_shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        if (found_shape, dtype, fortran and len(shape) > 1) != (shape, np.dtype(kind), False):
            raise DamagedEntry(
                f"{path}: expected array {name} of {np.dtype(kind)} and shape {shape}; "
                f"found {dtype} and shape {found_shape}; make the step again"
            )
        size = math.prod(shape) * dtype.itemsize
        data = stream.read(size)
        # Reading past the end has the ZIP reader compare its CRC.
        if len(data) != size or stream.read(1):
            raise ValueError(f"array {name} is not {size:,} bytes long")
    return np.frombuffer(data, dtype).reshape(shape)
