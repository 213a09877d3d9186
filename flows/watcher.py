"""Retrain on new archives in a folder, for `idxflow watch`.

Each poll of the folder does two things, and a failure of one does not stop the other:

- A set that is complete and unchanged since the previous poll is copied into the store and recorded
  (`storage.arrivals`).
- Each recorded set gets its flow run, in order of arrival (`flows.arrival_runs`).

A set has been announced when the server has its run. Until the ledger has a run of it, each poll asks the server for
that run again, and creates it again if it is missing: the server may have been down, or have lost its database.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flows import arrival_runs, datasets
from flows.inbox import ArrivalFolder, Contents
from flows.interruption import interruptible
from flows.terminal.output import print_line, remark
from storage.arrivals import WELL, Arrivals, new_id
from storage.datasets import catalog
from storage.errors import ConfigError, DataRefused, IdxflowError, PrefectFailed, StoreError
from storage.files import kind_of
from storage.objects.cache import option_of
from storage.opening import open_store
from storage.snapshots import Arrival, mark_of
from storage.store import Store


@dataclass(frozen=True)
class WatchOptions:
    """Which folder to watch, for which archives, and how."""

    folder: Path
    dataset: str | None = None
    dataset_file: Path | None = None
    every: float = 5
    """Polling interval in seconds."""
    once: bool = False
    marker: str | None = None
    store: str | None = None


def watch_folder(options: WatchOptions) -> int:
    """Retrain on each new complete set in a folder; return the exit code with `once`, otherwise never return.

    Raises:
        ConfigError: the folder, the data set or the marker is wrong.
        DataRefused: with `once`, an archive is truncated, damaged, not a file or not an IDX file.
        SourceUnavailable: with `once`, the folder or an archive cannot be read.
        PrefectFailed: with `once`, no server can be reached.
        StoreError: with `once`, the store cannot be written.
    """
    inbox = _inbox(options)
    watcher = _Watcher(inbox, open_store(options.store))
    with interruptible() as interruptions:
        poll = partial(_poll, watcher, interruptions)
        if options.once:
            return _poll_until_unchanged(watcher, poll, min(options.every, 1))
        name = inbox.dataset.name
        _print(f"watching {inbox.folder} for the archives of {name}, every {options.every:g} s; Ctrl-C stops it")
        shown: set[str] = set()
        while True:
            remarks = [_remark(problem, options.every) for problem in poll()]
            for text in remarks:
                if text not in shown:
                    remark(text)
            shown = set(remarks)
            time.sleep(options.every)


def _poll(watcher: _Watcher, interruptions: list[KeyboardInterrupt]) -> list[IdxflowError]:
    """Poll once; return the problems. An interruption that a library ignored meanwhile is raised again."""
    problems = watcher.poll()
    if interruptions:
        raise interruptions[0]
    return problems


def _poll_until_unchanged(watcher: _Watcher, poll: Callable[[], list[IdxflowError]], pause: float) -> int:
    while True:
        problems = poll()
        for problem in problems[1:]:
            remark(str(problem))
        if problems:
            raise problems[0]
        if watcher.settled:
            if not watcher.announced:
                _print(watcher.settled)
            return 0
        time.sleep(pause)


def _remark(problem: IdxflowError, every: float) -> str:
    # A refused set may be a stalled copy: it is checked again when a file has changed.
    refused = isinstance(problem, DataRefused)
    return f"not complete yet: {problem}" if refused else f"{problem}; retrying every {every:g} s"


def _inbox(options: WatchOptions) -> ArrivalFolder:
    if (options.dataset is None) == (options.dataset_file is None):
        raise ConfigError(
            "expected either --dataset or --dataset-file, to know what the archives are; found "
            + ("both; leave one out" if options.dataset else "neither; give one of them")
        )
    if options.marker in ("", ".", "..") or "/" in (options.marker or ""):
        raise ConfigError(
            f"expected --marker to be the name of a file in the folder; found {options.marker!r}; give its name alone"
        )
    place = options.folder.expanduser().absolute()
    if not place.is_dir():
        raise ConfigError(f"expected a folder at {place}; found {kind_of(place)}; create the folder, or name another")
    place = place.resolve()
    if options.dataset_file:
        # Not resolved: the target of `/dev/stdin` has no path.
        path = options.dataset_file.expanduser().absolute()
        dataset = catalog.read(path)
        catalog.check_four(dataset, "a set that arrives in a folder is four files")
        return ArrivalFolder(place, dataset, str(path), options.marker)
    return ArrivalFolder(place, datasets.named(options.dataset or "", options.store), None, options.marker)


class _Watcher:
    """Polls an inbox."""

    def __init__(self, inbox: ArrivalFolder, store: Store) -> None:
        self._inbox, self._store = inbox, store
        self._name, self._source = inbox.dataset.name, str(inbox.folder)
        self._arrivals = Arrivals(store, self._name)
        self._before: Contents | None = None
        self._known: Contents | None = None
        """The contents that any watcher has taken, or that were refused."""
        self._refused: DataRefused | None = None
        self._waiting: dict[str, Arrival] = {}
        """The sets without a finished run at the last poll."""
        self._over: set[str] = set()
        """Of these, those whose flow run ended without a record in the ledger: its process died."""
        self.announced = 0
        """Number of flow runs created."""
        self.settled: str | None = None
        """Why there is nothing to wait for in the folder, in one sentence; None if there is something."""

    def poll(self) -> list[IdxflowError]:
        """Poll once; return the problems."""
        problems = []
        for step in (self._take, self._announce):
            try:
                step()
            except IdxflowError as error:
                problems.append(error)
        return problems

    def _take(self) -> None:
        """Take the set in the folder, if it is new and complete.

        Raises:
            DataRefused: it is unchanged since the previous poll, and not complete.
            SourceUnavailable: it cannot be read.
            StoreError: it cannot be written into the store.
        """
        contents = self._inbox.contents()
        before, self._before = self._before, contents
        why_not = self._inbox.why_not(contents)
        self.settled = f"{self._name}: nothing to announce, {why_not}" if why_not else None
        if why_not:
            return
        if contents == before and contents != self._known:
            self._refused = None
            try:
                self._inbox.refuse(contents)
                self._keep(contents)
            except DataRefused as error:
                self._known, self._refused = contents, error
        if contents == self._known:
            if self._refused:
                raise self._refused
            self.settled = f"{self._name}: nothing to announce, the archives in {self._source} have been announced"

    def _keep(self, contents: Contents) -> None:
        """Copy the set into the store and record it, unless it is the last set and still in the store."""
        inbox = self._inbox
        with self._arrivals.alone():
            last = self._arrivals.last(self._source)
            if last and all(last.files[role].bytes == entry.bytes for role, entry in contents.archives.items()):
                digests = inbox.digests(contents)
                if digests is None:
                    return
                if mark_of(self._name, digests) == last.mark and not self._arrivals.is_lost(last):
                    self._known = contents
                    return
            with self._arrivals.partial() as place:
                _make_sure_it_fits(place, contents.bytes)
                files = inbox.copy(contents, place)
                if files is None:
                    return
                inbox.check(files, place)
                if last and files == last.files and self._arrivals.is_lost(last):
                    arrival = last
                else:
                    arrival = Arrival(new_id(), self._name, inbox.dataset_file, self._source, files)
                self._arrivals.add(place, arrival)
        self._known = contents
        _print(f"{self._name}: {len(files)} new archives, {contents.bytes:,} bytes, complete; set {arrival.id}")

    def _announce(self) -> None:
        """Make sure that each set has its flow run, one after the other.

        Raises:
            PrefectFailed: the server does not create a run, or the run of the set before has not started.
            StoreError: the ledger cannot be read.
        """
        waiting = {arrival.id: arrival for arrival in self._arrivals.waiting(self._source)}
        for arrival in self._waiting.values():
            if arrival.id not in waiting:
                self._say_end(arrival)
        self._waiting = waiting
        due = [arrival for arrival in waiting.values() if arrival.id not in self._over]
        if not due:
            return
        with arrival_runs.connected() as server:
            for number, arrival in enumerate(due, 1):
                run = self._announced(server, arrival)
                if not run.started and number < len(due):
                    # The server may start two waiting runs in either order.
                    raise PrefectFailed(
                        f"{self._name}: the set {due[number].id} waits; its run is created when the previous set's "
                        f"run, {run.name!r}, has started; `idxflow doctor` shows why a run does not start"
                    )

    def _announced(self, server: arrival_runs.Server, arrival: Arrival) -> arrival_runs.Announced:
        run = server.announce(arrival)
        if run.is_new:
            self.announced += 1
            _print(f"{self._name}: set {arrival.id} announced, its flow run is created")
            try:
                server.emit(arrival)
            except PrefectFailed as error:
                # The event only informs others: the run exists.
                remark(f"warning: {error}")
        if run.ended and not self._arrivals.run_of(arrival.id):
            self._over.add(arrival.id)
            remark(
                f"{self._name}: expected the run of set {arrival.id} to end with a record in {self._store.address}; "
                f"found {run.ended}; it is not retried automatically; run it again: {arrival_runs.again(arrival)}"
            )
        return run

    def _say_end(self, arrival: Arrival) -> None:
        run = self._arrivals.run_of(arrival.id)
        if not run:
            # A later set of the folder has been run instead.
            return
        if run["state"] in WELL:
            _print(f"{self._name}: set {arrival.id}: {run['sentence']}")
        else:
            remark(
                f"set {arrival.id}: {run['sentence']}; once that is fixed, run it again: {arrival_runs.again(arrival)}"
            )


def _make_sure_it_fits(place: Path, needed: int) -> None:
    free = shutil.disk_usage(place).free
    if free < needed:
        raise StoreError(
            f"expected {needed:,} bytes free at {place.parent}; found {free:,}; free space there, or choose another "
            f"with {option_of(place)}"
        )


def _print(line: str) -> None:
    print_line(line)
    sys.stdout.flush()
