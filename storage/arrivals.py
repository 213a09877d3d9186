"""Sets of archives that have arrived in a folder: each is copied into the store before it is announced.

    <dataset>/0-inbox/arrivals/<arrival>/    a snapshot: the four archives as they were, and arrival.json
    <dataset>/ledger/arrivals/               the record of each, kept permanently

So the set that runs is the set that was announced, even if the folder changes in between. A set is identified by its
contents (`mark`). A snapshot is made in a partial folder, flushed to disk and renamed, and only then recorded: a
process killed in between leaves a snapshot that the next one records. It is removed once unneeded (`surplus`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.errors import DamagedEntry, SourceUnavailable
from storage.files import canonical, copy_file, flush, listed, locked, make_folder, read_json, sha256_of, write_json
from storage.ledger import Ledger, place
from storage.records import CUT_OFF
from storage.store import INBOX, LOCKS, Store, discard, store_errors

ARRIVALS = "arrivals"
ARRIVAL = r"^[0-9]{8}-[0-9]{6}-[0-9a-f]{8}$"
"""The form of an arrival's id: the time it was taken (UTC), and random digits."""
WELL = ("promoted", "kept", "unchanged")
"""The states of runs that completed the work for their set."""
_RECORD = "arrival.json"
_FICLONE = 0x40049409
"""ioctl_ficlone(2): the copy shares the blocks of the original until either is changed."""
_BLOCK = 1 << 20


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


def new_id() -> str:
    """Return a new id for a set taken now."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


class Arrivals:
    """The sets of one data set that have arrived."""

    def __init__(self, store: Store, dataset: str) -> None:
        self.store, self._dataset = store, dataset
        self._ledger = Ledger(store, dataset)
        self._folder = store.part(dataset, INBOX) / ARRIVALS
        # Records do not change: each is read once.
        self._known: dict[str, Arrival | None] = {}
        self._runs: dict[str, dict[str, Any]] = {}

    def folder(self, arrival: str) -> Path:
        """Return the folder of a set's snapshot, which need not exist."""
        return self._folder / arrival

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
        self._publish(partial, arrival)
        if not self.find(arrival.id):
            self._record(arrival)

    def snapshots(self) -> list[Path]:
        """Return the folders of all snapshots, oldest first."""
        with store_errors(self._folder):
            return listed(self._folder)

    def adopt(self, snapshot: Path) -> None:
        """Copy a snapshot of another store, unless this one has it; its record in the ledger is not written.

        Raises:
            DamagedEntry: a file of it is not what arrived.
            OSError: it cannot be written.
        """
        arrival = _described(snapshot)
        with self.partial() as partial:
            for file in arrival.files.values():
                if copy_file(snapshot / file.name, partial / file.name) != file.sha256:
                    raise DamagedEntry(f"{snapshot / file.name}: expected the file that arrived; found another")
            self._publish(partial, arrival)

    def is_lost(self, arrival: Arrival) -> bool:
        """Return whether a set that has not been run has lost its snapshot, as after removing a damaged one.

        Raises:
            DamagedEntry: a record of the ledger cannot be read.
        """
        return not self.folder(arrival.id).exists() and not self.run_of(arrival.id)

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
        if self.folder(arrival).exists():
            discard(self.folder(arrival))

    def surplus(self) -> list[Path]:
        """Return the snapshots that no run needs: a run of the set, or of a later set of its folder, has succeeded.

        Raises:
            DamagedEntry: a record of the ledger cannot be read.
        """
        snapshots = {path.name: path for path in listed(self._folder)}
        unseen, over, unneeded = set(snapshots), set[str](), list[Path]()
        for arrival in self._newest_first() if snapshots else ():
            if arrival.source not in over and (self.run_of(arrival.id) or {}).get("state") in WELL:
                over.add(arrival.source)
            if arrival.source in over and arrival.id in snapshots:
                unneeded.append(snapshots[arrival.id])
            unseen.discard(arrival.id)
            if not unseen:
                break
        return sorted(unneeded)

    def damage(self, contents: bool = True) -> Iterator[tuple[Path, str]]:
        """Yield each damaged snapshot with a description of the problem.

        The size of each file is checked, and its SHA-256 unless `contents` is False.
        """
        for path in listed(self._folder):
            try:
                for file in _described(path).files.values():
                    size = (path / file.name).stat().st_size
                    if size != file.bytes or (contents and sha256_of(path / file.name) != file.sha256):
                        raise DamagedEntry(f"{file.name} is not what arrived")
            except (OSError, ValueError, KeyError, TypeError, AttributeError, DamagedEntry) as error:
                yield path, str(error)

    def _publish(self, partial: Path, arrival: Arrival) -> None:
        write_json(partial / _RECORD, arrival.to_json())
        for path in partial.iterdir():
            path.chmod(0o444)
        flush(partial)
        os.rename(partial, self.folder(arrival.id))
        flush(self._folder)

    def _record(self, arrival: Arrival) -> None:
        self._ledger.append("arrivals", arrival.id, arrival.to_json())

    def _recover(self) -> None:
        """Remove abandoned partial snapshots, and record complete ones that were not recorded."""
        if not self._folder.is_dir():
            return
        for path in self._folder.glob(".*.partial"):
            shutil.rmtree(path)
        for path in listed(self._folder):
            if not self._ledger.find("arrivals", path.name):
                self._record(_described(path))

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


def _described(snapshot: Path) -> Arrival:
    arrival = Arrival.from_json(read_json(snapshot / _RECORD))
    if arrival.id != snapshot.name or not re.fullmatch(ARRIVAL, arrival.id):
        raise DamagedEntry(f"{_RECORD} describes {arrival.id}")
    return arrival
