"""The file an archive grows in until it is known to be the right one."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from storage.errors import DataRefused, FormatError
from storage.runtime import cancellation
from tasks.ui.progress import Progress, advance

BLOCK = 1 << 18
"""Bytes that are read at a time."""

_PROGRESS_SECONDS = 0.1
_STRONG_ETAG = re.compile(r'"[^"]*"')


class SourceFailed(Exception):
    """One source did not give the archive. The text is a short clause without secrets.

    Args:
        refused: the error this is if no other source helps, where bytes came but not the declared ones;
            None where nothing could be read.
        heals: trying the same source again may help.
        wait: seconds its server asks to wait before that.
    """

    def __init__(
        self, clause: str, *, refused: type[DataRefused] | None = None, heals: bool = False, wait: float | None = None
    ) -> None:
        super().__init__(clause)
        self.refused, self.heals, self.wait = refused, heals, wait


@dataclass(frozen=True)
class Received:
    """A file that came in to its end."""

    size_bytes: int
    sha256: str
    resumed: bool = False
    """Its first part is from an earlier download."""
    framed: bool = True
    """The sender said how long it is. If not, a lost connection looks like the end."""
    encoding: str = ""
    """The `Content-Encoding` a server named."""


class Part:
    """The file an archive grows in, with a note beside it of what is needed to go on later.

    A note is only there for a download whose server named a strong ETag (RFC 9110, 8.8.3): with the same
    address and the same ETag, the rest of the file belongs to what is here.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / f"{name}.part"
        self.note = folder / f"{name}.part.json"

    @property
    def size(self) -> int:
        """Bytes that came so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def clear(self) -> None:
        """Forget what came so far."""
        self.note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def remember(self, url: str, etag: str) -> None:
        """Note where the bytes come from, if the ETag is a strong one."""
        if _STRONG_ETAG.fullmatch(etag):
            self.note.write_text(json.dumps({"url": _digest(url), "etag": etag}), encoding="utf-8")

    def resumable(self, url: str) -> tuple[int, str] | None:
        """Return how many bytes of `url` are here and their ETag, or None."""
        try:
            note = json.loads(self.note.read_bytes())
            same, etag = note["url"] == _digest(url), str(note["etag"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return (self.size, etag) if same and self.size and _STRONG_ETAG.fullmatch(etag) else None

    def fill(self, blocks: Iterable[bytes], limit: int, total: int | None, resume: bool = False) -> Received:
        """Write `blocks` to the file, after what is there if `resume`, hashing them on the way.

        Raises:
            SourceFailed: there are more than `limit` bytes; none beyond are written.
            Stopped: the run is being ended; what came so far stays.
            OSError: the file cannot be written.
        """
        digest, done, told = hashlib.sha256(), 0, -_PROGRESS_SECONDS
        with self.path.open("r+b" if resume else "wb") as stream:
            while resume and (kept := stream.read(BLOCK)):
                digest.update(kept)
                done += len(kept)
            for block in blocks:
                cancellation.check()
                done += len(block)
                if done > limit:
                    raise too_large(limit)
                stream.write(block)
                digest.update(block)
                if (now := time.monotonic()) - told >= _PROGRESS_SECONDS:
                    told = now
                    advance(Progress(self.name, done, total, "bytes"))
        advance(Progress(self.name, done, done, "bytes"))
        return Received(done, digest.hexdigest(), resumed=resume)


def too_large(limit: int, found: int | None = None) -> SourceFailed:
    """Return the failure of a source that has more bytes than can be right."""
    has = f"{found:,}" if found is not None else "more"
    return SourceFailed(f"found {has} bytes where at most {limit:,} can be right", refused=FormatError)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
