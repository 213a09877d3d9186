"""`idxflow watch`: new archives in a folder start a retraining.

What is seen is said as a Prefect event; the deployment `retrain/inbox` has a trigger that acts on it, and any
automation can:

    idxflow.inbox.complete   resource `idxflow.inbox.<dataset>`, payload: dataset, dataset_file, source, files

A set of archives is complete when all four are there, none has changed between two looks, and each can be read to
its end. Each set is announced once: the ledger remembers the last one, also when the watcher is started again.
"""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.settings import store_root
from storage import catalog
from storage.catalog import Dataset
from storage.errors import ConfigError, FormatError, PrefectFailed
from storage.files import canonical
from storage.idx import Reader
from storage.ledger import Ledger
from storage.store import Store
from tasks.origins import Folder
from tasks.part import SourceFailed

EVENT = "idxflow.inbox.complete"
_ROWS = 8192

Files = dict[str, dict[str, Any]]
"""By file name: its size and when it was changed."""


@dataclass(frozen=True)
class Inbox:
    """A folder that archives of a data set arrive in."""

    folder: Path
    dataset: Dataset
    dataset_file: str | None

    def files(self) -> Files | None:
        """Return the four archives as they are now; None while one is missing."""
        found: Files = {}
        for spec in self.dataset.archives:
            try:
                path = Folder(self.folder).find(spec)
                state = path.stat()
            except (SourceFailed, OSError):
                return None
            found[path.name] = {"bytes": state.st_size, "changed_ns": state.st_mtime_ns}
        return found

    def check(self, files: Files) -> None:
        """Read each archive to its end.

        Raises:
            FormatError: one is cut, damaged, or no IDX file.
        """
        for name in files:
            with Reader(self.folder / name) as reader:
                for _ in reader.blocks(_ROWS):
                    pass


@dataclass(frozen=True)
class Wanted:
    """What `idxflow watch` was asked for."""

    folder: Path
    dataset: str | None = None
    dataset_file: Path | None = None
    every: float = 5
    """Seconds between two looks."""
    once: bool = False
    store: str | None = None


def watch_folder(wanted: Wanted) -> int:
    """Look again and again, announce each new complete set, and return the exit code; without `once`, never.

    Raises:
        ConfigError: the folder or the data set is wrong.
        PrefectFailed: with `once`, there is no server to tell.
    """
    once, every = wanted.once, wanted.every
    inbox = _inbox(wanted.folder, wanted.dataset, wanted.dataset_file)
    ledger = Ledger(Store(store_root(wanted.store)), inbox.dataset.name)
    if not once:
        print(f"watching {inbox.folder} for the archives of {inbox.dataset.name}, every {every:g} s; Ctrl-C ends it")
    watcher = _Watcher(inbox, ledger)
    while True:
        try:
            announced = watcher.look()
        except PrefectFailed as error:
            if once:
                raise
            # The set stays unannounced and is tried again.
            print(f"idxflow: {error}", file=sys.stderr, flush=True)
            announced = False
        if once and (announced or watcher.settled):
            return 0
        time.sleep(every if not once else min(every, 1))


def _inbox(folder: Path, dataset: str | None, dataset_file: Path | None) -> Inbox:
    if (dataset is None) == (dataset_file is None):
        raise ConfigError(
            "expected either --dataset or --dataset-file, to know what the archives are; found "
            + ("both" if dataset else "neither")
        )
    place = folder.expanduser().resolve()
    if not place.is_dir():
        raise ConfigError(f"expected a folder at {place}; there is none; make it, or name another")
    if dataset_file:
        path = dataset_file.expanduser().resolve()
        return Inbox(place, catalog.read(path), str(path))
    return Inbox(place, catalog.find(dataset or ""), None)


class _Watcher:
    """Looks at an inbox again and again."""

    def __init__(self, inbox: Inbox, ledger: Ledger) -> None:
        self._inbox = inbox
        self._ledger = ledger
        last = ledger.last("arrivals")
        self._announced = last["fingerprint"] if last else None
        self._before: Files | None = None
        self._refused: str | None = None
        self.settled = False
        """Whether there is nothing to wait for: no set, the set that was announced, or one that cannot be used."""

    def look(self) -> bool:
        """Look once; return whether a set was announced."""
        files = self._inbox.files()
        before, self._before = self._before, files
        mark = _fingerprint(self._inbox, files) if files else None
        self.settled = files is None or mark in (self._announced, self._refused)
        if files is None or mark is None or self.settled or files != before:
            return False
        try:
            self._inbox.check(files)
        except FormatError as error:
            # It may be that the copy has only stalled: it is looked at again when a file has changed.
            print(f"not complete yet: {error}", file=sys.stderr, flush=True)
            self._refused, self.settled = mark, True
            return False
        if self._inbox.files() != files:
            return False
        self._announce(files, mark)
        return True

    def _announce(self, files: Files, mark: str) -> None:
        inbox = self._inbox
        payload = {
            "dataset": inbox.dataset.name,
            "dataset_file": inbox.dataset_file or "",
            "source": str(inbox.folder),
            "files": files,
        }
        _emit(inbox.dataset.name, payload)
        self._ledger.append("arrivals", mark[:12], {**payload, "fingerprint": mark})
        self._announced = mark
        total = sum(file["bytes"] for file in files.values())
        print(f"{inbox.dataset.name}: {len(files)} new archives, {total:,} bytes, complete; announced", flush=True)


def _fingerprint(inbox: Inbox, files: Files) -> str:
    return hashlib.sha256(canonical([str(inbox.folder), files])).hexdigest()


def _emit(dataset: str, payload: dict[str, Any]) -> None:
    """Send the event, and be sure that the server has it.

    Raises:
        PrefectFailed: there is no server, or it does not take the event.
    """
    from prefect.events import Event, Resource
    from prefect.exceptions import PrefectHTTPStatusError

    from flows.service.client import found

    resource = Resource(
        {"prefect.resource.id": f"idxflow.inbox.{dataset}", "prefect.resource.name": f"inbox of {dataset}"}
    )
    event = Event(event=EVENT, resource=resource, payload=payload)
    with found() as client:
        try:
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
        except PrefectHTTPStatusError as error:
            raise PrefectFailed(
                f"expected the server to take the event {EVENT}; {error.response.status_code}"
            ) from error
