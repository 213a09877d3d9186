"""The commands that look after the store: check it, and remove what no one will ask for again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from flows import datasets
from flows.commands.options import AsJson, StoreFolder
from flows.commands.output import say_json
from flows.settings import store_root
from storage import retention, verify
from storage.errors import ConfigError
from storage.files import kind_of
from storage.retention import KEEP_LAST, Collected
from storage.store import Store
from storage.words import counted


def verify_store(dataset: str | None = None, *, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """Check every file of the store: entries, versions, champions, ledger. Exit code 1 if one is damaged.

    Reads everything and changes nothing; runs can continue meanwhile. Unfinished work of a killed run is listed as
    left over, and times from a wrong clock as remarks; neither counts as damage.

    Args:
        dataset: Check only this data set.
    """
    opened = Store(store_root(store))
    names = _datasets(opened, dataset)
    verdict = verify.verify(opened, dataset)
    if as_json:
        print(verify.as_json(verdict, opened))
        return 1 if verdict.damage else 0
    for finding in verdict.findings:
        print(f"{finding.kind}: {finding.path}: {finding.problem}; {finding.remedy}")
    print(
        f"{'DAMAGED' if verdict.damage else 'ok'}: {counted(len(names), 'data set')}, "
        f"{counted(verdict.entries, 'entry', 'entries')}, {counted(verdict.versions, 'version')}, "
        f"{counted(verdict.records, 'ledger record')}, {_size(verdict.bytes)} read; "
        f"{len(verdict.damage)} damaged, {len(verdict.leftovers)} left over"
        + (f", {len(verdict.remarks)} to remark on" if verdict.remarks else "")
    )
    return 1 if verdict.damage else 0


def gc(
    dataset: str | None = None,
    *,
    keep_last: Annotated[
        int, Parameter(help="Number of newest versions and runs to keep.", validator=Number(gte=1))
    ] = KEEP_LAST,
    dry_run: Annotated[bool, Parameter(negative="", help="Only show what would be removed.")] = False,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Remove old results and leftovers of killed runs.

    Keeps the champion, every earlier champion that `rollback` can return to, the newest versions and runs, all that
    they were made from, and the whole ledger. A data set that a run is using is skipped. If the last run was cut off,
    its unfinished work is kept, too: the next run continues from it.

    Args:
        dataset: Clean up only this data set.
    """
    opened = Store(store_root(store))
    done = [retention.collect(opened, name, keep_last, dry_run) for name in _datasets(opened, dataset)]
    if as_json:
        return say_json({"store": str(opened.root), "dry_run": dry_run, "datasets": [_json(c) for c in done]})
    for collected in done:
        _show(collected, dry_run)
    if not done:
        print(f"nothing in {opened.root}")
    return 0


def _datasets(store: Store, dataset: str | None) -> Sequence[str]:
    if not store.root.is_dir():
        raise ConfigError(
            f"expected a store at {store.root}; found {kind_of(store.root)}; name another with --store or "
            f"IDXFLOW_STORE, or fill this one: `{store.command('run')}`"
        )
    names = store.datasets()
    if dataset is None:
        return names
    datasets.check_known(store, dataset, names)
    return [dataset]


def _show(collected: Collected, dry_run: bool) -> None:
    if collected.busy:
        print(
            f"{collected.dataset}: a run is in progress, nothing removed; try again when it has ended", file=sys.stderr
        )
        return
    would = "would remove" if dry_run else "removed"
    versions = f" (of {ranges})" if (ranges := _ranges(collected.retired)) else ""
    entries = counted(len(collected.entries), "entry", "entries") + versions
    stays = f"{counted(collected.kept, 'entry', 'entries')} {'stays' if collected.kept == 1 else 'stay'}"
    unfinished = f", and {len(collected.unfinished)} unfinished for the next run" if collected.unfinished else ""
    print(
        f"{collected.dataset}: {would} {entries} and {counted(len(collected.leftovers), 'leftover')}, "
        f"{_size(collected.bytes)}; {stays}{unfinished}"
    )
    if dry_run:
        for path in (*collected.entries, *collected.leftovers):
            print(f"  {path}")


def _ranges(numbers: Sequence[int]) -> str:
    """Return sorted version numbers in short: `v1–v37, v40`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ", ".join("–".join(f"v{number}" for number in ends) for ends in found)


def _json(collected: Collected) -> dict[str, Any]:
    def paths(found: Sequence[Path]) -> list[str]:
        return [str(path) for path in found]

    return {
        "dataset": collected.dataset,
        "busy": collected.busy,
        "entries": paths(collected.entries),
        "leftovers": paths(collected.leftovers),
        "retired": collected.retired,
        "kept": collected.kept,
        "unfinished": paths(collected.unfinished),
        "bytes": collected.bytes,
    }


def _size(count: int) -> str:
    """Return a number of bytes as people read it, in units of 1,000."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return counted(count, "byte") if units[0] == "bytes" else f"{value:,.1f} {units[0]}"
