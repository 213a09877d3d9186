"""The SHA-256 of each piece of a large file, so that a part of it can be verified without reading all of it.

The digests are in a file of the same entry, `chunks.json`, which is verified as a whole: it is small.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from storage.errors import DamagedEntry, made_again
from storage.records import Entry
from storage.runtime.ranged import Ranged, Source

CHUNKS = "chunks.json"
"""The name of the file with the digests."""
CHUNK_BYTES = 1 << 23


def write(file: Path) -> None:
    """Write the digests of the chunks of a file beside it."""
    digests = []
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digests.append(hashlib.sha256(chunk).hexdigest())
    file.with_name(CHUNKS).write_text(json.dumps({"bytes": CHUNK_BYTES, "sha256": digests}), encoding="utf-8")


def are_noted(entry: Entry) -> bool:
    """Return whether an entry has the digests of chunks: that of a large plain archive, unless an old one."""
    return entry.path(CHUNKS).exists()


def reader(entry: Entry, name: str) -> Callable[[int, int], bytes]:
    """Return a function that returns the bytes of an entry's file from one position up to but not including another.

    What it returns is verified. It reads whole chunks, in an entry elsewhere by range, and keeps the last one: for
    reading forwards. An entry without digests, of earlier versions, is fetched as a whole if it is elsewhere; in a
    folder its file is read as it is, because a run has verified the whole when it looked for the entry.

    Raises:
        DamagedEntry: the digests cannot be read; the function raises it if a chunk differs from its digest.
        StoreError: the file cannot be read.
    """
    listed = entry.path(CHUNKS)
    if not listed.exists():
        return _Unverified(entry.path(name)).read
    try:
        values = json.loads(listed.read_bytes())
        size, digests = int(values["bytes"]), tuple(map(str, values["sha256"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedEntry(f"{listed}: expected the digests of chunks; {error}; {made_again(listed)}") from error
    return _Verified(entry.source(name), size, digests).read


class _Unverified:
    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self, start: int, stop: int) -> bytes:
        return _between(self._file, start, stop)


class _Verified:
    def __init__(self, source: Source, size: int, digests: tuple[str, ...]) -> None:
        self._source: Source = source
        self._size, self._digests = size, digests
        self._last: tuple[int, bytes] = -1, b""

    def read(self, start: int, stop: int) -> bytes:
        first, last = start // self._size, (max(start, stop - 1)) // self._size
        data = b"".join(self._chunk(number) for number in range(first, last + 1))
        return data[start - first * self._size : stop - first * self._size]

    def _chunk(self, number: int) -> bytes:
        if number != self._last[0]:
            start = number * self._size
            data = _between(self._source, start, start + self._size)
            digest, expected = hashlib.sha256(data).hexdigest(), self._digests[number]
            if digest != expected and isinstance(self._source, Ranged):
                # Damaged on its way, perhaps: the object itself may be intact. Otherwise, this removes its entry.
                self._source = self._source.whole()
                return self._chunk(number)
            if digest != expected:
                raise DamagedEntry(
                    f"{self._source}: expected SHA-256 {expected:.12}… of the bytes from {start:,}; found "
                    f"{digest:.12}…; {made_again(self._source)}"
                )
            self._last = number, data
        return self._last[1]


def _between(source: Source, start: int, stop: int) -> bytes:
    if isinstance(source, Ranged):
        source.seek(start)
        return source.read(stop - start) or b""
    with source.open("rb") as stream:
        stream.seek(start)
        return stream.read(stop - start)
