"""Any bytes as an IDX archive: refused as such, or read as exactly the array that they are."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from storage.errors import FormatError
from storage.formats import idx

WORDS = (b"\x1f\x8b\x08", b"\0\0\x08\x01", b"\0\0\x08\x03", b"\0\0\x0d\x02", b"\xff\xff\xff\xff", b"\x80\0\0\0", b"PK")
OPTIONS = ("-max_len=512",)

COMPRESSED, SHAPED = 1, 2
"""Flags in the first byte of an input, 0: the rest is the file. No mutation keeps a CRC, and few keep a header that
fits its data: with `COMPRESSED` the rest is what the file inflates to, with `SHAPED` it is made into a small array."""


class InMemory:
    """A file that is nowhere, as much of a `Path` as a reader needs."""

    name = "fuzz"

    def __init__(self, data: bytes) -> None:
        self._data = data

    def open(self, mode: str) -> io.BytesIO:
        assert mode == "rb"
        return io.BytesIO(self._data)


def seeds() -> Iterator[bytes]:
    for dtype in idx.TYPES.values():
        for shape in ((5,), (2, 3), (2, 3, 4), (1,) * 8):
            plain = idx.encode(np.arange(np.prod(shape)).reshape(shape).astype(dtype))
            packed = gzip.compress(plain, mtime=0)
            for file in (plain, packed, packed[: len(packed) // 2], packed + packed):
                yield b"\0" + file
            yield bytes([COMPRESSED]) + plain
    for code in range(len(idx.TYPES)):
        for surplus in range(4):
            yield bytes([SHAPED | COMPRESSED | surplus << 6, code, code, 1, 2, 3, 4]) + b"data"
    all_fields = 0b11110
    yield bytes([0, 31, 139, 8, all_fields, 0, 0, 0, 0, 0, 3, 2, 0]) + b"xx../../name\0comment\0"


def check(data: bytes) -> None:
    file = _file(data)
    path: Any = InMemory(file)
    try:
        array = idx.read(path)
    except FormatError as error:
        message = str(error)
    else:
        message = "fuzz: expected"
        assert idx.encode(array) == (zlib.decompress(file, wbits=31) if file[:2] == b"\x1f\x8b" else file)
    assert message.startswith("fuzz: expected")
    assert "\n" not in message


def _file(data: bytes) -> bytes:
    flags, body = (data[0], data[1:]) if data else (0, b"")
    if flags & SHAPED and len(body) > 6:
        body = _shaped(body, surplus=(0, 0, 1, -1)[flags >> 6])
    if not flags & COMPRESSED:
        return body
    packer = zlib.compressobj(1, wbits=25, memLevel=1)
    return packer.compress(body) + packer.flush()


def _shaped(body: bytes, surplus: int) -> bytes:
    """Return an IDX file of 1 to 4 dimensions of 1 to 3, filled with `body`, and `surplus` bytes too many."""
    kind, dimensions = list(idx.TYPES.values())[body[0] % len(idx.TYPES)], 1 + body[1] % 4
    header = idx.Header(kind, tuple(1 + byte % 3 for byte in body[2 : 2 + dimensions]))
    size = header.data_bytes + surplus
    return header.encode() + (body[6:] * size)[:size]
