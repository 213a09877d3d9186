"""`idxflow watch`: new archives in a folder start a retraining.

What is seen is said as a Prefect event; the deployment `retrain/inbox` has a trigger that acts on it, and any
automation can:

    idxflow.inbox.complete   resource `idxflow.inbox.<dataset>`, payload: dataset, dataset_file, source, files

A set of archives is complete when all four are there, none has changed between two looks, and each can be read to
its end. Each set is announced once: the ledger remembers the last one of each folder, for all watchers of it.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.settings import store_root
from storage import catalog
from storage.catalog import Dataset
from storage.errors import ConfigError, FormatError, PrefectFailed
from storage.files import canonical, locked
from storage.idx import Reader
from storage.ledger import Ledger
from storage.records import SPLITS
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
            FormatError: one is cut, damaged, or no IDX file; or only one of a pair has been replaced.
        """
        rows = {}
        for spec, name in zip(self.dataset.archives, files, strict=True):
            with Reader(self.folder / name) as reader:
                for _ in reader.blocks(_ROWS):
                    pass
                rows[spec.role] = math.prod(reader.header.shape[:1])
        for split in SPLITS:
            images, labels = rows[f"{split}-images"], rows[f"{split}-labels"]
            if images != labels:
                raise FormatError(
                    f"{self.folder}: expected as many {split} labels as images, found {labels:,} labels and "
                    f"{images:,} images; copy the other file, too"
                )


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
        FormatError: with `once`, an archive is cut, damaged, or no IDX file.
        PrefectFailed: with `once`, there is no server to tell.
    """
    inbox = _inbox(wanted.folder, wanted.dataset, wanted.dataset_file)
    watcher = _Watcher(inbox, Store(store_root(wanted.store)))
    if wanted.once:
        return _look_once(watcher, min(wanted.every, 1))
    name = inbox.dataset.name
    print(f"watching {inbox.folder} for the archives of {name}, every {wanted.every:g} s; Ctrl-C ends it", flush=True)
    said = ""
    while True:
        remark = ""
        try:
            watcher.look()
        except FormatError as error:
            # It may be that the copy has only stalled: it is looked at again when a file has changed.
            remark = f"not complete yet: {error}"
        except PrefectFailed as error:
            remark = f"{error}; tried again every {wanted.every:g} s"
        if remark not in ("", said):
            print(f"idxflow: {remark}", file=sys.stderr, flush=True)
        said = remark
        time.sleep(wanted.every)


def _look_once(watcher: _Watcher, pause: float) -> int:
    while not watcher.look():
        if watcher.settled:
            print(watcher.settled)
            break
        time.sleep(pause)
    return 0


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

    def __init__(self, inbox: Inbox, store: Store) -> None:
        self._inbox = inbox
        self._ledger = Ledger(store, inbox.dataset.name)
        self._lock = store.part(inbox.dataset.name, "locks") / "arrivals.lock"
        self._announced = self._last_announced()
        self._before: Files | None = None
        self._refused: str | None = None
        self._sound: str | None = None
        self.settled: str | None = None
        """Why there is nothing to wait for, in one sentence; None while there is."""

    def look(self) -> bool:
        """Look once; return whether a set was announced.

        Raises:
            FormatError: one of the archives, unchanged since the last look, cannot be read to its end.
            PrefectFailed: there is no server to tell. The set stays unannounced.
        """
        files = self._inbox.files()
        before, self._before = self._before, files
        mark = _fingerprint(self._inbox, files) if files else ""
        self.settled = self._nothing_to_do(files, mark)
        if files is None or self.settled or files != before or mark == self._refused:
            return False
        if mark != self._sound:
            self._check(files, mark)
        if self._inbox.files() != files:
            return False
        with locked(self._lock):
            # Another watcher may have been quicker.
            self._announced = self._last_announced()
            if mark == self._announced:
                return False
            self._announce(files, mark)
        return True

    def _check(self, files: Files, mark: str) -> None:
        try:
            self._inbox.check(files)
        except OSError:
            # Taken away or replaced meanwhile: the next look sees that.
            return
        except FormatError:
            self._refused = mark
            raise
        self._sound = mark

    def _nothing_to_do(self, files: Files | None, mark: str) -> str | None:
        name, folder = self._inbox.dataset.name, self._inbox.folder
        if files is None:
            return f"{name}: nothing to announce, the four archives are not all in {folder}"
        if mark == self._announced:
            return f"{name}: nothing to announce, the archives in {folder} have been announced"
        return None

    def _last_announced(self) -> str | None:
        """Return the fingerprint of the set of this folder that was announced last, by whichever watcher."""
        marks = [a["fingerprint"] for a in self._ledger.read("arrivals") if a["source"] == str(self._inbox.folder)]
        return marks[-1] if marks else None

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
    import httpx
    from prefect.events import Event, Resource

    from flows.service.client import found

    resource = Resource(
        {"prefect.resource.id": f"idxflow.inbox.{dataset}", "prefect.resource.name": f"inbox of {dataset}"}
    )
    event = Event(event=EVENT, resource=resource, payload=payload)
    with found() as client:
        try:
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
        except httpx.HTTPError as error:
            raise PrefectFailed(
                f"expected the server at {client.api_url} to take the event {EVENT}, found {type(error).__name__}"
            ) from error
