"""Read a folder in which sets of archives arrive: its current contents, and complete copies of them.

A sender may copy slowly, stop half-way, or replace one set by another at any time. So a set is taken only when nothing
about it has changed between two polls, and the checks read the copy. A file counts as unchanged while it is the same
file (device, inode) with the same size and times. The times include that of the last change of any kind (ctime), which
no program can set: `cp -p` and `rsync --times` give a new file the old modification time.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from storage.arrivals import copied
from storage.datasets.catalog import ArchiveSpec, Dataset
from storage.errors import DigestMismatch, FormatError, IdxflowError, SourceUnavailable
from storage.files import sha256_of
from storage.formats.idx import Reader
from storage.records import SPLITS
from storage.snapshots import ArrivedFile
from tasks.sources.origins import file_names, network_limit

_ROWS = 8192
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}
_RSYNC_FOLDER = ".~tmp~"
"""Where `rsync --delay-updates` keeps received files until it has them all."""
_UNFINISHED = re.compile(r"\.(?P<rsync>.+)\.[A-Za-z0-9]{6}|(?P<other>.+)\.(part|partial|filepart|tmp)")
"""Names that programs give to files that they are still writing."""


@dataclass(frozen=True)
class Entry:
    """An entry of the folder at one poll."""

    name: str
    kind: int
    """As in `stat.S_IFMT`."""
    bytes: int
    identity: tuple[int, ...]
    changed_ns: int
    """ctime."""


@dataclass(frozen=True)
class Contents:
    """The contents of the folder at one poll; equal values mean unchanged contents."""

    archives: Mapping[str, Entry] = field(default_factory=dict)
    """The archives that are present, by role."""
    unfinished: tuple[Entry, ...] = ()
    """Entries that look like archives still being transferred."""
    marker: Entry | None = None

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.archives.values())


@dataclass(frozen=True)
class ArrivalFolder:
    """A folder in which archives of a data set arrive."""

    folder: Path
    dataset: Dataset
    dataset_file: str | None
    marker: str | None = None
    """Name of a file that the sender writes after the four archives."""

    def contents(self) -> Contents:
        """Return the current contents.

        Raises:
            SourceUnavailable: the folder cannot be read.
        """
        with self._opened() as folder:
            names = _names(folder)
            roles = {spec.role: _first(names, spec) for spec in self.dataset.archives}
            unfinished = sorted(name for name in names if self._is_unfinished(name))
            entries = {role: _entry(folder, name) for role, name in roles.items() if name}
            return Contents(
                {role: entry for role, entry in entries.items() if entry},
                tuple(entry for name in unfinished if (entry := _entry(folder, name))),
                _entry(folder, self.marker) if self.marker in names else None,
            )

    def why_not(self, contents: Contents) -> str | None:
        """Return why there is no set to take, as a clause; None if there may be one."""
        if len(contents.archives) < len(self.dataset.archives):
            return f"the four archives are not all in {self.folder}"
        if self.marker and contents.marker is None:
            return f"{self.marker} is not in {self.folder}"
        newest = max(entry.changed_ns for entry in contents.archives.values())
        if contents.marker and contents.marker.changed_ns < newest:
            return f"{self.marker} in {self.folder} is older than the archives"
        return None

    def refuse(self, contents: Contents) -> None:
        """Refuse contents that cannot be copied.

        Raises:
            FormatError: an archive is not a file, or too large; or a transfer is unfinished.
        """
        for spec in self.dataset.archives:
            entry = contents.archives[spec.role]
            if entry.kind != stat.S_IFREG:
                kind = _KINDS.get(entry.kind, "something else")
                raise FormatError(f"{entry.name}: expected a file; found {kind}; copy the archive itself there")
            limit = max(network_limit(spec), spec.payload_bytes or 0)
            if entry.bytes > limit:
                remedy = f"; {self._other_sets()}" if spec.pinned else ""
                raise FormatError(f"{entry.name}: expected at most {limit:,} bytes; found {entry.bytes:,}{remedy}")
        if contents.unfinished:
            raise FormatError(
                f"{contents.unfinished[0].name}: expected complete archives only; found an unfinished transfer; "
                "wait until it has finished, or remove the partial file"
            )

    def copy(self, contents: Contents, place: Path) -> dict[str, ArrivedFile] | None:
        """Copy the archives; return None if they have changed since then.

        Raises:
            SourceUnavailable: an archive cannot be read.
            OSError: a copy cannot be written.
        """
        for entry in contents.archives.values():
            with self._opened() as folder, _file(folder, entry) as descriptor:
                if descriptor is None:
                    return None
                copied(descriptor, place / entry.name)
        if self.contents() != contents:
            return None
        return {role: _arrived(place / entry.name) for role, entry in contents.archives.items()}

    def digests(self, contents: Contents) -> dict[str, ArrivedFile] | None:
        """Return the same as `copy`, without copying."""
        files = {}
        for role, entry in contents.archives.items():
            with self._opened() as folder, _file(folder, entry) as descriptor:
                if descriptor is None:
                    return None
                files[role] = ArrivedFile(entry.name, entry.bytes, _sha256(descriptor, entry.name))
        return files if self.contents() == contents else None

    def check(self, files: Mapping[str, ArrivedFile], place: Path) -> None:
        """Read each copied archive to its end.

        Raises:
            FormatError: an archive is truncated, damaged or not IDX; or only one of a pair has been replaced.
            DigestMismatch: an archive does not have the published digest from the manifest.
        """
        rows = {spec.role: self._rows(spec, files[spec.role], place) for spec in self.dataset.archives}
        for split in SPLITS:
            images, labels = rows[f"{split}-images"], rows[f"{split}-labels"]
            if images != labels:
                raise FormatError(
                    f"{self.folder}: expected as many {split} labels as images, found {labels:,} labels and "
                    f"{images:,} images; copy the other file, too"
                )

    def _rows(self, spec: ArchiveSpec, file: ArrivedFile, place: Path) -> int:
        with Reader(place / file.name) as reader:
            for _ in reader.blocks(_ROWS):
                pass
            rows, payload = math.prod(reader.header.shape[:1]), reader.payload_sha256
        if spec.pinned and file.sha256 != spec.sha256 and payload != spec.payload_sha256:
            expected = spec.sha256 or spec.payload_sha256
            raise DigestMismatch(
                f"{file.name}: expected the published archive, SHA-256 {expected:.12}…; found {file.sha256:.12}…; copy "
                f"that one, or: {self._other_sets()}"
            )
        return rows

    def _other_sets(self) -> str:
        """Return how to have archives accepted that do not match the digests in the manifest."""
        return (
            f"{self.dataset.manifest.name} names the digests of its archives, so no other set is ever complete; for "
            "sets that change, take `bytes` and `sha256` out of it (`idxflow manifest FOLDER --no-digests` writes none)"
        )

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the folder, so that all reads use the same folder even if it is renamed or replaced."""
        try:
            folder = os.open(self.folder, _OPEN | os.O_DIRECTORY)
        except OSError as error:
            raise SourceUnavailable(
                f"expected a folder that can be read at {self.folder}; {error.strerror}; create it again"
            ) from error
        try:
            yield folder
        finally:
            os.close(folder)

    def _is_unfinished(self, name: str) -> bool:
        if name == _RSYNC_FOLDER:
            return True
        match = _UNFINISHED.fullmatch(name)
        if not match:
            return False
        final_name = match["rsync"] or match["other"]
        return any(final_name in file_names(spec) for spec in self.dataset.archives)


def _names(folder: int) -> set[str]:
    try:
        # By descriptor: `Path` would look the name up again.
        return set(os.listdir(folder))
    except OSError as error:
        raise SourceUnavailable(
            f"expected to read the names in the folder; {error.strerror}; check its disk"
        ) from error


def _first(names: set[str], spec: ArchiveSpec) -> str | None:
    return next((name for name in file_names(spec) if name in names), None)


def _entry(folder: int, name: str) -> Entry | None:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(name, error) from error
    return _entry_of(name, status)


def _entry_of(name: str, status: os.stat_result) -> Entry:
    identity = (status.st_dev, status.st_ino, status.st_mtime_ns)
    return Entry(name, stat.S_IFMT(status.st_mode), status.st_size, identity, status.st_ctime_ns)


@contextmanager
def _file(folder: int, entry: Entry) -> Iterator[int | None]:
    """Open a file; yield None if it is no longer the file that was seen."""
    try:
        # It might be a named pipe by now, on which a blocking open would wait.
        descriptor = os.open(entry.name, _OPEN | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise _unreadable(entry.name, error) from error
    try:
        yield descriptor if _entry_of(entry.name, os.fstat(descriptor)) == entry else None
    finally:
        os.close(descriptor)


def _unreadable(name: str, error: OSError) -> IdxflowError:
    return SourceUnavailable(f"{name}: expected a file that can be read; {error.strerror}; correct its permissions")


def _arrived(path: Path) -> ArrivedFile:
    return ArrivedFile(path.name, path.stat().st_size, sha256_of(path))


def _sha256(descriptor: int, name: str) -> str:
    try:
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(name, error) from error
