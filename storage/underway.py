"""Runs in progress: one file per run, which the run's process keeps locked as long as it lives.

    <dataset>/ledger/underway/<run>.json

The kernel releases the lock when the process ends, even if it is killed, runs out of memory or its machine fails. So
an unlocked file belongs to a run that could not record its end; the process that finds it records it (`abandoned`).
A run that has recorded its end removes its file, so the folder holds only runs in progress, even among thousands.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from storage.errors import StoreError
from storage.files import flush, listed, make_folder, read_json, sealed
from storage.ledger import Ledger
from storage.records import CUT_OFF
from storage.store import Store, store_errors

UNDER_WAY = "underway"


class Trace:
    """The file of one run in progress."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def end(self) -> None:
        """Remove the file of a run whose end is recorded."""
        with store_errors(self._path):
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock, as the end of the process does."""
        os.close(self._descriptor)


def begin(store: Store, dataset: str, run: str, values: Mapping[str, Any]) -> Trace:
    """Create and lock the file of a run, with the values needed to record its end if its process dies.

    Raises:
        OSError: it cannot be written.
    """
    path = folder(store, dataset) / f"{run}.json"
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        # Lock it before it gets its final name; otherwise another process could take the run for a dead one.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            stream.write(sealed({**values, "run": run}))
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, path)
        flush(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return Trace(path, descriptor)


def folder(store: Store, dataset: str) -> Path:
    """Return the folder of the files of runs in progress."""
    return store.part(dataset, "ledger") / UNDER_WAY


def abandoned(store: Store, dataset: str) -> Iterator[tuple[Trace, dict[str, Any]]]:
    """Yield the files of runs whose process is dead, each locked, so that only one process records the run's end.

    Raises:
        StoreError: the folder cannot be read.
    """
    with store_errors(store.dataset(dataset)):
        paths = listed(folder(store, dataset), ".json")
    for path in paths:
        with _locked_now(path) as descriptor:
            if descriptor is not None:
                yield Trace(path, descriptor), {**_values(path), "run": path.stem}


def was_cut_off(store: Store, dataset: str, ledger: Ledger) -> bool:
    """Return whether the newest run did not finish, so that the next one resumes from what it left.

    Raises:
        StoreError: the ledger cannot be read.
    """
    with store_errors(store.dataset(dataset)):
        if listed(folder(store, dataset), ".json"):
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
