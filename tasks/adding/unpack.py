"""Unpack ZIP and tar archives into a folder: regular files only, inside it, and no more bytes than they declare."""

from __future__ import annotations

import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from storage.errors import FormatError
from tasks.adding.batches import check_room, raise_if_full, refused
from tasks.serving.picture import BROKEN
from tasks.ui.progress import Progress, advance

MAX_BYTES = 1 << 36
"""Maximum size of everything in an archive, unpacked."""
MAX_FILES = 5_000_000
_BLOCK = 1 << 20
_DRIVE = re.compile("[A-Za-z]:")
_TAR_MAGIC_AT = 257
_Member = tuple[str, int, Callable[[], IO[bytes]]]
"""Name, declared size, and what opens it."""


def is_tar(start: bytes) -> bool:
    """Return whether these first bytes of a file are those of a tar archive (POSIX.1-2001, ustar)."""
    return start[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar"


def unpack(path: Path, folder: Path, match: str) -> Path:
    """Unpack those files of an archive whose path has `match` in it; return the folder that has them.

    Raises:
        FormatError: the archive is damaged, or has what cannot be trusted: links, places outside, too many bytes.
    """
    declared = 0
    try:
        for count, (name, size, content) in enumerate(_members(path)):
            declared += size
            if declared > MAX_BYTES or count > MAX_FILES:
                raise _unsafe(
                    path, f"at most {MAX_FILES:,} files of {MAX_BYTES:,} bytes", f"{declared:,} bytes or more"
                )
            check_room(folder, size)
            target = _place(path, folder, name)
            if match in name and not _is_junk(name):
                target.parent.mkdir(parents=True, exist_ok=True)
                _copy(path, content, target, size)
            advance(Progress("unpack", count, None, "files"))
    except (*BROKEN, zipfile.BadZipFile, tarfile.TarError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise_if_full(error)
        problem = f"two files named {target.name}" if isinstance(error, FileExistsError) else str(error)
        if isinstance(error, OSError) and error.filename:
            problem = f"{problem if isinstance(error, FileExistsError) else error.strerror}, {name}"
        remedy = "unpack it yourself, and give the folder" if "encrypted" in problem else "copy or pack it again"
        raise refused(path, "an undamaged archive", problem, remedy) from error
    return _inner(folder)


def _members(path: Path) -> Iterator[_Member]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise _unsafe(path, "files", f"a link, {entry.filename}")
                if not entry.is_dir():
                    yield entry.filename, entry.file_size, partial(archive.open, entry)
        return
    with tarfile.open(path) as tar:
        for member in tar:
            if not (member.isdir() or member.isreg()):
                raise _unsafe(path, "files", f"a link or a device, {member.name}")
            if member.isreg():
                yield member.name, member.size, partial(tar.extractfile, member)  # type: ignore[misc]


def _place(path: Path, folder: Path, name: str) -> Path:
    """Return where a member belongs; no path leads out of the folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/" or "\0" in name or _DRIVE.fullmatch(parts[0]):
        raise _unsafe(path, "files inside the archive's own folder", f"one at {name!r}")
    return folder.joinpath(*parts)


def _copy(path: Path, content: Callable[[], IO[bytes]], target: Path, size: int) -> None:
    left = size
    with content() as packed, target.open("xb") as unpacked:
        while block := packed.read(_BLOCK):
            if (left := left - len(block)) < 0:
                raise _unsafe(path, f"the {size:,} bytes that {target.name} declares", "more")
            unpacked.write(block)


def _is_junk(name: str) -> bool:
    return name.startswith("__MACOSX/") or PurePosixPath(name).name.startswith(".")


def _unsafe(path: Path, expected: str, actual: str) -> FormatError:
    remedy = "do not trust this archive; if you do, unpack it yourself and give the folder"
    return refused(path, expected, actual, remedy)


def _inner(folder: Path) -> Path:
    """Return the folder with the files, which archives often wrap into one or more others."""
    entries = list(folder.iterdir())
    return _inner(entries[0]) if len(entries) == 1 and entries[0].is_dir() else folder
