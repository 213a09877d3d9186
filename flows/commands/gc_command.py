"""`idxflow gc`: remove old results from the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from flows import datasets
from flows.commands.options import AsJson, StoreFolder
from flows.terminal.output import print_json, print_line, remark
from flows.terminal.text import size
from storage import retention
from storage.opening import open_store
from storage.retention import KEEP_LAST, Collected, CollectedDownloads
from storage.store import Store
from storage.upkeep import Leftover, StoredEntry
from storage.words import counted


def gc(
    dataset: str | None = None,
    *,
    keep_last: Annotated[
        int, Parameter(help="Number of newest versions, runs and studies to keep.", validator=Number(gte=1))
    ] = KEEP_LAST,
    dry_run: Annotated[bool, Parameter(negative="", help="Only show what would be removed.")] = False,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Remove old results and leftovers of killed runs.

    Keeps the champion, every earlier champion that `rollback` can return to, the newest versions, runs and studies, all
    that they were made from, and the whole ledger. A data set that a run is using is skipped. If the last run was cut
    off, its unfinished work is kept as well: the next run resumes it. Downloaded ZIP files are removed: each data set
    has its own archives out of them.

    In object storage, it also removes what dead processes left there, and of unfinished work and downloads those of
    this machine. The cache of files on this machine keeps within its bound by itself.

    Example: `idxflow gc --dry-run --keep-last 5`

    Args:
        dataset: Clean up only this data set.
    """
    from flows.alerts.delivery import tell

    opened = open_store(store)
    outcomes = [retention.collect(opened, name, keep_last, dry_run) for name in datasets.in_store(opened, dataset)]
    downloads = retention.collect_downloads(opened, dry_run) if dataset is None else CollectedDownloads((), (), 0)
    strays = retention.collect_strays(opened, dry_run) if dataset is None else ()
    for collected in outcomes:
        if collected.retired and not dry_run:
            tell(store, collected.dataset)
    if as_json:
        values = {"datasets": [_values(c) for c in outcomes], "downloads": _values_of(downloads)}
        beside = {"strays": [opened.objects.where(found.key) for found in strays], "cache": _values_of_cache(opened)}
        return print_json({"store": opened.address, "dry_run": dry_run, **values, **beside})
    for collected in outcomes:
        _print(collected, dry_run)
    _print_downloads(downloads, dry_run)
    if strays:
        print_line(f"beside them: {'would remove' if dry_run else 'removed'} {counted(len(strays), 'leftover')}")
    if opened.cache:
        used, bound = size(opened.cache.used()), size(opened.cache.bound)
        print_line(f"cache on this machine: {used} of at most {bound} at {opened.cache.folder}")
    if not (outcomes or downloads.removed or downloads.kept):
        print_line(f"nothing in {opened.address}")
    return 0


def _print(collected: Collected, dry_run: bool) -> None:
    if collected.busy:
        remark(f"{collected.dataset}: a run is in progress, nothing removed; try again when it has ended")
        return
    removed = "would remove" if dry_run else "removed"
    versions = f" (of {ranges})" if (ranges := _ranges(collected.retired)) else ""
    entries = counted(len(collected.entries), "entry", "entries") + versions
    remaining = f"{counted(collected.kept, 'entry', 'entries')} kept"
    unfinished = f", and {len(collected.unfinished)} unfinished for the next run" if collected.unfinished else ""
    print_line(
        f"{collected.dataset}: {removed} {entries} and {counted(len(collected.leftovers), 'leftover')}, "
        f"{size(collected.bytes)}; {remaining}{unfinished}"
    )
    pieces: list[StoredEntry | Leftover] = [*collected.entries, *collected.leftovers]
    for piece in pieces if dry_run else ():
        print_line(f"  {piece.where}")


def _print_downloads(downloads: CollectedDownloads, dry_run: bool) -> None:
    if not (downloads.removed or downloads.kept):
        return
    removed = "would remove" if dry_run else "removed"
    kept = f"; {len(downloads.kept)} unfinished kept" if downloads.kept else ""
    print_line(f"downloads: {removed} {counted(len(downloads.removed), 'ZIP file')}, {size(downloads.bytes)}{kept}")
    for path in downloads.removed if dry_run else ():
        print_line(f"  {path}")


def _values_of(downloads: CollectedDownloads) -> dict[str, Any]:
    return {
        "removed": [str(path) for path in downloads.removed],
        "kept": [str(path) for path in downloads.kept],
        "bytes": downloads.bytes,
    }


def _values_of_cache(store: Store) -> dict[str, Any] | None:
    cache = store.cache
    return {"folder": str(cache.folder), "bytes": cache.used(), "bound": cache.bound} if cache else None


def _ranges(numbers: Sequence[int]) -> str:
    """Return sorted version numbers as ranges: `v1–v37, v40`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ", ".join("–".join(f"v{number}" for number in ends) for ends in ranges)


def _values(collected: Collected) -> dict[str, Any]:
    return {
        "dataset": collected.dataset,
        "busy": collected.busy,
        "entries": [entry.where for entry in collected.entries],
        "leftovers": [leftover.where for leftover in collected.leftovers],
        "retired": collected.retired,
        "kept": collected.kept,
        "unfinished": [str(path) for path in collected.unfinished],
        "bytes": collected.bytes,
    }
