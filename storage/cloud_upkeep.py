"""What `verify` and `gc` need of a data set in object storage (`storage.upkeep`), in few requests.

A folder of a step is listed once. Sizes and which files there are come from that listing; only descriptions are read,
and the contents if these are to be checked.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice

from storage.cloud_store import (
    CLAIMS,
    COLLECTING,
    USERS,
    CloudStore,
    StoredFile,
    attempt_of,
    files_of,
)
from storage.errors import DamagedEntry
from storage.formats import members
from storage.objects import sealed
from storage.objects.protocol import Found
from storage.store import ENTRY, check_identity
from storage.upkeep import (
    ENDED,
    STEP_FOLDERS,
    UNFINISHED,
    CheckedEntry,
    EntryName,
    FolderUpkeep,
    InUse,
    Leftover,
    Obstacle,
    StoredEntry,
)

_AT_ONCE = 8
"""Entries checked at once: most of the time is spent waiting for answers."""
_PIECE = 8 << 20
"""Bytes of a file that are read at once."""
_BATCH = 200
"""Objects removed by one request: the lease is checked before each, so it must not take long."""


@dataclass
class _Listed:
    """The objects of one entry."""

    description: Found | None = None
    attempts: dict[str, list[Found]] = field(default_factory=dict)
    """By name; what is in the place of an attempt, or of an entry (then the name is empty), counts as one."""

    @property
    def all(self) -> Iterator[Found]:
        """The description first."""
        return chain([self.description] if self.description else [], *self.attempts.values())

    def add(self, found: Found, inner: Sequence[str]) -> None:
        """Add an object; `inner` is its key below that of the entry, in parts."""
        if inner == [ENTRY]:
            self.description = found
        else:
            self.attempts.setdefault(inner[0] if inner else "", []).append(found)


class CloudUpkeep:
    """The entries of one data set in object storage, and what this machine's working folder has of them."""

    def __init__(self, store: CloudStore, dataset: str) -> None:
        self._dataset = dataset
        self._objects, self._leases = store.objects, store.leases
        self._here = FolderUpkeep(store, dataset)
        self._flag = f"{dataset}/{COLLECTING}/{secrets.token_hex(8)}.json"
        self._sizes: dict[EntryName, int] = {}

    def obstacles(self) -> Iterator[Obstacle]:
        """Nothing: object storage has no folders, so nothing is in the place of one."""
        return iter(())

    def checked(self, contents: bool) -> Iterator[CheckedEntry]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                yield from filter(None, pool.map(partial(self._checked, contents), self._listed().items()))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def entries(self) -> list[StoredEntry]:
        listed = {name: objects for name, objects in self._listed().items() if objects.description}
        self._sizes = {name: sum(found.size for found in objects.all) for name, objects in listed.items()}
        return [
            StoredEntry(name, self._objects.where(self._key(name)), tuple(found.key for found in objects.all))
            for name, objects in listed.items()
        ]

    def size(self, entry: StoredEntry) -> int:
        return self._sizes[entry.name]

    def members(self, entry: StoredEntry) -> list[str]:
        # Those of attempts that nobody publishes, too: with them, more is kept, and never less.
        lists = [key for key in entry.keys if key.rpartition("/")[2] == members.MEMBERS]
        return [member for key in lists for member in self._members(key)]

    def leftovers(self) -> list[Leftover]:
        # Before the listing: if that takes long, objects look younger than they are, and never the reverse.
        oldest_needed = self._objects.now() - self._leases.life
        unneeded = (
            Leftover(
                self._objects.where(place), UNFINISHED, sum(f.size for f in found), keys=tuple(f.key for f in found)
            )
            for name, objects in self._listed().items()
            for place, found in self._unneeded(name, objects).items()
            if max(f.modified for f in found) < oldest_needed
        )
        dead = (
            Leftover(self._objects.where(found.key), ENDED, found.size, keys=(found.key,))
            for folder in (USERS, COLLECTING, CLAIMS)
            for found in self._leases.survey(f"{self._dataset}/{folder}").dead
        )
        return [*self._here.leftovers(), *unneeded, *dead]

    @contextmanager
    def unused(self) -> Iterator[None]:
        with self._here.unused():
            self._look_for_users()
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._here.alone():
            # The flag first: a run does the reverse, so that at least one of the two sees the other.
            self._leases.hold(self._flag)
            try:
                self._look_for_users()
                yield
            finally:
                self._leases.release(self._flag)

    def remove(self, entries: Iterable[StoredEntry], leftovers: Iterable[Leftover]) -> None:
        entries, leftovers = [*entries], [*leftovers]
        # All descriptions first: whatever ends this, nobody finds an entry without its files.
        self._delete(entry.keys[0] for entry in entries)
        self._delete(key for entry in entries for key in entry.keys[1:])
        self._delete(key for leftover in leftovers for key in leftover.keys)
        self._here.remove((), leftovers)

    def _look_for_users(self) -> None:
        if self._leases.survey(f"{self._dataset}/{USERS}").living:
            raise InUse

    def _delete(self, keys: Iterator[str]) -> None:
        while batch := [*islice(keys, _BATCH)]:
            # After a pause, or an answer that came late, a run may have begun that uses them.
            self._objects.delete(batch, partial(self._leases.check, self._flag))

    def _listed(self) -> dict[EntryName, _Listed]:
        listed: dict[EntryName, _Listed] = {}
        for folder in STEP_FOLDERS:
            for found in self._objects.walk(f"{self._dataset}/{folder}"):
                key, *inner = found.key.split("/")[2:]
                listed.setdefault(EntryName(folder, key), _Listed()).add(found, inner)
        return listed

    def _key(self, name: EntryName) -> str:
        return f"{self._dataset}/{name.folder}/{name.key}"

    def _checked(self, contents: bool, listed: tuple[EntryName, _Listed]) -> CheckedEntry | None:
        """Return an entry with what is wrong with it; None if it is none, or none any more."""
        name, objects = listed
        entry = self._read(name, objects, contents) if objects.description else None
        if entry and entry.problem:
            # A run may have published or mended it while the folder was being listed.
            objects = _Listed()
            for found in self._objects.walk(self._key(name)):
                objects.add(found, found.key.split("/")[3:])
            entry = self._read(name, objects, contents)
        return entry

    def _read(self, name: EntryName, objects: _Listed, contents: bool) -> CheckedEntry | None:
        key = self._key(name)
        where = self._objects.where(key)
        try:
            described = sealed.read(self._objects, f"{key}/{ENTRY}")
            check_identity((self._dataset, name.folder, name.key), described)
            attempt, files = attempt_of(described), files_of(described)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return CheckedEntry(name, where, {}, f"{where}/{ENTRY} cannot be read ({error})")
        sizes = {found.name: found.size for found in objects.attempts.get(attempt, ())}
        problems = (self._wrong(f"{key}/{attempt}/{file}", sizes.get(file), files[file], contents) for file in files)
        if problem := next(filter(None, problems), ""):
            return CheckedEntry(name, where, described, problem)
        if others := sorted(sizes.keys() - files.keys()):
            problem = f"{where}/{attempt}: expected the files of {ENTRY}; found {', '.join(others)} as well"
            return CheckedEntry(name, where, described, problem, "remove what no entry lists")
        lists = [f"{key}/{attempt}/{file}" for file in files if file == members.MEMBERS]
        try:
            listed = tuple(member for one in lists for member in self._members(one))
        except DamagedEntry as error:
            return CheckedEntry(name, where, described, str(error))
        return CheckedEntry(name, where, described, members=listed)

    def _members(self, key: str) -> list[str]:
        return members.keys_in(self._objects.get(key), self._objects.where(key))

    def _wrong(self, key: str, size: int | None, file: StoredFile, contents: bool) -> str:
        """Say what is wrong with a file of an entry, of which the listing gave the size; empty if nothing is."""
        where = self._objects.where(key)
        if size != file.bytes:
            actual = "no such object" if size is None else f"{size:,}"
            return f"{where}: expected {file.bytes:,} bytes; found {actual}"
        try:
            digest = self._digest(key, size) if contents else file.sha256
        except FileNotFoundError:
            return f"{where}: expected {file.bytes:,} bytes; found no such object"
        return "" if digest == file.sha256 else f"{where}: expected SHA-256 {file.sha256:.12}…; found {digest:.12}…"

    def _digest(self, key: str, size: int) -> str:
        digest = hashlib.sha256()
        for start in range(0, size, _PIECE):
            digest.update(self._objects.range(key, start, min(start + _PIECE, size)))
        return digest.hexdigest()

    def _unneeded(self, name: EntryName, objects: _Listed) -> dict[str, list[Found]]:
        """Return the attempts that no entry publishes, by key."""
        published = ""
        if objects.description:
            # With a single attempt, it is that one: this saves reading every description.
            if len(objects.attempts) < 2:
                return {}
            try:
                published = attempt_of(sealed.read(self._objects, objects.description.key))
            except (FileNotFoundError, ValueError, KeyError):
                # A run will make it again.
                return {}
        key = self._key(name)
        return {
            f"{key}/{attempt}" if attempt else key: found
            for attempt, found in objects.attempts.items()
            if attempt != published
        }
