"""What `verify` and `gc` need of a data set: its entries and what is left over, listed, checked and removed.

`FolderUpkeep` does it for a store in a folder; `storage.cloud_upkeep` for one in object storage.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from storage.errors import IdxflowError
from storage.files import kind_of, listed, locked, read_json
from storage.formats import members
from storage.records import FolderEntry
from storage.store import ENTRY, FOLDERS, IN_USE, INBOX, LOCKS, discard, read_entry, store_errors

if TYPE_CHECKING:
    from storage.store import Store

STEP_FOLDERS = tuple(dict.fromkeys(FOLDERS.values()))
"""The folders of entries; two steps may share one."""
INNER_FOLDERS = (
    *("registry/versions", "registry/retired"),
    *(
        "ledger/runs",
        "ledger/decisions",
        "ledger/arrivals",
        "ledger/studies",
        "ledger/drifts",
        "ledger/underway",
    ),
)
"""The folders in folders of a data set, without those of entries and those that come and go."""
_PARTS = (*STEP_FOLDERS, INBOX, "registry", "ledger", LOCKS)
UNFINISHED = "a run ended while writing it"
ENDED = "a process ended without removing it"
_MOVE_LINKED = "move what it points to into its place"
_MOVE_AWAY = "move it away, and restore the folder from a backup if it held anything"


class InUse(Exception):
    """A run uses the data set. Never shown to people."""


@dataclass(frozen=True)
class EntryName:
    """Which entry of a data set it is."""

    folder: str
    """Of its step."""
    key: str


@dataclass(frozen=True)
class StoredEntry:
    """An entry as listed: nothing was read."""

    name: EntryName
    where: str
    """Its path or address."""
    keys: tuple[str, ...] = field(default=(), repr=False)
    """Its objects in the store, its description first; none if it is a folder."""


@dataclass(frozen=True)
class CheckedEntry:
    """An entry that was read."""

    name: EntryName
    where: str
    described: Mapping[str, Any]
    """`entry.json`; empty if that cannot be read."""
    problem: str = ""
    """Empty if it is intact."""
    remedy: str = ""
    """If it is not that for any damaged entry of its step."""
    members: tuple[str, ...] = ()
    """The keys of the entries that it lists (`storage.formats.members`)."""


@dataclass(frozen=True)
class Obstacle:
    """Something in the place of a folder."""

    where: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class Leftover:
    """Something that nothing looks for, so it may be removed: in the store, or on this machine."""

    where: str
    problem: str
    bytes: int
    path: Path | None = None
    """On this machine."""
    keys: tuple[str, ...] = field(default=(), repr=False)
    """Its objects in the store."""


class Upkeep(Protocol):
    """The entries of one data set, as `verify` and `gc` see them."""

    def obstacles(self) -> Iterator[Obstacle]:
        """Yield everything that is in the place of a folder; nothing else can be checked then."""

    def checked(self, contents: bool) -> Iterator[CheckedEntry]:
        """Read every entry, its size, and its contents unless `contents` is False. Call it while the set is in use."""

    def entries(self) -> list[StoredEntry]:
        """Return every entry, complete or damaged."""

    def size(self, entry: StoredEntry) -> int:
        """Return the bytes of an entry that `entries` has returned."""

    def members(self, entry: StoredEntry) -> list[str]:
        """Return the keys of the entries that an entry of `entries` lists; mostly none.

        Raises:
            DamagedEntry: its list cannot be read.
        """

    def leftovers(self) -> list[Leftover]:
        """Return what runs that are gone have left. Call it while `unused` or `alone`."""

    def unused(self) -> AbstractContextManager[None]:
        """Check that no run uses the data set, and keep runs of this machine from that for the block: keep it short.

        Raises:
            InUse: a run does.
        """

    def alone(self) -> AbstractContextManager[None]:
        """Keep all runs from using the data set while the block runs.

        Raises:
            InUse: a run does.
        """

    def remove(self, entries: Iterable[StoredEntry], leftovers: Iterable[Leftover]) -> None:
        """Remove entries and what is left over. Call it while `alone`.

        Raises:
            OSError: something cannot be removed.
            StoreError: likewise, in object storage; or this process was paused for so long that runs may have begun.
        """


class FolderUpkeep:
    """The entries of one data set in a folder; for a store in object storage, in the working folder of this machine."""

    def __init__(self, store: Store, dataset: str) -> None:
        self._store, self._dataset = store, dataset
        self._folder = store.dataset(dataset)

    def obstacles(self) -> Iterator[Obstacle]:
        places = [self._folder / part for part in ("", *_PARTS)]
        inner = (self._folder / name for name in INNER_FOLDERS)
        for path in (*places, *(place for place in inner if is_folder(place.parent))):
            if is_folder(path):
                continue
            if path.is_symlink():
                yield Obstacle(str(path), "expected a folder; found a symbolic link", _MOVE_LINKED)
            else:
                yield Obstacle(str(path), f"expected a folder; found {kind_of(path)}", _MOVE_AWAY)

    def checked(self, contents: bool) -> Iterator[CheckedEntry]:
        for path in self._paths():
            name = EntryName(path.parent.name, path.name)
            try:
                described = read_entry(path, contents)
                yield CheckedEntry(name, str(path), described, members=tuple(_listed(path)))
            except IdxflowError as error:
                yield CheckedEntry(name, str(path), _described(path), str(error))

    def entries(self) -> list[StoredEntry]:
        return [StoredEntry(EntryName(path.parent.name, path.name), str(path)) for path in self._paths()]

    def size(self, entry: StoredEntry) -> int:
        return bytes_of(self._path(entry.name))

    def members(self, entry: StoredEntry) -> list[str]:
        return _listed(self._path(entry.name))

    def leftovers(self) -> list[Leftover]:
        places = (self._folder / part for part in ("", *_PARTS, *INNER_FOLDERS, f"{INBOX}/arrivals"))
        paths = (path for place in places if place.is_dir() for path in place.iterdir() if path.name[0] == ".")
        return [Leftover(str(path), UNFINISHED, bytes_of(path), path) for path in sorted(paths)]

    @contextmanager
    def unused(self) -> Iterator[None]:
        lock = self._store.part(self._dataset, LOCKS) / IN_USE
        with ExitStack() as held:
            # In a read-only store, which cannot be locked, no process uses them.
            if lock.exists() and os.access(lock, os.W_OK):
                held.enter_context(locked(lock, _give_up))
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        lock = self._store.part(self._dataset, LOCKS) / IN_USE
        with store_errors(lock), locked(lock, _give_up):
            yield

    def remove(self, entries: Iterable[StoredEntry], leftovers: Iterable[Leftover]) -> None:
        for entry in entries:
            discard(self._path(entry.name))
        for path in (leftover.path for leftover in leftovers if leftover.path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        # Locks that killed runs left; no run holds one now. The few locks for the whole data set stay.
        for path in self._store.part(self._dataset, LOCKS).glob("*.lock"):
            if path.name.partition("-")[0] in FOLDERS:
                path.unlink()

    def _path(self, name: EntryName) -> Path:
        return self._store.part(self._dataset, name.folder) / name.key

    def _paths(self) -> Iterator[Path]:
        for part in STEP_FOLDERS:
            yield from listed(self._store.part(self._dataset, part))


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder or does not exist."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True


def bytes_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; links are not followed."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


def _listed(folder: Path) -> list[str]:
    path = folder / members.MEMBERS
    return members.keys(FolderEntry(folder)) if path.exists() else []


def _give_up() -> None:
    raise InUse


def _described(folder: Path) -> dict[str, Any]:
    """Return `entry.json` of a damaged entry, if that at least is intact."""
    try:
        return read_json(folder / ENTRY)
    except (OSError, ValueError):
        return {}
