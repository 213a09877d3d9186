"""Sets of archives that have arrived in a folder: each is copied into the store before it is announced.

    <dataset>/0-inbox/arrivals/<arrival>/    a snapshot: see `snapshots`
    <dataset>/ledger/arrivals/               the record of each, kept permanently

So the set that runs is the set that was announced, even if the folder changes in between. A set is identified by its
contents (`mark`). Its snapshot is complete before it is recorded: a process killed in between leaves one that the next
process records. It is removed once unneeded (`surplus`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.errors import DamagedEntry, SourceUnavailable
from storage.files import copy_file, locked, make_folder
from storage.ledger import Ledger, place
from storage.objects.cache import DigestDiffers
from storage.records import CUT_OFF
from storage.snapshots import ARRIVALS, Arrival, folder, snapshots
from storage.store import INBOX, LOCKS, Store, store_errors
from storage.upkeep import UNFINISHED, Leftover

WELL = ("promoted", "kept", "unchanged")
"""The states of runs that completed the work for their set."""
_FICLONE = 0x40049409
"""ioctl_ficlone(2): the copy shares the blocks of the original until either is changed."""
_BLOCK = 1 << 20


def new_id() -> str:
    """Return a new id for a set taken now."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


class Arrivals:
    """The sets of one data set that have arrived."""

    def __init__(self, store: Store, dataset: str) -> None:
        self.store, self._dataset = store, dataset
        self._ledger = Ledger(store, dataset)
        self._folder, self._snapshots = folder(store, dataset), snapshots(store, dataset)
        # Records do not change: each is read once.
        self._known: dict[str, Arrival | None] = {}
        self._runs: dict[str, dict[str, Any]] = {}

    def where(self, arrival: str) -> str:
        """Return the path or the address of a set's snapshot, which need not exist."""
        return self._snapshots.where(arrival)

    def fetched(self, arrival: str, role: str) -> Path:
        """Return an archive of a set, for a store elsewhere: through the cache of this machine.

        Raises:
            FileNotFoundError: there is no such set, or its snapshot is gone.
            DigestDiffers: the archive is not what arrived.
        """
        known = self.find(arrival)
        if known is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.where(arrival))
        file = known.files[role]
        key = f"{self._dataset}/{INBOX}/{ARRIVALS}/{arrival}/{file.name}"
        return self.store.file(key, file.sha256, file.bytes)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other watchers of this data set out while the block runs, after completing what a dead one began."""
        lock = self.store.part(self._dataset, LOCKS) / "arrivals.lock"
        with store_errors(self._folder), self.store.in_use(self._dataset), locked(lock):
            self._recover()
            yield

    @contextmanager
    def partial(self) -> Iterator[Path]:
        """Make a folder for a snapshot, which is removed unless it is added (`add`). Call it within `alone`."""
        folder = self._folder / f".{secrets.token_hex(4)}.partial"
        make_folder(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def add(self, partial: Path, arrival: Arrival) -> None:
        """Publish `partial` as the snapshot of a set, and record the set if it is new."""
        self._snapshots.publish(partial, arrival)
        if not self.find(arrival.id):
            self._record(arrival)

    def names(self) -> list[str]:
        """Return the ids of all sets whose snapshots are there, sorted."""
        with store_errors(self._folder):
            return self._snapshots.names()

    def adopt(self, other: Arrivals, arrival: str) -> None:
        """Copy a snapshot of another store, unless this one has it; its record in the ledger is not written.

        Raises:
            DamagedEntry: a file of it is not what arrived.
            OSError: it cannot be written.
        """
        if self._snapshots.exists(arrival):
            return
        described = other._snapshots.read(arrival)
        with self.partial() as partial:
            for role, file in described.files.items():
                try:
                    found = copy_file(other.fetched(arrival, role), partial / file.name)
                except DigestDiffers:
                    found = ""
                if found != file.sha256:
                    raise DamagedEntry(
                        f"{other.where(arrival)}/{file.name}: expected the file that arrived; found another; "
                        f"`{other.store.command('verify')}` says what to do"
                    )
            self._snapshots.publish(partial, described)

    def is_lost(self, arrival: Arrival) -> bool:
        """Return whether a set that has not been run has lost its snapshot, as after removing a damaged one.

        Raises:
            DamagedEntry: a record of the ledger cannot be read.
        """
        return not self._snapshots.exists(arrival.id) and not self.run_of(arrival.id)

    def find(self, arrival: str) -> Arrival | None:
        """Return a set by its id, or None.

        Raises:
            DamagedEntry: its record cannot be read.
        """
        values = self._ledger.find("arrivals", arrival)
        return Arrival.from_json(values) if values and "mark" in values else None

    def last(self, source: str) -> Arrival | None:
        """Return the newest set that arrived in a folder, or None.

        Raises:
            DamagedEntry: a record of the ledger cannot be read.
        """
        return next((arrival for arrival in self._newest_first() if arrival.source == source), None)

    def waiting(self, source: str) -> list[Arrival]:
        """Return the sets of a folder that arrived after the last set that was run, oldest first.

        Raises:
            DamagedEntry: a record of the ledger cannot be read.
        """
        arrivals: list[Arrival] = []
        for arrival in self._newest_first():
            if arrival.source == source:
                if self.run_of(arrival.id):
                    break
                arrivals.append(arrival)
        return arrivals[::-1]

    def run_of(self, arrival: str) -> dict[str, Any] | None:
        """Return the ledger's record of the newest finished run of a set, or None.

        Raises:
            DamagedEntry: a record of the ledger cannot be read.
        """
        if arrival not in self._runs:
            since = self._ledger.place_of("arrivals", arrival)
            # Runs of a set are newer than the set.
            names = [name for name in reversed(self._ledger.names("runs")) if since is not None and place(name) > since]
            runs = (self._ledger.record("runs", name) for name in names)
            ended = (run for run in runs if run.get("state") not in CUT_OFF)
            newest = next((run for run in ended if run.get("arrival") == arrival), None)
            if newest is None:
                return None
            self._runs[arrival] = newest
        return self._runs[arrival]

    def discard(self, arrival: str) -> None:
        """Remove the snapshot of a set."""
        self._snapshots.remove(arrival)

    def unfinished(self) -> list[Leftover]:
        """Return what watchers left in the store that ended while writing. Call it while no watcher takes a set."""
        return [self._snapshots.leftover(name, UNFINISHED) for name in self._snapshots.unfinished()]

    def surplus(self) -> list[Leftover]:
        """Return the snapshots that no run needs: a run of the set, or of a later set of its folder, has succeeded.

        Raises:
            DamagedEntry: a record of the ledger cannot be read.
        """
        names = set(self._snapshots.names())
        unseen, over, unneeded = set(names), set[str](), list[str]()
        for arrival in self._newest_first() if names else ():
            if arrival.source not in over and (self.run_of(arrival.id) or {}).get("state") in WELL:
                over.add(arrival.source)
            if arrival.source in over and arrival.id in names:
                unneeded.append(arrival.id)
            unseen.discard(arrival.id)
            if not unseen:
                break
        return [self._snapshots.leftover(name, "no run needs it") for name in sorted(unneeded)]

    def damage(self, contents: bool = True) -> Iterator[tuple[str, str]]:
        """Yield where each damaged snapshot is, with a description of the problem.

        The size of each file is checked, and its SHA-256 unless `contents` is False.
        """
        for name in self._snapshots.names():
            try:
                self._snapshots.check(name, contents)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, DamagedEntry) as error:
                yield self.where(name), str(error)

    def _record(self, arrival: Arrival) -> None:
        self._ledger.append("arrivals", arrival.id, arrival.to_json())

    def _recover(self) -> None:
        """Remove abandoned partial snapshots, and record complete ones that were not recorded."""
        if self._folder.is_dir():
            for path in self._folder.glob(".*.partial"):
                shutil.rmtree(path)
        for name in self._snapshots.names():
            if not self._ledger.find("arrivals", name):
                self._record(self._snapshots.read(name))

    def _newest_first(self) -> Iterator[Arrival]:
        """Yield the sets, skipping arrivals of earlier versions of idxflow, which have no snapshot."""
        for name in reversed(self._ledger.names("arrivals")):
            if name not in self._known:
                values = self._ledger.record("arrivals", name)
                self._known[name] = Arrival.from_json(values) if "mark" in values else None
            arrival = self._known[name]
            if arrival:
                yield arrival


def copied(descriptor: int, target: Path) -> None:
    """Copy an open file, as a reflink if the file system can. A hard link would change with its original.

    Raises:
        SourceUnavailable: the file cannot be read.
        OSError: the copy cannot be written.
    """
    with target.open("xb") as stream:
        if not _cloned(descriptor, stream.fileno()):
            while block := _read(descriptor, target.name):
                stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())


def _cloned(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        # Another file system, or one without reflinks.
        return False
    return True


def _read(descriptor: int, name: str) -> bytes:
    try:
        return os.read(descriptor, _BLOCK)
    except OSError as error:
        raise SourceUnavailable(f"{name}: expected to read all of it; {error.strerror}; copy it again") from error
