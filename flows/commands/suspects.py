"""`idxflow suspects`: training rows whose label is likely wrong."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.commands.destination import destination, write
from flows.commands.options import AsJson, Limit, StoreFolder
from flows.dataset_in_store import DatasetInStore
from flows.suspects import COLUMNS, Audited, audited
from flows.terminal.output import print_json, print_line, print_table, remark
from storage.records import to_json
from storage.words import counted

_FORMULA = ("=", "+", "-", "@")
"""How what a spreadsheet computes begins. A class name may come from a stranger's manifest."""


def suspects(
    dataset: str,
    *,
    csv_: Annotated[Path | None, Parameter(name="--csv", help="Write all of them to this .csv file.")] = None,
    limit: Limit = 20,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """List training images whose label looks wrong.

    They are those of the newest run with `--audit`, the most suspicious first. Each line has the row of the training
    archive, counted from 0, then the label and the suggested class, each with its probability. A star marks those that
    are flagged. Look at the images before you correct a label: the report of the run shows the first ones.

    Examples: `idxflow suspects mnist` · `idxflow suspects mnist --csv suspects.csv`

    Args:
        dataset: A data set of the store.
    """
    data = DatasetInStore.open(dataset, store)
    file = destination("--csv", csv_, (".csv",), data.store) if csv_ else None
    with data.store.in_use(dataset):
        found = audited(data)
    if file:
        write(file, _csv(found))
    if as_json:
        return print_json({"dataset": dataset, "run": found.run, **to_json(found.record), **found.to_json()})
    if file:
        print_line(f"{file}: {_counts(found)}")
    else:
        _print(found, limit)
    return 0


def _csv(found: Audited) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in found.rows():
        names = {column: _as_text(row[column]) for column in ("class", "suggested_class")}
        writer.writerow({**row, **names, "flagged": str(row["flagged"]).lower()})
    return text.getvalue().encode()


def _as_text(name: str) -> str:
    """Return a name that spreadsheets show, not compute: https://owasp.org/www-community/attacks/CSV_Injection."""
    return f"'{name}" if name.startswith(_FORMULA) and len(name) > 1 else name


def _print(found: Audited, limit: int) -> None:
    rows = [*found.rows()][:limit]
    print_table(
        (
            f"row {row['row']:>9,}  {'*' if row['flagged'] else ' '}",
            f"{row['class']} ({row['probability']:.2%}) → "
            f"{row['suggested_class']} ({row['suggested_probability']:.2%})",
        )
        for row in rows
    )
    print_line(f"{_counts(found)}, in run {found.run}")
    if len(rows) < len(found.suspects):
        remark(f"{len(found.suspects) - len(rows):,} more are not shown; --csv FILE writes all")


def _counts(found: Audited) -> str:
    """Return how many there are, and how many of them are flagged."""
    record = found.record
    suspects = f"{counted(record.suspect_rows, 'suspect')} of {counted(record.rows, 'row')}"
    return f"{suspects}, {record.flagged_rows:,} flagged (*)"
