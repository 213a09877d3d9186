"""Read and write IDX, the format of the MNIST archives, plain or gzip-compressed.

An IDX file is: two zero bytes, one byte for the element type, one byte for the number of dimensions,
each dimension as a big-endian 32-bit integer, then the elements in row-major order, big-endian
(http://yann.lecun.com/exdb/mnist/, section "The IDX file format"; gzip: RFC 1952).

The reader is strict. It checks the header before it allocates anything, never inflates more than the header
declares, and accepts a file only if its data ends exactly there, with correct CRC and length. A gzip file may
have several members, as written by `cat a.gz b.gz` and parallel compressors (RFC 1952, 2.2).
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from isal import isal_zlib

from storage.errors import FormatError
from storage.runtime.prefetch import prefetch

TYPES: dict[int, np.dtype] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
MAX_DIMENSIONS = 8
MAX_PAYLOAD_BYTES = 1 << 40

_GZIP_MAGIC = b"\x1f\x8b"
_FLAGS_AT = 3
_RESERVED_FLAGS = 0xE0
_TAR_MAGIC = b"ustar"
_TAR_MAGIC_AT = 257
_ALL = 1 << 32
"""More rows than a header can declare."""
_START = _TAR_MAGIC_AT + len(_TAR_MAGIC)
"""Bytes by which the kind of a file is told; a header has fewer."""
_UNPACK = "unpack it, and give the IDX file in it"
_OTHERS = {
    b"PK": ("a ZIP file", _UNPACK),
    b"7z\xbc\xaf'\x1c": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"\xfd7zXZ\0": ("xz", "unpack it: xz -dc OLD > NEW"),
    b"BZh": ("bzip2", "unpack it: bzip2 -dc OLD > NEW"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unpack it: zstd -dc OLD > NEW"),
    _GZIP_MAGIC: ("gzip inside gzip", "unpack it once: gunzip -c OLD > NEW"),
}
"""The first bytes of other formats, with the name of the format and a remedy."""
_PLAIN_ERROR = re.compile(r"^Error -?\d+ ")
_CHUNK = 1 << 18
_SHOWN = 20
_AGAIN = "fetch or copy the file again"
_FIT = "fetch or copy the file again, or correct its header"
_PACK_AGAIN = "fetch or copy the file again, or unpack it and pack it again: gunzip -c OLD | gzip -n > NEW"


@dataclass(frozen=True)
class Header:
    """Element type and shape as the file declares them."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one element of the first dimension."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def data_bytes(self) -> int:
        return self.shape[0] * self.row_bytes

    def encode(self) -> bytes:
        code = next(c for c, t in TYPES.items() if t == self.dtype.newbyteorder(">"))
        return struct.pack(f">BBBB{len(self.shape)}I", 0, 0, code, len(self.shape), *self.shape)


class Reader:
    """One IDX file, read once from front to back.

        with Reader(path) as reader:
            for block in reader.blocks(8192):
                ...

    If the loop ends without an error, the file is complete and undamaged.

    Raises:
        FormatError: the file is not a complete, undamaged IDX file.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name or path.name
        self._stream = path.open("rb")
        try:
            self._is_small = self._stream.seek(0, os.SEEK_END) <= _CHUNK
            self._stream.seek(0)
            self._input = _open_input(self._stream, self.name)
            self.header, encoded = _read_header(self._input, self.name)
            self._hash = hashlib.sha256(encoded)
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def payload_sha256(self) -> str:
        """Digest of header and data, decompressed; complete once `blocks` has ended."""
        return self._hash.hexdigest()

    def blocks(self, rows: int, part: int = _ALL) -> Iterator[np.ndarray]:
        """Yield the data as read-only arrays of at most `rows` rows, in the file's (big-endian) type.

        Args:
            rows: of a block.
            part: no block has rows of two parts, if parts of so many rows are cut from the start of the file.
        """
        taken, rest = self._taken(rows, part), self.header.shape[1:]
        # Another thread inflates while this one hashes; a small file is not worth starting a thread.
        for data in taken if self._is_small else prefetch(taken):
            self._hash.update(data)
            yield np.frombuffer(data, self.header.dtype).reshape(-1, *rest)
        self._input.finish(self.header)

    def read(self) -> np.ndarray:
        """Return all rows in the machine's byte order."""
        whole = np.concatenate(list(self.blocks(8192)))
        return whole.astype(whole.dtype.newbyteorder("="), copy=False)

    def _taken(self, rows: int, part: int) -> Iterator[bytes]:
        """Yield the bytes of at most `rows` rows at a time."""
        row_bytes = self.header.row_bytes
        for start, stop in cuts(self.header.shape[0], rows, part):
            yield self._take((stop - start) * row_bytes, start * row_bytes)

    def _take(self, count: int, start: int) -> bytes:
        data = self._input.read(count)
        if len(data) < count:
            raise _cut_short(self.name, self.header, start + len(data))
        return data


class Rows:
    """The rows of an IDX file that is not compressed, read in any order: by arithmetic, as each has the same size.

    The header is checked, and that the file ends exactly where the data does. The bytes are whatever `read` returns, so
    that is what has to protect them.

    Raises:
        FormatError: the file is not a complete IDX file, or is compressed.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, name: str) -> None:
        """Read the header.

        Args:
            read: returns the bytes of the file from a first position up to but not including a second one.
            size: of the file in bytes.
            name: of the file, for messages.
        """
        self.name, self._read = name, read
        self.header, encoded = _read_header(_Plain(io.BytesIO(read(0, min(size, _START))), name), name)
        self._first = len(encoded)
        if size < self._first + self.header.data_bytes:
            raise _cut_short(name, self.header, size - self._first)
        if size > self._first + self.header.data_bytes:
            raise _too_long(name, self.header)

    def blocks(self, first: int, last: int, rows: int) -> Iterator[np.ndarray]:
        """Yield rows as read-only arrays of at most `rows` rows, in the file's (big-endian) type.

        Args:
            first: number of the first row, counted from 0.
            last: number of the row after the last.
            rows: of a block.
        """
        kind, rest, row_bytes = self.header.dtype, self.header.shape[1:], self.header.row_bytes
        for start, stop in cuts(last - first, rows):
            data = self._read(*(self._first + (first + row) * row_bytes for row in (start, stop)))
            yield np.frombuffer(data, kind).reshape(-1, *rest)


def cuts(total: int, rows: int, part: int = _ALL) -> Iterator[tuple[int, int]]:
    """Yield the first row, and the one after the last, of blocks of at most `rows` rows out of `total`.

    Args:
        part: no block has rows of two parts, if parts of so many rows are cut from the start.
    """
    for first in range(0, total, part):
        last = min(first + part, total)
        for start in range(first, last, rows):
            yield start, min(start + rows, last)


def is_compressed(path: Path) -> bool:
    """Return whether a file is gzip."""
    with path.open("rb") as stream:
        return stream.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC


def rows_of(stream: BinaryIO, name: str = "") -> int:
    """Return how many rows the header of an IDX file declares, or 0 if the file is compressed: that takes more to tell.

    Args:
        stream: at the start of the file; its first bytes are read.
        name: of the file, for messages.

    Raises:
        FormatError: the file has no header of IDX.
    """
    start = stream.read(_START)
    if start.startswith(_GZIP_MAGIC):
        return 0
    return _read_header(_Plain(io.BytesIO(start), name), name)[0].shape[0]


def read(path: Path) -> np.ndarray:
    """Read a whole IDX file, plain or gzip, into an array in the machine's byte order.

    Raises:
        FormatError: see `Reader`.
    """
    with Reader(path) as reader:
        return reader.read()


def encode(array: np.ndarray) -> bytes:
    """Return `array` (1 to 8 dimensions, one of the six IDX types) as the bytes of an IDX file.

    Raises:
        ValueError: IDX has no such type or number of dimensions.
    """
    big = array.dtype.newbyteorder(">")
    if big not in TYPES.values() or not 1 <= array.ndim <= MAX_DIMENSIONS:
        raise ValueError(f"IDX cannot hold {array.ndim} dimensions of {array.dtype}")
    return Header(big, array.shape).encode() + np.ascontiguousarray(array, big).tobytes()


def _read_header(source: _Plain | _Gzip, name: str) -> tuple[Header, bytes]:
    """Return the header, and its bytes, of an IDX file of which nothing has been read yet."""
    magic = _header_bytes(source, name, 4, "the 4-byte magic number")
    zeros, code, dimensions = magic[:2], magic[2], magic[3]
    if zeros != b"\0\0" or code not in TYPES:
        codes = ", ".join(f"{c:02x}" for c in TYPES)
        expected = f"an IDX magic number 0000TTNN with a type TT of {codes}"
        start = magic + source.read(_START - len(magic))
        guess, remedy = _guess(start)
        raise _refused(name, expected, f"{magic.hex()}{_text(start[:_SHOWN])} ({guess})", remedy)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise _refused(name, f"1 to {MAX_DIMENSIONS} dimensions", f"{dimensions} in the header", _FIT)
    sizes = _header_bytes(source, name, 4 * dimensions, f"{dimensions} dimensions of 4 bytes")
    header = Header(TYPES[code], struct.unpack(f">{dimensions}I", sizes))
    if 0 in header.shape:
        raise _refused(name, "at least one element", f"the shape {header.shape} in the header", _FIT)
    if header.data_bytes > MAX_PAYLOAD_BYTES:
        actual = f"{header.shape} of {header.dtype.name} in the header, {header.data_bytes:,} bytes"
        expected = f"at most {MAX_PAYLOAD_BYTES:,} bytes of data"
        raise _refused(name, expected, actual, _swapped(header) or _FIT)
    return header, magic + sizes


def _header_bytes(source: _Plain | _Gzip, name: str, count: int, what: str) -> bytes:
    data = source.read(count)
    if len(data) < count:
        raise _refused(name, what, f"the end of the file after {len(data)} bytes of it", _AGAIN)
    return data


class _Plain:
    """The bytes of an uncompressed IDX file."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name

    def read(self, count: int) -> bytes:
        # Read in blocks, so that a header with a false size cannot cause a huge allocation.
        parts, missing = [], count
        while missing and (data := self._stream.read(min(missing, _CHUNK))):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def finish(self, header: Header) -> None:
        if self._stream.read(1):
            raise _too_long(self._name, header)


class _Gzip:
    """The inflated bytes of all members of a gzip file, in order (RFC 1952, 2.2).

    ISA-L inflates three to four times as fast as zlib.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._pending = b""
        self._begin_member()

    def read(self, count: int) -> bytes:
        parts, missing = [], count
        while missing and self._inflate:
            data = self._step(self._inflate, missing)
            if not data and self._is_cut():
                break
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def finish(self, header: Header) -> None:
        while self._inflate:
            if self._step(self._inflate, 1):
                raise _too_long(self._name, header)
            if self._is_cut():
                expected = "the end of the gzip stream with its CRC and length"
                raise _refused(self._name, expected, "the end of the file before it", _AGAIN)
        trailing = len(self._pending) + len(self._stream.read(_CHUNK))
        if trailing:
            actual = f"at least {trailing:,} more bytes"
            raise _refused(self._name, "gzip and nothing after it", actual, _PACK_AGAIN)

    def _begin_member(self) -> None:
        """Begin another member if the pending bytes look like one; otherwise end the gzip stream."""
        if len(self._pending) < _FLAGS_AT + 1:
            self._pending += self._stream.read(_CHUNK)
        self._inflate = isal_zlib.decompressobj(wbits=31) if self._pending.startswith(_GZIP_MAGIC) else None
        # RFC 1952, 2.3.1.2: a reader must stop if one of these flags is set. ISA-L does not.
        flags = self._pending[_FLAGS_AT : _FLAGS_AT + 1]
        if self._inflate and flags and flags[0] & _RESERVED_FLAGS:
            raise _refused(self._name, "an undamaged gzip stream", f"damage (header flags {flags.hex()})", _AGAIN)

    def _is_cut(self) -> bool:
        """Return whether the file has ended within a member."""
        if self._inflate and not self._pending:
            self._pending = self._stream.read(_CHUNK)
        return bool(self._inflate) and not self._pending

    def _step(self, inflate: Any, limit: int) -> bytes:
        try:
            data: bytes = inflate.decompress(self._pending, limit)
        except isal_zlib.error as error:  # type: ignore[misc]  # its stub says an instance
            actual = f"damage ({_PLAIN_ERROR.sub('', str(error)).lower()})"
            raise _refused(self._name, "an undamaged gzip stream", actual, _AGAIN) from error
        self._pending = inflate.unconsumed_tail
        if inflate.eof:
            self._pending = inflate.unused_data
            self._begin_member()
        return data


def _open_input(stream: BinaryIO, name: str) -> _Plain | _Gzip:
    magic = stream.read(2)
    stream.seek(0)
    if not magic:
        raise _refused(name, "a gzip or IDX file", "an empty file", _AGAIN)
    return _Gzip(stream, name) if magic == _GZIP_MAGIC else _Plain(stream, name)


def _refused(name: str, expected: str, actual: str, remedy: str) -> FormatError:
    return FormatError(f"{name}: expected {expected}; found {actual}; {remedy}")


def _cut_short(name: str, header: Header, found: int) -> FormatError:
    expected = f"{header.data_bytes:,} bytes of data for shape {header.shape} of {header.dtype.name}"
    return _refused(name, expected, f"the end of the data after {found:,}", _swapped(header) or _FIT)


def _too_long(name: str, header: Header) -> FormatError:
    expected = f"the data to end after {header.data_bytes:,} bytes for shape {header.shape} of {header.dtype.name}"
    return _refused(name, expected, "more", _FIT)


def _guess(start: bytes) -> tuple[str, str]:
    """Return the likely kind of a file that is not IDX, from its first bytes, and the remedy."""
    if start[_TAR_MAGIC_AT:] == _TAR_MAGIC:
        return "a tar archive", _UNPACK
    for beginning, guess in _OTHERS.items():
        if start.startswith(beginning):
            return guess
    if start[:1] in (b"<", b"\n", b" "):
        page = "a web page: the address leads elsewhere, or a log-in page answered"
        return page, "open the address in a browser, and fetch the archive itself"
    if start[2:4] == b"\0\0" and start[1] in range(1, MAX_DIMENSIONS + 1):
        return "little-endian", "write the header big-endian"
    return "not IDX", "give the IDX file itself"


def _text(start: bytes) -> str:
    """Return the start of a file if it is text, without control characters that could reach a terminal."""
    if not all(32 <= byte < 127 for byte in start[:4].strip()):
        return ""
    return " '" + "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in start) + "'"


def _swapped(header: Header) -> str:
    """Return a remedy if the dimensions look as if they were written little-endian; otherwise an empty string."""
    swapped = tuple(int.from_bytes(size.to_bytes(4, "big"), "little") for size in header.shape)
    likely = math.prod(swapped) < header.data_bytes >> 8
    return f"were the dimensions written little-endian, as {swapped}? Write them big-endian" if likely else ""
