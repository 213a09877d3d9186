"""Runs in progress: one file per run, which the run's process keeps locked as long as it lives.

    <dataset>/ledger/underway/<run>.json

The kernel releases the lock when the process ends, even if it is killed, runs out of memory or its machine fails. So
an unlocked file belongs to a run that could not record its end; the process that finds it records it (`abandoned`).
A run that has recorded its end removes its file, so the folder holds only runs in progress, even among thousands.

In object storage the file is a lease (`storage.objects.leases`): there, a run whose lease has ended is gone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from storage.errors import StoreError
from storage.files import flush, listed, make_folder, read_json, sealed
from storage.ledger import Ledger
from storage.objects import sealed as sealed_json
from storage.objects.leases import Leases
from storage.records import CUT_OFF
from storage.store import Store, store_errors

UNDER_WAY = "underway"
_FOLDER = f"ledger/{UNDER_WAY}"


class Trace(Protocol):
    """The file of one run in progress."""

    def end(self) -> None:
        """Remove the file of a run whose end is recorded."""

    def close(self) -> None:
        """Stop saying that the run is alive, as the end of the process does."""


@dataclass(frozen=True)
class _LockedFile:
    path: Path
    descriptor: int

    def end(self) -> None:
        with store_errors(self.path):
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True)
class _Lease:
    leases: Leases
    key: str

    def end(self) -> None:
        self.leases.release(self.key)

    def close(self) -> None:
        self.leases.forget(self.key)


def begin(store: Store, dataset: str, run: str, values: Mapping[str, Any]) -> Trace:
    """Create and lock the file of a run, with the values needed to record its end if its process dies.

    Raises:
        OSError: it cannot be written.
        StoreError: likewise, in object storage.
    """
    values = {**values, "run": run}
    if store.leases:
        key = store.key(dataset, f"{_FOLDER}/{run}.json")
        store.leases.hold(key, values)
        return _Lease(store.leases, key)
    return _begin_file(folder(store, dataset) / f"{run}.json", values)


def _begin_file(path: Path, values: Mapping[str, Any]) -> Trace:
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        # Lock it before it gets its final name; otherwise another process could take the run for a dead one.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            stream.write(sealed(values))
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, path)
        flush(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return _LockedFile(path, descriptor)


def folder(store: Store, dataset: str) -> Path:
    """Return the folder of the files of runs in progress, for a store in a folder."""
    return store.part(dataset, "ledger") / UNDER_WAY


def abandoned(store: Store, dataset: str) -> Iterator[tuple[Trace, dict[str, Any]]]:
    """Yield the files of runs whose process is dead, each locked, so that only one process records the run's end.

    Raises:
        StoreError: the folder cannot be read.
    """
    if store.leases:
        yield from _ended_leases(store, store.leases, dataset)
        return
    with store_errors(store.dataset(dataset)):
        paths = listed(folder(store, dataset), ".json")
    for path in paths:
        with _locked_now(path) as descriptor:
            if descriptor is not None:
                yield _LockedFile(path, descriptor), {**_values(path), "run": path.stem}


def _ended_leases(store: Store, leases: Leases, dataset: str) -> Iterator[tuple[Trace, dict[str, Any]]]:
    for found in store.objects.list(store.key(dataset, _FOLDER)).objects:
        run, claim = found.name.removesuffix(".json"), f"{dataset}/claims/end-{found.name}"
        if leases.is_dead(found.key) and leases.acquire(claim):
            try:
                # Another process may have recorded its end meanwhile.
                with suppress(FileNotFoundError):
                    values = _read(store, found.key)
                    yield _Lease(leases, found.key), {**values, "run": run}
            finally:
                leases.release(claim)


def _read(store: Store, key: str) -> dict[str, Any]:
    try:
        return sealed_json.read(store.objects, key)
    except ValueError:
        return {}


def was_cut_off(store: Store, dataset: str, ledger: Ledger) -> bool:
    """Return whether the newest run did not finish, so that the next one resumes from what it left.

    Raises:
        StoreError: the ledger cannot be read.
    """
    with store_errors(store.dataset(dataset)):
        if store.objects.list(store.key(dataset, _FOLDER)).objects:
            return True
    newest = ledger.last("runs")
    return bool(newest and newest.get("state") in CUT_OFF)


@contextmanager
def _locked_now(path: Path) -> Iterator[int | None]:
    """Lock a file without waiting; yield None if another process holds the lock, or the file no longer exists."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise StoreError(f"expected to read {path}; {error.strerror}; correct its permissions, or remove it") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.path.samestat(path.stat(), os.fstat(descriptor))
    except (BlockingIOError, FileNotFoundError):
        mine = False
    try:
        yield descriptor if mine else None
    finally:
        with suppress(OSError):
            os.close(descriptor)


def _values(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError):
        # The machine may have lost power. The file name still shows that there was a run.
        return {}
