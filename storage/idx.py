"""Read and write IDX, the format of the MNIST archives, plain or gzip-compressed.

An IDX file is: two zero bytes, one byte for the element type, one byte for the number of dimensions,
each dimension as a big-endian 32-bit integer, then the elements in row-major order, big-endian
(http://yann.lecun.com/exdb/mnist/, section "The IDX file format"; gzip: RFC 1952).

The reader is strict. It checks the header before it allocates anything, never inflates more than the
header declares, and accepts a file only when its stream ends exactly there, with CRC and length right.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from storage.errors import FormatError

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
_CHUNK = 1 << 18


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

    Leaving the loop at its end means that the whole file was there and undamaged.

    Raises:
        FormatError: the file is not a complete, undamaged IDX file. Names file, expected and found.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name or path.name
        self._stream = path.open("rb")
        try:
            self._input = _open_input(self._stream, self.name)
            self._hash = hashlib.sha256()
            self.header = self._read_header()
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

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """Yield the data as read-only arrays of at most `rows` rows, in the file's (big-endian) type."""
        total, *rest = self.header.shape
        for start in range(0, total, rows):
            count = min(rows, total - start)
            data = self._take(count * self.header.row_bytes, start * self.header.row_bytes)
            yield np.frombuffer(data, self.header.dtype).reshape(count, *rest)
        self._input.finish(self.header)

    def read(self) -> np.ndarray:
        """Return all rows in the machine's byte order."""
        parts = [block.astype(block.dtype.newbyteorder("=")) for block in self.blocks(8192)]
        return np.concatenate(parts)

    def _read_header(self) -> Header:
        magic = self._header_bytes(4, "the 4-byte magic number")
        zeros, code, dimensions = magic[:2], magic[2], magic[3]
        if zeros != b"\0\0" or code not in TYPES:
            known = ", ".join(f"{c:02x}" for c in TYPES)
            raise FormatError(
                f"{self.name}: expected an IDX magic number 0000TTNN with a type TT of {known}; "
                f"found {magic.hex()} ({_guess(magic)})"
            )
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise FormatError(
                f"{self.name}: expected 1 to {MAX_DIMENSIONS} dimensions; the header declares {dimensions}"
            )
        sizes = self._header_bytes(4 * dimensions, f"{dimensions} dimensions of 4 bytes")
        header = Header(TYPES[code], struct.unpack(f">{dimensions}I", sizes))
        if 0 in header.shape:
            raise FormatError(f"{self.name}: expected at least one element; the header declares {header.shape}")
        if header.data_bytes > MAX_PAYLOAD_BYTES:
            raise FormatError(
                f"{self.name}: expected at most {MAX_PAYLOAD_BYTES:,} bytes of data; the header declares "
                f"{header.shape} of {header.dtype.name}, {header.data_bytes:,} bytes"
            )
        return header

    def _header_bytes(self, count: int, what: str) -> bytes:
        data = self._input.read(count)
        if len(data) < count:
            raise FormatError(f"{self.name}: expected {what}; the file ends after {len(data)} bytes of it")
        self._hash.update(data)
        return data

    def _take(self, count: int, done: int) -> bytes:
        data = self._input.read(count)
        if len(data) < count:
            raise FormatError(
                f"{self.name}: expected {self.header.data_bytes:,} bytes of data for shape {self.header.shape} "
                f"of {self.header.dtype.name}; the data ends after {done + len(data):,}"
                f"{_byte_order_hint(self.header)}"
            )
        self._hash.update(data)
        return data


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


class _Plain:
    """The bytes of an uncompressed IDX file."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name

    def read(self, count: int) -> bytes:
        # Blocks, so that a header that lies about its size cannot make us allocate it.
        parts, missing = [], count
        while missing and (data := self._stream.read(min(missing, _CHUNK))):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def finish(self, header: Header) -> None:
        if self._stream.read(1):
            raise FormatError(_too_long(self._name, header))


class _Gzip:
    """The inflated bytes of a single-member gzip file."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._inflate = zlib.decompressobj(wbits=31)
        self._pending = b""

    def read(self, count: int) -> bytes:
        parts, missing = [], count
        while missing and not self._inflate.eof:
            data = self._step(missing)
            if not data and not self._pending and not self._refill():
                break
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def finish(self, header: Header) -> None:
        while not self._inflate.eof:
            if self._step(1):
                raise FormatError(_too_long(self._name, header))
            if not self._inflate.eof and not self._pending and not self._refill():
                raise FormatError(
                    f"{self._name}: expected the end of the gzip stream with its CRC and length; "
                    "the file is cut before it, fetch it again"
                )
        trailing = len(self._inflate.unused_data) + len(self._stream.read(_CHUNK))
        if trailing:
            raise FormatError(
                f"{self._name}: expected one gzip member and nothing after it; found at least {trailing:,} more bytes"
            )

    def _refill(self) -> bool:
        self._pending = self._stream.read(_CHUNK)
        return bool(self._pending)

    def _step(self, limit: int) -> bytes:
        try:
            data = self._inflate.decompress(self._pending, limit)
        except zlib.error as error:
            raise FormatError(
                f"{self._name}: expected an undamaged gzip stream; zlib says: {error}; fetch it again"
            ) from error
        self._pending = self._inflate.unconsumed_tail
        return data


def _open_input(stream: BinaryIO, name: str) -> _Plain | _Gzip:
    magic = stream.read(2)
    stream.seek(0)
    if not magic:
        raise FormatError(f"{name}: expected a gzip or IDX file; the file is empty")
    return _Gzip(stream, name) if magic == _GZIP_MAGIC else _Plain(stream, name)


def _too_long(name: str, header: Header) -> str:
    return (
        f"{name}: expected the data to end after {header.data_bytes:,} bytes for shape {header.shape} "
        f"of {header.dtype.name}; there is more"
    )


def _guess(magic: bytes) -> str:
    if magic[:1] in (b"<", b"\n", b" "):
        return "a web page: the address leads elsewhere, or a log-in page answered"
    if magic[:2] == b"PK":
        return "a ZIP file"
    if magic[:2] == _GZIP_MAGIC:
        return "gzip inside gzip"
    if magic[2:] == b"\0\0" and magic[1] in range(1, MAX_DIMENSIONS + 1):
        return "little-endian"
    return "not IDX"


def _byte_order_hint(header: Header) -> str:
    swapped = tuple(int.from_bytes(size.to_bytes(4, "big"), "little") for size in header.shape)
    likely = math.prod(swapped) < header.data_bytes >> 8
    return f"; were the dimensions written little-endian, as {swapped}?" if likely else ""
