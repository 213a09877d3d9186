"""Retention: remove entries that are no longer needed, but never the champion, what led to it, or what a run uses.

For each data set, the following is kept, with everything that it was made from:

- the champion and every earlier champion that a rollback can return to,
- the requested number of newest versions,
- the same number of newest runs, with their reports,
- the same number of newest studies with all their trials, and that which is the profile `tuned`,
- the archives that have arrived in a folder and have not been run yet (`storage.arrivals`),
- if the newest run was cut off, the unfinished work of it and of others, from which the next run resumes,
- if it was cut off or failed, what it has made and not recorded: parts that no entry lists yet.

An entry of parts keeps those that it lists. Several entries may list the same: the parts of a window that slides.

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
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage import studies
from storage.arrivals import Arrivals
from storage.ledger import run_of
from storage.objects.protocol import Found
from storage.outcomes import steps_of
from storage.registry import Overtaken, Registry, Version, line
from storage.store import FOLDERS, Store, store_errors
from storage.underway import was_cut_off
from storage.upkeep import InUse, Leftover, StoredEntry, Upkeep, bytes_of
from storage.verify import downloads, for_the_next_run, free_to_remove, resumed_by_the_next_run

_log = logging.getLogger(__name__)

KEEP_LAST = 10
"""The default number of versions and runs to keep."""


@dataclass(frozen=True)
class Collected:
    """What was removed from a data set, or would be removed."""

    dataset: str
    busy: bool
    """True if a run uses the data set, so nothing was removed."""
    entries: tuple[StoredEntry, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    retired: tuple[int, ...] = ()
    """The versions whose models are among the entries."""
    kept: int = 0
    """Number of entries kept."""
    unfinished: tuple[Path, ...] = ()
    """Unfinished work on this machine, kept for the next run to resume from."""
    bytes: int = 0


@dataclass(frozen=True)
class CollectedDownloads:
    """The downloaded ZIP files that were removed, or would be removed."""

    removed: tuple[Path, ...]
    """Their folders."""
    kept: tuple[Path, ...]
    """Those that are being downloaded, or that the next run resumes."""
    bytes: int


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
            size += bytes_of(folder)
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
        raise InUse

    registry, upkeep = Registry(store, dataset), store.upkeep(dataset)
    try:
        with store_errors(store.dataset(dataset)), upkeep.alone(), registry.deciding(give_up):
            plan = _retired(registry, upkeep, keep_last, dry_run)
            if not dry_run:
                registry.keep_index()
                upkeep.remove(plan.entries, plan.leftovers)
            return plan
    except InUse:
        return Collected(dataset, busy=True)


def collect_strays(store: Store, dry_run: bool = False) -> tuple[Found, ...]:
    """Remove the objects beside all data sets that processes left which are gone; return them.

    Raises:
        StoreError: they cannot be listed or removed.
    """
    strays = tuple(store.strays())
    if not dry_run:
        store.objects.delete(found.key for found in strays)
    return strays


def _retired(registry: Registry, upkeep: Upkeep, keep_last: int, dry_run: bool) -> Collected:
    """Return what to remove, after the versions that it belongs to have been retired."""
    while True:
        standing = registry.standing()
        plan = _plan(registry, upkeep, keep_last)
        if dry_run:
            return plan
        try:
            registry.retire(plan.retired, standing)
        except Overtaken:
            _log.info("%s: another process has decided about the champion meanwhile; looking again", registry.dataset)
        else:
            return plan


def _plan(registry: Registry, upkeep: Upkeep, keep_last: int) -> Collected:
    store, dataset = registry.store, registry.dataset
    numbers = _numbers_to_keep(registry, keep_last)
    versions = [registry.version(number) for number in sorted(numbers)]
    entries = upkeep.entries()
    members = {entry.name.key: listed for entry in entries if (listed := upkeep.members(entry))}
    of_studies = _of_studies(registry, entries, keep_last)
    names = _with_members(_names_to_keep(registry, versions, keep_last) | of_studies, members)
    if _is_unfinished(registry):
        # With what it lists: parts that older splits have, too.
        names |= _with_members(_unrecorded(registry, {entry.name.key for entry in entries} - names, members), members)
    # What lists others first: if this is cut off, nothing that is left lists what is gone.
    removed = tuple(
        sorted(
            (entry for entry in entries if entry.name.key not in names),
            key=lambda entry: entry.name.key not in members,
        )
    )
    unfinished = for_the_next_run(registry)
    arrivals = Arrivals(store, dataset)
    rubbish = (*_abandoned(upkeep, removed, unfinished), *arrivals.unfinished(), *arrivals.surplus())
    return Collected(
        dataset,
        busy=False,
        entries=removed,
        leftovers=rubbish,
        retired=tuple(registry.made_of({entry.name.key for entry in removed})),
        kept=len(entries) - len(removed),
        unfinished=unfinished,
        bytes=sum(map(upkeep.size, removed)) + sum(leftover.bytes for leftover in rubbish),
    )


def _abandoned(upkeep: Upkeep, removed: Iterable[StoredEntry], unfinished: Collection[Path]) -> Iterator[Leftover]:
    """Yield what is left over, but neither what the next run resumes from nor what goes with an entry."""
    gone = {key for entry in removed for key in entry.keys}
    for leftover in upkeep.leftovers():
        if leftover.path not in unfinished and gone.isdisjoint(leftover.keys):
            yield leftover


def _numbers_to_keep(registry: Registry, keep_last: int) -> set[int]:
    """Return the numbers of the champion, of the champions that led to it, and of the newest versions."""
    existing, champion = registry.numbers(), registry.champion()
    numbers = {*line(registry.outline()), *([champion.number] if champion else [])}
    return (numbers & {*existing}) | {*existing[-keep_last:]}


def _with_members(names: Collection[str], members: Mapping[str, Iterable[str]]) -> set[str]:
    """Return the names of entries with those that they list, and so on."""
    found, waiting = set(names), [*names]
    while waiting:
        new = {*members.get(waiting.pop(), ())} - found
        found |= new
        waiting += new
    return found


def _is_unfinished(registry: Registry) -> bool:
    """Return whether the newest run was cut off or failed: the next one will use what it has made."""
    newest = registry.ledger.last("runs")
    failed = bool(newest and newest.get("state") in ("failed", "refused"))
    return failed or was_cut_off(registry.store, registry.dataset, registry.ledger)


def _unrecorded(registry: Registry, keys: Collection[str], members: Mapping[str, Iterable[str]]) -> set[str]:
    """Return those of the keys that no run has recorded, and that nothing lists which a run has recorded."""
    if not keys:
        return set()
    runs = registry.ledger.newest("runs")
    recorded = {name for run in runs for name in _names_of(run)}
    recorded |= {step.key for study in registry.ledger.newest("studies") for step in steps_of(study)}
    recorded |= {key for version in registry.versions() for key in (version.model, version.evaluation)}
    return set(keys) - _with_members(recorded, members)


def _names_to_keep(registry: Registry, versions: list[Version], keep_last: int) -> set[str]:
    """Return the folder names of all entries to keep: keys, and the ids of runs whose reports are kept."""
    ledger = registry.ledger
    makers, runs = {version.run for version in versions}, ledger.names("runs")
    newest = {*runs[-keep_last:]}
    records = [ledger.record("runs", name) for name in runs if name in newest or run_of(name) in makers]
    names = {key for version in versions for key in (version.model, version.evaluation)}
    for run in records:
        names |= _names_of(run)
    return names


def _of_studies(registry: Registry, entries: Iterable[StoredEntry], keep_last: int) -> set[str]:
    """Return the folder names of all entries to keep of studies: trials, reports, and what these were made from."""
    ledger = registry.ledger
    kept = studies.to_keep(ledger, keep_last)
    keys = (entry.name.key for entry in entries if entry.name.folder == FOLDERS["tune"])
    names = {key for key in keys if any(studies.is_of(key, study) for study in kept)}
    for study in kept:
        record = ledger.find("studies", study) or {}
        names |= {step.key for step in steps_of(record)}
    return names


def _names_of(run: Mapping[str, Any]) -> set[str]:
    """Return the folder names of the entries that a run has recorded."""
    # An unchanged run shares the report of the last run that decided something.
    return {run["run"], Path(run.get("report") or run["run"]).name, *(step.key for step in steps_of(run))}
