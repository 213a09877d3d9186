"""Retention: remove what no one will ask for again. Never the champion, what led to it, or what a run uses.

What stays, of a data set, and all that it was made from:

- the champion and every champion before it that a rollback can return to,
- the newest versions, as many as asked for,
- the newest runs, as many, with their reports,
- the archives that have arrived in a folder and are still to be run (`storage.arrivals`),
- while the newest run is one that was cut off, what it and others left unfinished: the next run goes on from it.

Versions and the ledger are never removed, they are small: of a version whose model is removed the registry keeps
the numbers, and says so (`Registry.retired`). The mark is written before the model is removed, so a process killed
in between leaves a version that is still whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.arrivals import Arrivals
from storage.files import listed, locked
from storage.ledger import run_of
from storage.outcomes import steps_of
from storage.registry import Registry, Version, line
from storage.store import FOLDERS, IN_USE, LOCKS, Store, discard, store_errors
from storage.verify import for_the_next_run, leftovers

KEEP_LAST = 10
"""How many versions and runs are kept when nothing else is said."""


@dataclass(frozen=True)
class Collected:
    """What was removed of a data set, or would be."""

    dataset: str
    busy: bool
    """A run uses the data set: nothing was removed."""
    entries: tuple[Path, ...] = ()
    leftovers: tuple[Path, ...] = ()
    retired: tuple[int, ...] = ()
    """The versions whose models are among the entries."""
    kept: int = 0
    """Entries that stay."""
    unfinished: tuple[Path, ...] = ()
    """What stays for the next run to go on from."""
    bytes: int = 0


class _Busy(Exception):
    pass


def collect(store: Store, dataset: str, keep_last: int = KEEP_LAST, dry_run: bool = False) -> Collected:
    """Remove the entries of a data set that are neither kept nor in use, and what dead runs left.

    A run in progress makes this do nothing: what it needs cannot be known before it ends.

    Args:
        store: where.
        dataset: a data set that is in the store.
        keep_last: how many of the newest versions and runs stay, at least 1.
        dry_run: only say what would be removed.

    Raises:
        DamagedEntry: the registry or the ledger cannot be read, so that what must stay is not known.
        StoreError: something cannot be removed.
    """

    def give_up() -> None:
        raise _Busy

    lock = store.part(dataset, LOCKS) / IN_USE
    registry = Registry(store, dataset)
    try:
        with store_errors(lock), locked(lock, give_up), registry.deciding(give_up):
            plan = _plan(store, registry, keep_last)
            if not dry_run:
                registry.keep_index()
                _remove(store, registry, plan)
            return plan
    except _Busy:
        return Collected(dataset, busy=True)


def _plan(store: Store, registry: Registry, keep_last: int) -> Collected:
    dataset = registry.dataset
    numbers = _kept_numbers(registry, keep_last)
    versions = [registry.version(number) for number in sorted(numbers)]
    names = _kept_names(registry, versions, keep_last)
    entries = list(_entries(store, dataset))
    removed = tuple(path for path in entries if path.name not in names)
    gone = {path.name for path in removed}
    unfinished = for_the_next_run(registry)
    left = (path for path in leftovers(store, dataset) if path not in unfinished)
    rubbish = (*left, *Arrivals(store, dataset).surplus())
    return Collected(
        dataset,
        busy=False,
        entries=removed,
        leftovers=rubbish,
        retired=tuple(registry.made_of(gone)),
        kept=len(entries) - len(removed),
        unfinished=unfinished,
        bytes=sum(_size(path) for path in (*removed, *rubbish)),
    )


def _kept_numbers(registry: Registry, keep_last: int) -> set[int]:
    """Return the champion, those that led to it, and the newest versions."""
    there, champion = registry.numbers(), registry.champion()
    numbers = {*line(registry.outline()), *([champion.number] if champion else [])}
    return (numbers & {*there}) | {*there[-keep_last:]}


def _kept_names(registry: Registry, versions: list[Version], keep_last: int) -> set[str]:
    """Return the folder names of all entries that stay: keys, and the runs whose reports do."""
    ledger = registry.ledger
    makers, runs = {version.run for version in versions}, ledger.names("runs")
    newest = {*runs[-keep_last:]}
    kept = [ledger.record("runs", name) for name in runs if name in newest or run_of(name) in makers]
    names = {key for version in versions for key in (version.model, version.evaluation)}
    for run in kept:
        # The report of an unchanged run is that of the last run that decided something.
        names |= {run["run"], Path(run.get("report") or run["run"]).name}
        names |= {step.key for step in steps_of(run)}
    return names


def _entries(store: Store, dataset: str) -> Iterator[Path]:
    for step in FOLDERS:
        # Two steps may share a folder.
        if step == next(first for first in FOLDERS if FOLDERS[first] == FOLDERS[step]):
            yield from listed(store.entries(dataset, step))


def _remove(store: Store, registry: Registry, plan: Collected) -> None:
    for number in plan.retired:
        registry.retire(number)
    for path in plan.entries:
        discard(path)
    for path in plan.leftovers:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    # Those that killed runs left; no run is there to hold one of them. The few that are for the whole data set stay.
    for path in store.part(plan.dataset, LOCKS).glob("*.lock"):
        if path.name.partition("-")[0] in FOLDERS:
            path.unlink()


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())
