"""The commands that look after the store: check it, and remove what no one will ask for again."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.settings import store_root
from storage import retention, verify
from storage.errors import ConfigError
from storage.retention import KEEP_LAST, Collected
from storage.store import Store
from storage.words import counted

StoreFolder = Annotated[
    str | None, Parameter(help="The store's folder; default: `store` beside the source code. [env var: IDXFLOW_STORE]")
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object to standard output.")]


def verify_store(dataset: str | None = None, *, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """Check every file the store keeps: entries, versions, champions, ledger. Exit code 1 if one is damaged.

    Reads everything and changes nothing; runs may go on meanwhile. Unfinished work of a killed run is listed
    as a leftover, and times from a wrong clock as remarks; neither counts as damage.

    Args:
        dataset: Check only this one.
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
        int, Parameter(help="How many of the newest versions and runs stay.", validator=Number(gte=1))
    ] = KEEP_LAST,
    dry_run: Annotated[bool, Parameter(negative="", help="Only say what would be removed.")] = False,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Remove old results and what killed runs left.

    The champion, every champion before it that `rollback` can return to, the newest versions and runs, and all they
    were made from stay, and so does the whole ledger. A data set that a run is using is left alone. If the last run
    was cut off, its unfinished work stays, too: the next run continues from it.

    Args:
        dataset: Collect only this one.
    """
    opened = Store(store_root(store))
    done = [retention.collect(opened, name, keep_last, dry_run) for name in _datasets(opened, dataset)]
    if as_json:
        print(json.dumps({"store": str(opened.root), "dry_run": dry_run, "datasets": [_json(c) for c in done]}))
        return 0
    for collected in done:
        _show(collected, dry_run)
    if not done:
        print(f"nothing in {opened.root}")
    return 0


def _datasets(store: Store, dataset: str | None) -> Sequence[str]:
    if not store.root.is_dir():
        raise ConfigError(
            f"expected a store at {store.root}; there is none; name another with --store or IDXFLOW_STORE, "
            f"or fill one with `{store.command('run')}`"
        )
    names = store.datasets()
    if dataset is None:
        return names
    if dataset not in names:
        there = ", ".join(names) or "nothing"
        raise ConfigError(
            f"expected a data set that is in {store.root}; found no {dataset!r} there, but {there}; give one of these"
        )
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
