"""One `idxflow up` per server and pool on a machine: a lock that the kernel releases when its holder dies."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any


class Lock:
    """An advisory lock on a file that also describes its holder. See flock(2)."""

    def __init__(self, folder: Path, api: str, pool: str) -> None:
        name = hashlib.sha256(f"{api} {pool}".encode()).hexdigest()[:12]
        self.path = folder / f"up-{name}.json"
        self._stream: IO[str] | None = None

    def take(self) -> bool:
        """Take the lock for the life of this process; False if another process has it."""
        stream = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            return False
        self._stream = stream
        self.say({"pid": os.getpid()})
        return True

    def say(self, words: dict[str, Any]) -> None:
        """Write the holder's information for other processes."""
        if self._stream:
            self._stream.seek(0)
            self._stream.truncate()
            json.dump(words, self._stream)
            self._stream.flush()

    def read(self) -> dict[str, Any]:
        """Return the information that the holder wrote; empty while it is writing."""
        try:
            words: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError:
            return {}
        return words


def ready(folder: Path) -> Iterator[str]:
    """Yield the API of each `idxflow up` that was once ready, newest first. It may have ended since."""
    files = [(path.stat().st_mtime, path) for path in folder.glob("up-*.json")]
    for _, path in sorted(files, reverse=True):
        try:
            words = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if words.get("ready") and words.get("api"):
            yield words["api"]


def running(folder: Path, api: str) -> dict[str, Any]:
    """Return the information of the `idxflow up` that now maintains this server; empty if none on this machine does."""
    for path in folder.glob("up-*.json"):
        with suppress(OSError, ValueError), path.open(encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                words: dict[str, Any] = json.load(stream)
                if words.get("api") == api:
                    return words
    return {}
