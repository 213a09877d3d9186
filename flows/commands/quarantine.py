"""`idxflow quarantine`: list the rows that a run has set aside, and release rows that are good."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from flows.commands.options import AsJson, Limit, StoreFolder
from flows.dataset_in_store import DatasetInStore
from flows.terminal.output import print_json, print_line, print_table, remark
from storage import released
from storage.errors import ConfigError, DamagedEntry
from storage.outcomes import steps_of
from storage.records import Quarantine
from storage.words import counted

if TYPE_CHECKING:
    from storage.formats.quarantined import SetAside

app = App(name="quarantine", help="List bad rows that were set aside, and release good ones.")

_LEAST_DIGITS = 6
"""The fewest digits by which a row can be named."""


@app.command(name="list")
def list_(
    dataset: str,
    run: str | None = None,
    *,
    limit: Limit = 20,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """List the rows that a run has set aside, each with the reasons.

    Each line begins with the digest by which `idxflow quarantine release` takes the row back. The same rows with their
    pictures are in a Parquet file, whose path follows.

    Examples: `idxflow quarantine list mnist` · `idxflow quarantine list mnist --json`

    Args:
        dataset: A data set of the store.
        run: A run's id or the beginning of one. Default: the newest run with a quarantine.
    """
    data = DatasetInStore.open(dataset, store)
    with data.store.in_use(dataset):
        record, quarantine = _of_run(data, run)
        rows = _rows(quarantine)
    free = released.read(data.store, dataset)
    if as_json:
        return print_json(
            {
                "dataset": dataset,
                "run": record["run"],
                "file": str(quarantine.file),
                "rows": [dataclasses.asdict(row) for row in rows],
                "released": list(free),
            }
        )
    print_table(_cells(row, free) for row in rows[:limit])
    if limit < len(rows):
        remark(f"{len(rows) - limit:,} more rows are not shown; --limit {len(rows)} shows all {len(rows):,}")
    print_line(f"run {record['run']} set {counted(len(rows), 'row')} aside; with their pictures: {quarantine.file}")
    if free:
        print_line(f"{counted(len(free), 'row')} released: {released.where(data.store, dataset)}")
    return 0


@app.command
def release(
    dataset: str,
    digests: list[str],
    *,
    undo: Annotated[bool, Parameter(negative="", help="End the release of these rows instead.")] = False,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Take rows that are good back into the data, from the next run on.

    The digests of released rows are kept in the store, in a text file that you can edit: `DATASET/released.txt`.

    Examples: `idxflow quarantine release mnist 3f0c2a1b9d4e` · `idxflow quarantine release mnist 3f0c2a1b9d4e --undo`

    Args:
        dataset: A data set of the store.
        digests: Digests of rows, or their beginnings, as `idxflow quarantine list` prints them.
    """
    data = DatasetInStore.open(dataset, store)
    if undo:
        listed = f"`{data.store.command(f'quarantine list {dataset}')}` names the file that lists them"
        free = dict.fromkeys(released.read(data.store, dataset), "")
        named = [_named(text, free, "a released row", listed) for text in digests]
        count = released.take_back(data.store, dataset, named)
        sentence = f"{counted(count, 'row is', 'rows are')} no longer released"
    else:
        with data.store.in_use(dataset):
            rows = {row.digest: row for row in _rows(_of_run(data, None)[1])}
        listed = f"`{data.store.command(f'quarantine list {dataset}')}` lists them"
        named = [_named(text, rows, "a row in quarantine", listed) for text in digests]
        count = released.release(data.store, dataset, {digest: _comment(rows[digest]) for digest in named})
        sentence = f"released {counted(count, 'row')}"
    path = released.where(data.store, dataset)
    if as_json:
        return print_json({"dataset": dataset, "changed": count, "rows": named, "file": path})
    print_line(f"{sentence}, in {path}; the next run takes that into account")
    return 0


def _of_run(data: DatasetInStore, run: str | None) -> tuple[Mapping[str, Any], Quarantine]:
    """Return the record and the quarantine of a run; without `run`, of the newest run that has one.

    Raises:
        ConfigError: there is none, or it was removed or is damaged.
    """
    records = [data.run(run)] if run else data.ledger.newest("runs")
    for record in records:
        for step in steps_of(record):
            if step.step == "quarantine":
                try:
                    return record, data.store.get(data.name, "quarantine", step.key, Quarantine)
                except DamagedEntry as error:
                    raise ConfigError(
                        f"expected the quarantine of run {record['run']} in the store; it was removed or is damaged; "
                        f"make it again: {data.run_command}, with --quarantine unless the manifest names what is set "
                        "aside"
                    ) from error
    what = f"a quarantine of the run {run}" if run else f"a run of {data.name} with a quarantine"
    raise ConfigError(
        f"expected {what}; found none; name what is set aside in the manifest ([quarantine] checks), or in a run: "
        f"`{data.store.command(f'run {data.name} --quarantine duplicate,leaked')}`"
    )


def _rows(quarantine: Quarantine) -> list[SetAside]:
    from storage.formats import quarantined

    return [row for row, _ in quarantined.read(quarantine.file)]


def _cells(row: SetAside, free: Collection[str]) -> Sequence[str]:
    again = "  (released, from the next run on)" if row.digest in free else ""
    return (
        f"{row.digest[:12]}  {row.split:5} row {row.row:>9,}  {row.class_name or 'no class':12}",
        f"{', '.join(row.reasons)}{again}",
    )


def _named(text: str, known: Collection[str], what: str, listed: str) -> str:
    """Return the digest among `known` that `text` is, or is the beginning of."""
    matching = [digest for digest in known if text and digest.startswith(text.lower())]
    if len(text) >= _LEAST_DIGITS and len(matching) == 1:
        return matching[0]
    found = f"{text[:40]!r}, which begins {len(matching):,}" if matching else repr(text[:40])
    raise ConfigError(
        f"expected the digest of {what}, or at least its first {_LEAST_DIGITS} digits; found {found}; {listed}"
    )


def _comment(row: SetAside) -> str:
    """Return the comment on a released row in the file, on one line."""
    name = row.class_name.replace("#", " ") or "no class"
    return (
        f"{row.split} row {row.row}, {name}, {', '.join(row.reasons)}; released {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )
