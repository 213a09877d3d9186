"""Present the verdict on the data: a table for the Prefect UI, and the sentence of a refusal."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from typing import get_args

from storage.datasets.catalog import BadRow, Dataset
from storage.formats.quarantined import archive_rows
from storage.records import Check, Split, Validation

_CHECKS_NAMED = 5
_ROWS_NAMED = 20
_LABEL_COLUMNS = frozenset({"label", "share", "imbalance", "by_chance"})


def refusal(dataset: Dataset, validation: Validation, splits: Collection[Split] = ()) -> str:
    """Return one sentence on which critical checks failed, where, and what to do; it names at most 20 rows.

    Rows have their numbers in the archives, like those of `table_rows`.
    """
    failures = [_numbered(failure, splits) for failure in validation.failures]
    named, rows_left = [], _ROWS_NAMED
    for failure in failures[:_CHECKS_NAMED]:
        named.append(_failure(dataset, failure, rows_left))
        rows_left -= min(rows_left, len(failure.rows))
    rest = f"; and {len(failures) - _CHECKS_NAMED} more" if len(failures) > _CHECKS_NAMED else ""
    critical = sum(c.severity == "critical" for c in validation.checks)
    return (
        f"{dataset.name}: expected {critical} critical checks to hold; {len(failures)} failed: "
        f"{'; '.join(named)}{rest}; correct the archives{_remedies(dataset, failures)}"
    )


def warnings(dataset: Dataset, validation: Validation, splits: Collection[Split] = ()) -> Iterator[str]:
    """Yield a line for each check that failed without stopping the run; each names at most 20 rows."""
    for check in validation.warnings:
        found = _failure(dataset, _numbered(check, splits), _ROWS_NAMED)
        setting = f" (the manifest sets the limit in {check.setting})" if check.setting else ""
        yield f"{dataset.name}: warning: {found}{setting}"


def _remedies(dataset: Dataset, failures: Iterable[Check]) -> str:
    """Name what would let this data pass: the rows to set aside, and the keys of the manifest."""
    bad = [*dict.fromkeys(f.column for f in failures if f.column in get_args(BadRow) and f.rows)]
    keys = ", ".join(dict.fromkeys(f.setting for f in failures if f.setting))
    # What is still there although it is named was released.
    free = any(check in dataset.quarantine.checks for check in bad)
    release = f"`idxflow quarantine release {dataset.name} DIGEST --undo`"
    words = [f"end the release of these rows ({release})"] if free else []
    if left := [check for check in bad if check not in dataset.quarantine.checks]:
        words.append(f"set these rows aside with --quarantine {','.join([*dataset.quarantine.checks, *left])}")
    aside = ", ".join(words)
    change = f"if this data is intended, change {keys} in the manifest {dataset.manifest}" if keys else ""
    if aside and change:
        return f", {aside}, or, {change}"
    return f" or, {change}" if change else f" or {aside}" if aside else ""


def table_rows(validation: Validation, splits: Collection[Split] = ()) -> list[dict[str, str]]:
    """Return the checks as rows of a table for people, the failed ones first."""
    return [
        {
            "verdict": "passed" if c.passed else "FAILED" if c.severity == "critical" else "warning",
            "table": c.table,
            "check": c.name,
            "expected": c.limit,
            "found": c.observed,
            "first rows": ", ".join(f"{row:,}" for row in c.rows),
            "severity": c.severity,
            "manifest key": c.setting,
        }
        for c in (
            _numbered(check, splits)
            for check in sorted(validation.checks, key=lambda c: (c.passed, c.severity != "critical"))
        )
    ]


def _numbered(check: Check, splits: Collection[Split]) -> Check:
    """Return a check whose rows have their numbers in the archive."""
    split = next((split for split in splits if split.name == check.table), None)
    return dataclasses.replace(check, rows=tuple(archive_rows(split, check.rows))) if split and check.rows else check


def _failure(dataset: Dataset, failure: Check, most_rows: int) -> str:
    where = failure.table
    if where != "archives":
        kind = "labels" if failure.column in _LABEL_COLUMNS else "images"
        first, *others = dataset.archives_of(f"{failure.table}-{kind}")
        more = f" and {len(others):,} more, with rows counted through all" if others else ""
        where = f"{where} ({first.file}{more})"
    rows = failure.rows[:most_rows]
    named = f" at row{'s' if len(rows) > 1 else ''} {', '.join(f'{row:,}' for row in rows)}" if rows else ""
    more = ", …" if named and len(failure.rows) > len(rows) else ""
    return f"{where}: {failure.name}, expected {failure.limit}, found {failure.observed}{named}{more}"
