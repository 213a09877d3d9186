"""The snapshots of sets of archives that have arrived (`storage.arrivals`): the archives as they were.

    <dataset>/0-inbox/arrivals/<arrival>/<file>          each archive, under the name with which it arrived
    <dataset>/0-inbox/arrivals/<arrival>/arrival.json    the set

In a folder, a snapshot is made in a partial folder, flushed to disk and renamed. In object storage arrival.json is
written last and removed first: only then the snapshot exists.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from storage.cloud_store import CloudStore
from storage.errors import DamagedEntry
from storage.files import canonical, flush, listed, read_json, sha256_of, write_json
from storage.objects import sealed
from storage.objects.protocol import Objects
from storage.store import INBOX, Store, discard
from storage.upkeep import Leftover, bytes_of

ARRIVALS = "arrivals"
ARRIVAL = r"^[0-9]{8}-[0-9]{6}-[0-9a-f]{8}$"
"""The form of an arrival's id: the time it was taken (UTC), and random digits."""
_RECORD = "arrival.json"
_BLOCK = 8 << 20


@dataclass(frozen=True)
class ArrivedFile:
    """One archive of a set."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Arrival:
    """One set of archives as it was when the snapshot was taken."""

    id: str
    dataset: str
    dataset_file: str | None
    """The manifest named when the watch was started; None if the data set is in the catalog."""
    source: str
    """The folder in which it arrived."""
    files: Mapping[str, ArrivedFile]
    """By role."""

    @property
    def mark(self) -> str:
        """The digest of the set's contents, which identifies it."""
        return mark_of(self.dataset, self.files)

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        return {**values, "arrival": values.pop("id"), "mark": self.mark}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Arrival:
        files = {role: ArrivedFile(f["name"], f["bytes"], f["sha256"]) for role, f in values["files"].items()}
        return Arrival(values["arrival"], values["dataset"], values["dataset_file"], values["source"], files)


def mark_of(dataset: str, files: Mapping[str, ArrivedFile]) -> str:
    """Return the digest of a set's contents."""
    return hashlib.sha256(canonical([dataset, {role: file.sha256 for role, file in files.items()}])).hexdigest()


class Snapshots(Protocol):
    """The snapshots of one data set, by the ids of the sets."""

    def where(self, arrival: str) -> str:
        """Return the path or the address of a snapshot, which need not exist."""

    def exists(self, arrival: str) -> bool:
        """Return whether a snapshot is there."""

    def names(self) -> list[str]:
        """Return all ids, sorted."""

    def unfinished(self) -> list[str]:
        """Return the ids of what watchers left that ended while writing; call it while none writes."""

    def publish(self, partial: Path, arrival: Arrival) -> None:
        """Make the files in a folder the snapshot of a set."""

    def read(self, arrival: str) -> Arrival:
        """Return the set of a snapshot.

        Raises:
            DamagedEntry, ValueError, LookupError, TypeError, AttributeError: its description is not that of the set.
            FileNotFoundError: there is no snapshot.
        """

    def check(self, arrival: str, contents: bool) -> None:
        """Check the sizes of the archives, and their SHA-256 unless `contents` is False.

        Raises:
            DamagedEntry: one is not what arrived.
            Exception: as for `read`.
        """

    def remove(self, arrival: str) -> None:
        """Remove a snapshot, if it is there."""

    def leftover(self, arrival: str, why: str) -> Leftover:
        """Return a snapshot, complete or not, as something to be removed."""


def snapshots(store: Store, dataset: str) -> Snapshots:
    """Return the snapshots of a data set."""
    return _InObjects(store, dataset) if isinstance(store, CloudStore) else _InFolder(store, dataset)


def folder(store: Store, dataset: str) -> Path:
    """Return the folder of the snapshots, and of what is unfinished: for a store elsewhere, only of this."""
    return store.part(dataset, INBOX) / ARRIVALS


class _InFolder:
    def __init__(self, store: Store, dataset: str) -> None:
        self._folder = folder(store, dataset)

    def where(self, arrival: str) -> str:
        return str(self._folder / arrival)

    def exists(self, arrival: str) -> bool:
        return (self._folder / arrival).exists()

    def names(self) -> list[str]:
        return [path.name for path in listed(self._folder)]

    def unfinished(self) -> list[str]:
        # They are in hidden folders, which the next watcher removes.
        return []

    def publish(self, partial: Path, arrival: Arrival) -> None:
        write_json(partial / _RECORD, arrival.to_json())
        for path in partial.iterdir():
            path.chmod(0o444)
        flush(partial)
        os.rename(partial, self._folder / arrival.id)
        flush(self._folder)

    def read(self, arrival: str) -> Arrival:
        return _checked(arrival, read_json(self._folder / arrival / _RECORD))

    def check(self, arrival: str, contents: bool) -> None:
        for file in self.read(arrival).files.values():
            path = self._folder / arrival / file.name
            if path.stat().st_size != file.bytes or (contents and sha256_of(path) != file.sha256):
                raise DamagedEntry(f"{file.name} is not what arrived")

    def remove(self, arrival: str) -> None:
        if self.exists(arrival):
            discard(self._folder / arrival)

    def leftover(self, arrival: str, why: str) -> Leftover:
        path = self._folder / arrival
        return Leftover(str(path), why, bytes_of(path), path)


class _InObjects:
    def __init__(self, store: CloudStore, dataset: str) -> None:
        self._store, self._objects, self._dataset = store, store.objects, dataset
        self._folder = f"{dataset}/{INBOX}/{ARRIVALS}"

    def where(self, arrival: str) -> str:
        return self._objects.where(f"{self._folder}/{arrival}")

    def exists(self, arrival: str) -> bool:
        try:
            self._objects.get(f"{self._folder}/{arrival}/{_RECORD}", 1)
        except FileNotFoundError:
            return False
        return True

    def names(self) -> list[str]:
        return sorted(arrival for arrival, files in self._found().items() if _RECORD in files)

    def unfinished(self) -> list[str]:
        return sorted(arrival for arrival, files in self._found().items() if _RECORD not in files)

    def publish(self, partial: Path, arrival: Arrival) -> None:
        place = f"{self._folder}/{arrival.id}"
        for file in arrival.files.values():
            self._objects.upload(f"{place}/{file.name}", partial / file.name)
        # `gc` may have removed what looked as if its watcher had ended.
        self._store.check_in_use(self._dataset)
        sealed.write(self._objects, f"{place}/{_RECORD}", arrival.to_json())
        # A worker of this machine need not fetch them.
        for file in arrival.files.values():
            self._store.cache.add(partial / file.name, file.sha256)

    def read(self, arrival: str) -> Arrival:
        return _checked(arrival, sealed.read(self._objects, f"{self._folder}/{arrival}/{_RECORD}"))

    def check(self, arrival: str, contents: bool) -> None:
        files = self.read(arrival).files.values()
        sizes = {found.name: found.size for found in self._objects.list(f"{self._folder}/{arrival}").objects}
        for file in files:
            key = f"{self._folder}/{arrival}/{file.name}"
            if sizes.get(file.name) != file.bytes or (contents and _sha256(self._objects, key) != file.sha256):
                raise DamagedEntry(f"{file.name} is not what arrived")

    def remove(self, arrival: str) -> None:
        place = f"{self._folder}/{arrival}"
        self._objects.delete([f"{place}/{_RECORD}"])
        self._objects.delete([found.key for found in self._objects.walk(place)])

    def leftover(self, arrival: str, why: str) -> Leftover:
        place = f"{self._folder}/{arrival}"
        found = sorted(self._objects.walk(place), key=lambda each: each.name != _RECORD)
        size = sum(each.size for each in found)
        return Leftover(self._objects.where(place), why, size, keys=tuple(each.key for each in found))

    def _found(self) -> dict[str, set[str]]:
        """Return the names of the objects of each snapshot."""
        found: dict[str, set[str]] = {}
        for each in self._objects.walk(self._folder):
            arrival, _, name = each.key.removeprefix(f"{self._folder}/").partition("/")
            found.setdefault(arrival, set()).add(name)
        return found


def _checked(arrival: str, values: Mapping[str, Any]) -> Arrival:
    described = Arrival.from_json(values)
    if described.id != arrival or not re.fullmatch(ARRIVAL, described.id):
        raise DamagedEntry(f"{_RECORD} describes {described.id}")
    return described


def _sha256(objects: Objects, key: str) -> str:
    digest, start = hashlib.sha256(), 0
    while block := objects.range(key, start, start + _BLOCK):
        digest.update(block)
        start += len(block)
    return digest.hexdigest()
