"""Files that are elsewhere, read by range: for readers that need little of a large file, such as one of its columns."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

TAIL = 1 << 16
"""Bytes at the end of a file that are fetched at once and kept: there, Parquet has what describes the rest."""


class Ranged(io.RawIOBase):
    """A file that is elsewhere, open for reading. Its text is where it is, for messages.

    What is read by range is not checked against the SHA-256 of the file: formats have checksums of their own. A file
    that is not larger than `TAIL` is fetched whole, and checked.
    """

    def __init__(
        self, where: str, size: int, sha256: str, read: Callable[[int, int], bytes], whole: Callable[[], Path]
    ) -> None:
        """Read nothing yet.

        Args:
            where: the address of the file.
            size: in bytes.
            sha256: of the whole file.
            read: returns the bytes from a first position up to but not including a second one.
            whole: returns the path of the file on this machine, fetched and verified; raises an error if it is damaged.
        """
        super().__init__()
        self._where, self.size, self._sha256 = where, size, sha256
        self._range, self.whole = read, whole
        self._position = 0
        self._tail: bytes | None = None

    def __str__(self) -> str:
        return self._where

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self._between(self._position, min(self._position + len(view), self.size))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        data = self._between(self._position, self.size)
        self._position += len(data)
        return data

    def _between(self, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        tail_start = max(self.size - TAIL, 0)
        if start < tail_start:
            return self._range(start, stop)
        if self._tail is None:
            self._tail = self._fetched(tail_start)
        return self._tail[start - tail_start : stop - tail_start]

    def _fetched(self, start: int) -> bytes:
        data = self._range(start, self.size)
        if start == 0 and hashlib.sha256(data).hexdigest() != self._sha256:
            return self.whole().read_bytes()
        return data


Source = Path | Ranged
"""A file for a reader that needs little of it."""


def contents(source: Source) -> bytes:
    """Return all bytes of a file.

    Raises:
        OSError: a file of this machine cannot be read.
    """
    if isinstance(source, Path):
        return source.read_bytes()
    source.seek(0)
    return source.readall()
