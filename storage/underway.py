"""Runs that are under way: a file for each, which its process keeps locked for as long as it lives.

    <dataset>/ledger/underway/<run>.json

The kernel lets go of the lock when the process ends, however it ends: killed, out of memory, with its machine. So a
file that nobody has locked is of a run that could not record how it ended; whoever finds it does (`abandoned`).
A run that has recorded its end removes its file. In a store of thousands of runs, these are the few that are under way.
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
    """The file of one run that is under way."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def end(self) -> None:
        """The run's end is recorded: remove its file."""
        with store_errors(self._path):
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the lock, as the end of the process does."""
        os.close(self._descriptor)


def begin(store: Store, dataset: str, run: str, values: Mapping[str, Any]) -> Trace:
    """Make and lock the file of a run, with what whoever finds it needs to say what became of it.

    Raises:
        OSError: it cannot be written.
    """
    path = folder(store, dataset) / f"{run}.json"
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        # Locked before it bears its name: else somebody would take it for that of a run whose process is gone.
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
    """Return the folder of these files."""
    return store.part(dataset, "ledger") / UNDER_WAY


def abandoned(store: Store, dataset: str) -> Iterator[tuple[Trace, dict[str, Any]]]:
    """Yield the files of runs whose process is gone, each locked, so that one process alone records its end.

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
    """Return whether the newest run did not come to its end, so that the next one resumes from what it left.

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
    """Lock a file if nobody has it; None where somebody does, or it is gone."""
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
        # Of a machine that lost power, perhaps. That there was a run is known by the name.
        return {}
