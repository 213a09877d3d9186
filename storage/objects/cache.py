"""A cache of files by their SHA-256, on this machine: fetched once, verified, shared by processes, bounded.

    <folder>/<first 2 digits>/<sha256>/<name>

A file is fetched beside its place, verified, made read-only and renamed into place. A process verifies each file once,
so a flipped bit is noticed, and the file is fetched again. A process that has asked for a file holds a shared lock on
its folder until the process ends, or has asked for many others, so the file stays; otherwise the files used least
recently go when there are too many bytes.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.errors import ConfigError, StoreError
from storage.files import make_folder, sha256_of

CACHE_VARIABLE = "IDXFLOW_CACHE"
SIZE_VARIABLE = "IDXFLOW_CACHE_SIZE"
DEFAULT_SIZE = 20 << 30
MOST_HELD = 256
"""Files that a process keeps from being removed at the same time, the newest that it has asked for."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder of what this user's machine keeps of remote stores: `IDXFLOW_CACHE`, or the usual place.

    The usual place is that of the XDG Base Directory Specification: `$XDG_CACHE_HOME/idxflow`, or `~/.cache/idxflow`.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    usual = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(chosen or f"{usual}/idxflow").expanduser().absolute()


def cache_size() -> int:
    """Return the most bytes of files to keep: `IDXFLOW_CACHE_SIZE`, such as 500M or 20G, or `DEFAULT_SIZE`.

    Raises:
        ConfigError: the variable is not a size.
    """
    text = os.environ.get(SIZE_VARIABLE, "").strip().upper().removesuffix("B").removesuffix("I")
    if not text:
        return DEFAULT_SIZE
    number, unit = (text[:-1], text[-1]) if text[-1] in _UNITS else (text, "")
    if not (number.isascii() and number.isdecimal()):
        raise ConfigError(
            f"{SIZE_VARIABLE}: expected a number of bytes, such as 500M or 20G; found "
            f"{os.environ[SIZE_VARIABLE]!r}; correct it"
        )
    return int(number) * _UNITS[unit]


def option_of(path: Path) -> str:
    """Return by what a user chooses another place instead of a path of a store, or of the cache."""
    return CACHE_VARIABLE if path.is_relative_to(cache_folder()) else "--store"


def unusable(error: OSError, folder: Path | None = None) -> StoreError:
    """Return the error for a cache that cannot be written or read; `folder` is that of the cache."""
    folder = folder or cache_folder()
    return StoreError(
        f"expected a cache that can be written at {folder}; {error.strerror} at {error.filename or folder}; free "
        f"space or correct the permissions there, or choose another folder with {CACHE_VARIABLE}"
    )


class DigestDiffers(Exception):
    """A file was fetched whose contents are not the expected ones."""


class Cache:
    """The files of one folder, as this process uses them."""

    def __init__(self, folder: Path, bound: int) -> None:
        self.folder, self.bound = folder, bound
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        """The descriptor of each folder of files that this process has locked, by their digest."""
        self._verified: set[Path] = set()
        # A process may open many stores, one after the other, and files are limited.
        weakref.finalize(self, _close, self._held).atexit = False

    def close(self) -> None:
        """Let go of all files, so that they may be removed; the end of the process does that, too."""
        with self._lock:
            _close(self._held)
            self._verified.clear()

    def used(self) -> int:
        """Return the bytes of all files."""
        return sum(_bytes_in(place) for place in self._places())

    def has(self, name: str, sha256: str) -> bool:
        """Return whether a file with this digest is here; it may be damaged."""
        return (self._place(sha256) / name).is_file()

    def path(self, name: str, sha256: str, size: int, fetch: Callable[[Path], None]) -> Path:
        """Return the path of a file with this digest, fetching it if it is not there or damaged.

        Args:
            name: the name that the file has in the cache.
            size: of the file, in bytes.
            fetch: writes the file to a path where none is yet.

        Raises:
            DigestDiffers: what was fetched has another digest.
            FileNotFoundError: `fetch` has found nothing.
            StoreError: the cache cannot be written.
        """
        path = self._place(sha256) / name
        if path in self._verified and path.exists():
            return path
        with _errors(self.folder):
            if not self._is_intact(path, sha256):
                self._make_room(size)
                self._fetch(path, sha256, fetch)
        with suppress(OSError):
            # It may be another user's, who lets others read.
            os.utime(path.parent)
        self._verified.add(path)
        return path

    def add(self, file: Path, sha256: str) -> None:
        """Move a file with this digest into the cache; it has been verified.

        Raises:
            StoreError: the cache cannot be written.
        """
        place = self._place(sha256)
        with _errors(self.folder):
            self._make_room(file.stat().st_size)
            make_folder(place)
            if self._hold(place, sha256):
                # From another file system, the move is a copy.
                beside = _beside(place / file.name)
                shutil.move(file, beside)
                beside.chmod(0o444)
                beside.replace(place / file.name)
                self._verified.add(place / file.name)

    def _is_intact(self, path: Path, sha256: str) -> bool:
        """Return whether the file is in the cache and undamaged; then it stays until this process ends."""
        if not path.is_file() or not self._hold(path.parent, sha256):
            return False
        with suppress(OSError):
            if sha256_of(path) == sha256:
                return True
            _log.warning("%s: expected SHA-256 %.12s…; fetching the file again", path, sha256)
        return False

    def _fetch(self, path: Path, sha256: str, fetch: Callable[[Path], None]) -> None:
        make_folder(path.parent)
        if not self._hold(path.parent, sha256):
            # It was removed in this moment, to make room.
            return self._fetch(path, sha256, fetch)
        beside = _beside(path)
        try:
            fetch(beside)
            found = sha256_of(beside)
            if found != sha256:
                raise DigestDiffers(f"expected SHA-256 {sha256:.12}…; found {found:.12}…")
            beside.chmod(0o444)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        return None

    def _hold(self, place: Path, sha256: str) -> bool:
        """Lock a folder until the process ends, so that others do not remove it; return whether it still exists."""
        with self._lock:
            if sha256 not in self._held and (descriptor := _locked(place)) is not None:
                self._held[sha256] = descriptor
                if len(self._held) > MOST_HELD:
                    os.close(self._held.pop(next(iter(self._held))))
            return sha256 in self._held

    def _make_room(self, size: int) -> None:
        """Remove the files used least recently that no process uses, until `size` more bytes are within the bound."""
        sizes = {place: _bytes_in(place) for place in sorted(self._places(), key=_last_used)}
        total = sum(sizes.values()) + size
        for place in sizes:
            if total <= self.bound:
                return
            if _remove_unused(place):
                total -= sizes[place]

    def _place(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    def _places(self) -> Iterator[Path]:
        return (place for place in self.folder.glob("??/*") if place.is_dir())


def _close(held: dict[str, int]) -> None:
    """Close all descriptors."""
    while held:
        # A forked child may have closed all that it was given.
        with suppress(OSError):
            os.close(held.popitem()[1])


@contextmanager
def _errors(folder: Path) -> Iterator[None]:
    """Turn an `OSError` about the cache into a `StoreError` with a remedy."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not Path(str(error.filename)).is_relative_to(folder):
            # It is what was to be fetched that is gone.
            raise
        raise unusable(error, folder) from error


def _last_used(place: Path) -> int:
    """Return when a folder was used last, in nanoseconds; 0 if another process has just removed it."""
    with suppress(FileNotFoundError):
        return place.stat().st_mtime_ns
    return 0


def _bytes_in(place: Path) -> int:
    """Return the bytes of the files in a folder, as far as they can be seen; another process may be removing it."""
    total = 0
    with suppress(FileNotFoundError, PermissionError):
        for file in place.iterdir():
            total += file.stat().st_size
    return total


def _locked(place: Path) -> int | None:
    """Return a descriptor that locks an existing folder, shared; None if it does not exist any more."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with suppress(FileNotFoundError):
        if os.path.samestat(place.stat(), os.fstat(descriptor)):
            return descriptor
    os.close(descriptor)
    return None


def _remove_unused(place: Path) -> bool:
    """Remove a folder that no process has locked; return whether it was removed."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        # Another user's.
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        doomed = place.with_name(f".{place.name}.{secrets.token_hex(4)}.removed")
        place.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
