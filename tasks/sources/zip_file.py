"""ZIP files that hold archives: read one archive out of them, and keep a downloaded one for all that is in it."""

from __future__ import annotations

import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, BinaryIO

from storage.datasets.catalog import ZipSpec
from storage.errors import FormatError
from storage.files import WAITING, kind_of, locked, make_folder, open_regular, sha256_of
from storage.store import Store
from tasks.sources.download import DownloadPolicy, download, redacted
from tasks.sources.partial_file import BLOCK, PartialFile, Received, SourceFailed, too_large

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What `zipfile` raises for a damaged, encrypted or otherwise unreadable file."""
_LIMIT = 1 << 32
"""Maximum bytes of a ZIP file whose size the manifest does not state, as of an archive."""
_BYTES_PER_SECOND = 100_000
"""The average rate at which even a large ZIP file may arrive: a slow line of a home."""

_log = logging.getLogger(__name__)

_failed: dict[tuple[Path, str], SourceFailed] = {}
"""The last failure of each download of this process, so that threads that waited for it do not repeat it."""
_told: set[Path] = set()
"""What a thread of this process is downloading, or has said to wait for: the others wait in silence."""


def take_out(stream: BinaryIO, name: str, part: PartialFile, limit: int) -> Received:
    """Write the member `name` of an open ZIP file into `part`, byte for byte.

    Its size is bounded as it is declared and as it is (PKWARE's APPNOTE.TXT, 4.3.12, has the declared one), and the
    CRC-32 of its content is checked. The names of other members do not matter, as nothing is unpacked by its name.

    Raises:
        SourceFailed: it is no readable ZIP file, there is no such member, or it has more than `limit` bytes.
        OSError: `part` cannot be written.
    """
    with _readable():
        archive = zipfile.ZipFile(stream)
    with archive:
        try:
            member = archive.getinfo(name)
        except KeyError:
            raise SourceFailed(f"there is no {name} in it", refused=FormatError) from None
        if member.file_size > limit:
            raise too_large(limit, member.file_size)
        part.clear()
        return part.fill(_blocks(archive, member), limit, member.file_size)


def _blocks(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    with _readable():
        packed: IO[bytes] = archive.open(member)
    with packed:
        while block := _block(packed):
            yield block


def _block(packed: IO[bytes]) -> bytes:
    with _readable():
        return packed.read(BLOCK)


@contextmanager
def _readable() -> Iterator[None]:
    """Report errors while reading a ZIP file as failures of the source."""
    try:
        yield
    except _BROKEN as error:
        raise SourceFailed(f"it is no undamaged ZIP file ({error})", refused=FormatError) from error
    except OSError as error:
        raise SourceFailed(f"it cannot be read ({error.strerror or error})") from error


@dataclass(frozen=True)
class KeptZip:
    """A ZIP file on the web. It is downloaded into the store once, for all the archives and data sets that are in it.

    There, a complete file has its own name, and only a verified one gets it.
    """

    store: Store
    zipped: ZipSpec
    url: str
    check: Callable[[Path, Received], None]
    """Raises `SourceFailed` if a received file is not the published one."""

    @property
    def _folder(self) -> Path:
        return self.store.downloads(self.zipped.sha256)

    @property
    def _file(self) -> Path:
        return self._folder / self.zipped.file

    @contextmanager
    def opened(self, policy: DownloadPolicy) -> Iterator[BinaryIO]:
        """Open the file, and download it before if it is not here. Of several threads or runs, one downloads it.

        Raises:
            SourceFailed: it could not be downloaded from here, by this thread or by the one that it waited for.
            StoreError: there is less free space than it has bytes.
            OSError: the store cannot be written.
            Cancelled: the run is being ended.
        """
        key = (self._folder, self.url)
        known = _failed.get(key)
        with self._locked():
            if not self._file.is_file():
                latest = _failed.get(key)
                if latest is not None and latest is not known:
                    raise SourceFailed(str(latest), refused=latest.refused)
                self._download(key, policy)
            stream = open_regular(self._file)
        # `gc` may remove it from now on: what is open can be read to its end.
        with stream:
            yield stream

    def discarded(self, read: BinaryIO) -> bool:
        """Remove the file if it is damaged; return whether the kept file is no longer the opened one, `read`.

        Another thread or run may have removed or replaced it.
        """
        with self._locked():
            if self._file.is_file():
                if not os.path.samestat(os.fstat(read.fileno()), self._file.stat()):
                    return True
                if sha256_of(self._file) == self.zipped.sha256:
                    return False
            if self._file.exists():
                _log.warning("%s is damaged; downloading it again", self._file)
                self._file.unlink()
            return True

    def _download(self, key: tuple[Path, str], policy: DownloadPolicy) -> None:
        make_folder(self._folder)
        part = PartialFile(self._folder, self.zipped.file)
        self._clear_but(part)
        part.check_room(redacted(self.url), self.zipped.bytes)
        seconds = policy.deadline_seconds + (self.zipped.bytes or 0) / _BYTES_PER_SECOND
        patient = replace(policy, deadline_seconds=seconds)
        limit = self.zipped.bytes or _LIMIT

        def check(received: Received) -> None:
            self.check(part.path, received)

        try:
            download(self.url, part, limit, check, patient, policy.clock() + seconds)
        except SourceFailed as failure:
            _failed[key] = failure
            if failure.refused or not part.note.exists():
                part.clear()
            raise
        os.replace(part.path, self._file)
        part.clear()

    def _clear_but(self, part: PartialFile) -> None:
        for path in self._folder.iterdir():
            if path not in (part.path, part.note):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        folder = self._folder

        def say_waiting() -> None:
            if folder not in _told:
                _told.add(folder)
                _log.info("waiting for another run that is downloading %s", self.zipped.file, extra=WAITING)

        try:
            with locked(self.store.download_lock(self.zipped.sha256), say_waiting, passing=True):
                _told.add(folder)
                yield
        finally:
            _told.discard(folder)


def in_folder(folder: Path, zipped: ZipSpec) -> Path | None:
    """Return the path of a ZIP file in a folder; None if it is not there.

    Raises:
        SourceFailed: something else has its name.
    """
    path = folder / zipped.file
    if path.exists() and not path.is_file():
        raise SourceFailed(f"{zipped.file} is {kind_of(path)}, not a regular file")
    return path if path.is_file() else None
