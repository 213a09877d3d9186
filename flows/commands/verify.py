"""`idxflow verify`: check every file of the store."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from flows import datasets
from flows.commands.options import AsJson, StoreFolder
from flows.terminal.output import print_line
from flows.terminal.text import size
from storage import verify as store_check
from storage.opening import open_store
from storage.words import counted


def verify(
    dataset: str | None = None,
    *,
    contents: Annotated[
        bool, Parameter(negative="--no-contents", help="Read every file; without, only descriptions and sizes.")
    ] = True,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Check every file of the store. Exit code 1 if one is damaged.

    Reads entries, versions, champions and ledger; changes nothing, and runs can continue. Unfinished work of a killed
    run is listed as left over, and times from a wrong clock as remarks; neither counts as damage.

    In object storage, each file is read from there, never from this machine's cache, and that may cost money:
    `--no-contents` makes one listing per step, and reads each description.

    Examples: `idxflow verify` · `idxflow verify mnist --json` · `idxflow verify --no-contents`

    Args:
        dataset: Check only this data set.
    """
    opened = open_store(store)
    names = datasets.in_store(opened, dataset)
    verdict = store_check.verify(opened, dataset, contents)
    if as_json:
        print_line(store_check.as_json(verdict, opened))
        return 1 if verdict.damage else 0
    for finding in verdict.findings:
        print_line(f"{finding.kind}: {finding.where}: {finding.problem}; {finding.remedy}")
    print_line(
        f"{'DAMAGED' if verdict.damage else 'ok'}: {counted(len(names), 'data set')}, "
        f"{counted(verdict.entries, 'entry', 'entries')}, {counted(verdict.versions, 'version')}, "
        f"{counted(verdict.records, 'ledger record')}, {size(verdict.bytes)} read; "
        f"{len(verdict.damage)} damaged, {len(verdict.leftovers)} left over"
        + (f", {counted(len(verdict.remarks), 'remark')}" if verdict.remarks else "")
    )
    return 1 if verdict.damage else 0
