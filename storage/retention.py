"""Retention: remove entries that are no longer needed, but never the champion, what led to it, or what a run uses.

For each data set, the following is kept, with everything that it was made from:

- the champion and every earlier champion that a rollback can return to,
- the requested number of newest versions,
- the same number of newest runs, with their reports,
- the archives that have arrived in a folder and have not been run yet (`storage.arrivals`),
- if the newest run was cut off, the unfinished work of it and of others, from which the next run resumes.

What data sets share, downloaded ZIP files, is kept only while it is used or its download is to be resumed
(`collect_downloads`): each data set has its own archives out of it.

Versions and the ledger are small and never removed. If a version's model is removed, the registry keeps the version's
figures, and the ledger notes that it is retired (`Registry.retire`): before the model is removed, in the sequence of
the decisions, so that nobody makes such a version the champion meanwhile. A process that is killed in between leaves a
retired version with its model, which the next `gc` removes.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from storage.arrivals import Arrivals
from storage.files import listed, locked
from storage.ledger import run_of
from storage.outcomes import steps_of
from storage.registry import Overtaken, Registry, Version, line
from storage.store import FOLDERS, IN_USE, LOCKS, Store, discard, store_errors
from storage.verify import downloads, for_the_next_run, free_to_remove, leftovers, resumed_by_the_next_run

_log = logging.getLogger(__name__)

KEEP_LAST = 10
"""The default number of versions and runs to keep."""


@dataclass(frozen=True)
class Collected:
    """What was removed from a data set, or would be removed."""

    dataset: str
    busy: bool
    """True if a run uses the data set, so nothing was removed."""
    entries: tuple[Path, ...] = ()
    leftovers: tuple[Path, ...] = ()
    retired: tuple[int, ...] = ()
    """The versions whose models are among the entries."""
    kept: int = 0
    """Number of entries kept."""
    unfinished: tuple[Path, ...] = ()
    """Unfinished work kept for the next run to resume from."""
    bytes: int = 0


@dataclass(frozen=True)
class CollectedDownloads:
    """The downloaded ZIP files that were removed, or would be removed."""

    removed: tuple[Path, ...]
    """Their folders."""
    kept: tuple[Path, ...]
    """Those that are being downloaded, or that the next run resumes."""
    bytes: int


class _Busy(Exception):
    pass


def collect_downloads(store: Store, dry_run: bool = False) -> CollectedDownloads:
    """Remove the downloaded ZIP files that no run is downloading and the next run does not resume.

    A run that reads one has it open, and reads it to its end.

    Raises:
        StoreError: something cannot be removed, or it cannot be told what the next run resumes.
    """
    removed, kept, size = [], [], 0
    for folder in downloads(store):
        with ExitStack() as held:
            if not free_to_remove(store, folder, held) or resumed_by_the_next_run(store, folder):
                kept.append(folder)
                continue
            removed.append(folder)
            size += _size(folder)
            if not dry_run:
                with store_errors(folder):
                    shutil.rmtree(folder)
    return CollectedDownloads(tuple(removed), tuple(kept), size)


def collect(store: Store, dataset: str, keep_last: int = KEEP_LAST, dry_run: bool = False) -> Collected:
    """Remove the entries of a data set that are neither kept nor in use, and leftovers of dead runs.

    Does nothing if a run is in progress, because the entries it needs are unknown until it ends.

    Args:
        store: the store.
        dataset: a data set in the store.
        keep_last: how many of the newest versions and runs to keep, at least 1.
        dry_run: only return what would be removed.

    Raises:
        DamagedEntry: the registry or the ledger cannot be read, so it is unknown what must be kept.
        StoreError: something cannot be removed.
    """

    def give_up() -> None:
        raise _Busy

    lock = store.part(dataset, LOCKS) / IN_USE
    registry = Registry(store, dataset)
    try:
        with store_errors(lock), locked(lock, give_up), registry.deciding(give_up):
            plan = _retired(store, registry, keep_last, dry_run)
            if not dry_run:
                registry.keep_index()
                _remove(store, plan)
            return plan
    except _Busy:
        return Collected(dataset, busy=True)


def _retired(store: Store, registry: Registry, keep_last: int, dry_run: bool) -> Collected:
    """Return what to remove, after the versions that it belongs to have been retired."""
    while True:
        standing = registry.standing()
        plan = _plan(store, registry, keep_last)
        if dry_run:
            return plan
        try:
            registry.retire(plan.retired, standing)
        except Overtaken:
            _log.info("%s: another process has decided about the champion meanwhile; looking again", registry.dataset)
        else:
            return plan


def _plan(store: Store, registry: Registry, keep_last: int) -> Collected:
    dataset = registry.dataset
    numbers = _numbers_to_keep(registry, keep_last)
    versions = [registry.version(number) for number in sorted(numbers)]
    names = _names_to_keep(registry, versions, keep_last)
    entries = list(_entries(store, dataset))
    removed = tuple(path for path in entries if path.name not in names)
    keys = {path.name for path in removed}
    unfinished = for_the_next_run(registry)
    abandoned = (path for path in leftovers(store, dataset) if path not in unfinished)
    rubbish = (*abandoned, *Arrivals(store, dataset).surplus())
    return Collected(
        dataset,
        busy=False,
        entries=removed,
        leftovers=rubbish,
        retired=tuple(registry.made_of(keys)),
        kept=len(entries) - len(removed),
        unfinished=unfinished,
        bytes=sum(_size(path) for path in (*removed, *rubbish)),
    )


def _numbers_to_keep(registry: Registry, keep_last: int) -> set[int]:
    """Return the numbers of the champion, of the champions that led to it, and of the newest versions."""
    existing, champion = registry.numbers(), registry.champion()
    numbers = {*line(registry.outline()), *([champion.number] if champion else [])}
    return (numbers & {*existing}) | {*existing[-keep_last:]}


def _names_to_keep(registry: Registry, versions: list[Version], keep_last: int) -> set[str]:
    """Return the folder names of all entries to keep: keys, and the ids of runs whose reports are kept."""
    ledger = registry.ledger
    makers, runs = {version.run for version in versions}, ledger.names("runs")
    newest = {*runs[-keep_last:]}
    records = [ledger.record("runs", name) for name in runs if name in newest or run_of(name) in makers]
    names = {key for version in versions for key in (version.model, version.evaluation)}
    for run in records:
        # An unchanged run shares the report of the last run that decided something.
        names |= {run["run"], Path(run.get("report") or run["run"]).name}
        names |= {step.key for step in steps_of(run)}
    return names


def _entries(store: Store, dataset: str) -> Iterator[Path]:
    for step in FOLDERS:
        # Two steps may share a folder.
        if step == next(first for first in FOLDERS if FOLDERS[first] == FOLDERS[step]):
            yield from listed(store.entries(dataset, step))


def _remove(store: Store, plan: Collected) -> None:
    for path in plan.entries:
        discard(path)
    for path in plan.leftovers:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    # Locks that killed runs left; no run holds one now. The few locks for the whole data set stay.
    for path in store.part(plan.dataset, LOCKS).glob("*.lock"):
        if path.name.partition("-")[0] in FOLDERS:
            path.unlink()


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())
