"""The file that receives an archive until the archive has been verified."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from storage.errors import DataRefused, FormatError, StoreError
from storage.objects.cache import option_of
from storage.runtime import cancellation
from tasks.ui.progress import Progress, advance

BLOCK = 1 << 18
"""Bytes read at a time."""

_PROGRESS_SECONDS = 0.1
_STRONG_ETAG = re.compile(r'"[^"]*"')


class SourceFailed(Exception):
    """A source did not deliver the archive. The text is a short clause without secrets.

    Args:
        refused: the error to raise if no other source succeeds, when the bytes received were not the declared ones;
            None if nothing could be read.
        retryable: the failure may be temporary, so retry the same source.
        wait: seconds that the server asks to wait before the retry.
    """

    def __init__(
        self,
        clause: str,
        *,
        refused: type[DataRefused] | None = None,
        retryable: bool = False,
        wait: float | None = None,
    ) -> None:
        super().__init__(clause)
        self.refused, self.retryable, self.wait = refused, retryable, wait


@dataclass(frozen=True)
class Received:
    """A file that was received completely."""

    size_bytes: int
    sha256: str
    resumed: bool = False
    """The beginning of the file is from an earlier download."""
    framed: bool = True
    """The sender stated the length. If not, a lost connection looks like the end of the file."""
    encoding: str = ""
    """The `Content-Encoding` that the server sent."""


class PartialFile:
    """The file that receives an archive, next to a note with the details needed to resume.

    Only a download whose server sent a strong ETag (RFC 9110, 8.8.3) has a note: with the same address and the same
    ETag, the rest of the file belongs to the bytes already here.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / f"{name}.part"
        self.note = folder / f"{name}.part.json"

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def check_room(self, what: str, size: int | None) -> None:
        """Check that the disk has room for the rest of a file of `size` bytes, if that is known.

        Raises:
            StoreError: it has not; the message begins with `what`.
        """
        folder = self.path.parent
        needed, free = (size or 0) - self.size, shutil.disk_usage(folder).free
        if free < needed:
            raise StoreError(
                f"{what}: expected {needed:,} bytes free at {folder.parent}; found {free:,}; "
                f"free space there, or choose another with {option_of(folder)}"
            )

    def clear(self) -> None:
        """Discard the bytes received so far."""
        self.note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def remember(self, url: str, etag: str) -> None:
        """Note the source of the bytes, if the ETag is strong."""
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
        """Write `blocks` to the file, appending if `resume`, and hash them on the way.

        Raises:
            SourceFailed: there are more than `limit` bytes; no byte beyond the limit is written.
            Cancelled: the run is being ended; the bytes received so far stay.
            OSError: the file cannot be written.
        """
        digest, size, reported = hashlib.sha256(), 0, -_PROGRESS_SECONDS
        with self.path.open("r+b" if resume else "wb") as stream:
            while resume and (existing := stream.read(BLOCK)):
                digest.update(existing)
                size += len(existing)
            for block in blocks:
                cancellation.check()
                size += len(block)
                if size > limit:
                    raise too_large(limit)
                stream.write(block)
                digest.update(block)
                if (now := time.monotonic()) - reported >= _PROGRESS_SECONDS:
                    reported = now
                    advance(Progress(self.name, size, total, "bytes"))
        advance(Progress(self.name, size, size, "bytes"))
        return Received(size, digest.hexdigest(), resumed=resume)


def too_large(limit: int, size: int | None = None) -> SourceFailed:
    """Return the failure of a source that has more bytes than the limit."""
    has = f"{size:,}" if size is not None else "more"
    return SourceFailed(f"found {has} bytes where at most {limit:,} can be right", refused=FormatError)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
