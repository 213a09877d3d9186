"""Present the verdict on the data: a table for the Prefect UI, and the sentence of a refusal."""

from __future__ import annotations

from storage.datasets.catalog import Dataset
from storage.records import Check, Validation

_CHECKS_NAMED = 5
_ROWS_NAMED = 20
_LABEL_COLUMNS = frozenset({"label", "share", "imbalance", "by_chance"})


def refusal(dataset: Dataset, validation: Validation) -> str:
    """Return one sentence on which critical checks failed, where, and what to do; it names at most 20 rows."""
    failures = validation.failures
    named, rows_left = [], _ROWS_NAMED
    for failure in failures[:_CHECKS_NAMED]:
        named.append(_failure(dataset, failure, rows_left))
        rows_left -= min(rows_left, len(failure.rows))
    rest = f"; and {len(failures) - _CHECKS_NAMED} more" if len(failures) > _CHECKS_NAMED else ""
    critical = sum(c.severity == "critical" for c in validation.checks)
    return (
        f"{dataset.name}: expected {critical} critical checks to hold; {len(failures)} failed: "
        f"{'; '.join(named)}{rest}; correct the archives{_settings(dataset, failures)}"
    )


def _settings(dataset: Dataset, failures: tuple[Check, ...]) -> str:
    """Name the keys of the manifest that would let this data pass."""
    keys = ", ".join(dict.fromkeys(f.setting for f in failures if f.setting))
    return f" or, if this data is intended, change {keys} in the manifest {dataset.manifest}" if keys else ""


def table_rows(validation: Validation) -> list[dict[str, str]]:
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
        for c in sorted(validation.checks, key=lambda c: (c.passed, c.severity != "critical"))
    ]


def _failure(dataset: Dataset, failure: Check, most_rows: int) -> str:
    where = failure.table
    if where != "archives":
        kind = "labels" if failure.column in _LABEL_COLUMNS else "images"
        where = f"{where} ({dataset.archive(f'{failure.table}-{kind}').file})"
    rows = failure.rows[:most_rows]
    named = f" at row{'s' if len(rows) > 1 else ''} {', '.join(f'{row:,}' for row in rows)}" if rows else ""
    more = ", …" if named and len(failure.rows) > len(rows) else ""
    return f"{where}: {failure.name}, expected {failure.limit}, found {failure.observed}{named}{more}"
