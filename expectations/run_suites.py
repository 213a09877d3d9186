"""Run a suite on a table with Great Expectations, and report the results as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from expectations import engine_process
from expectations.engine import Result
from expectations.findings import FINDINGS, NAMED, Absent, Columns, Finding, Mean, Rows, Value
from expectations.suites import Expectation, Suite, percent
from expectations.summary import Table
from storage.errors import IdxflowError
from storage.records import Check

_VALUES_NAMED = 5

_Seen = tuple[Finding, list[int]]
"""The finding in a part, and the classes that are out of bounds in it."""


def run(suite: Suite, parts: Iterable[Table]) -> tuple[Check, ...]:
    """Evaluate every expectation of `suite`, in order, on the table made of `parts`.

    One part is in memory at a time. The result is the same as for all rows at once, for any division into parts. Uses
    neither disk nor network. Thread-safe.

    Raises:
        IdxflowError: the suite is empty, there are no parts, or an expectation could not be evaluated, which is not a
            verdict on the data.
    """
    if not suite.expectations:
        raise IdxflowError(f"{suite.table}: expected a suite of expectations; it is empty and would pass any data")
    findings = [_look(suite, table) for table in parts]
    if not findings:
        raise IdxflowError(f"{suite.table}: expected at least one part of a table; found none to evaluate")
    return tuple(
        _check(suite, expectation, seen)
        for expectation, seen in zip(suite.expectations, zip(*findings, strict=True), strict=True)
    )


def _look(suite: Suite, table: Table) -> list[_Seen]:
    """Return the findings in one part, in the order of the suite."""
    results = engine_process.evaluate(suite, table)
    if sorted(results) != list(range(len(suite.expectations))):
        raise IdxflowError(
            f"{suite.table}: expected {len(suite.expectations)} expectations to be evaluated; {len(results)} were; "
            "this is a fault of the suite, not of the data"
        )
    return [
        (
            _finding(suite, expectation, results[number], table),
            _outside(expectation, table) if suite.of == "class" else [],
        )
        for number, expectation in enumerate(suite.expectations)
    ]


def _finding(suite: Suite, expectation: Expectation, result: Result, table: Table) -> Finding:
    """Return Great Expectations' finding in a part, after checking that it agrees with `Finding.holds`."""
    details, arguments = result.details, expectation.arguments
    if not details:
        raise IdxflowError(
            f"{suite.table}: expected {expectation.name!r} to be evaluated; Great Expectations says: "
            f"{result.complaint}; this is a fault of the suite, not of the data"
        )
    finding = FINDINGS[expectation.kind].of(details, arguments, table)
    if finding.holds(arguments) != result.success:
        raise IdxflowError(
            f"{suite.table}: expected the verdict of Great Expectations on {expectation.name!r}; it is "
            f"{'passed' if result.success else 'failed'} for {details}; this is a fault of the suite, not of the data"
        )
    return finding


def _check(suite: Suite, expectation: Expectation, seen: Sequence[_Seen]) -> Check:
    finding = reduce(lambda earlier, later: earlier.merged(later), (part for part, _ in seen))
    passed, observed = finding.holds(expectation.arguments), _observed(suite, expectation, finding)
    if suite.of == "class" and not passed:
        outside = [label for _, labels in seen for label in labels]
        observed += f" ({_list(outside, 'class', 'classes')})"
    return Check(
        table=suite.table,
        name=expectation.name,
        expectation=re.sub("(?<!^)(?=[A-Z])", "_", expectation.kind).lower(),
        column=expectation.column,
        limit=expectation.limit,
        observed=observed,
        severity=expectation.severity,
        passed=passed,
        rows=finding.places if isinstance(finding, Rows) and suite.of == "row" else (),
        setting=expectation.setting,
    )


def _observed(suite: Suite, expectation: Expectation, finding: Finding) -> str:
    match finding:
        case Rows():
            return _offenders(suite, finding)
        case Absent():
            return f"{_list(finding.values, 'class', 'classes')} missing" if finding.values else "all"
        case Columns():
            return f"{len(finding.names)} columns"
        case Value() | Mean():
            return _number(finding.value, expectation.percent)
    raise TypeError(f"expected a finding with a known wording; found {finding}")


def _number(value: float | None, share: bool) -> str:
    if value is None:
        return "nothing"
    return percent(value) if share else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _offenders(suite: Suite, finding: Rows) -> str:
    """Return the number of rows that break the expectation, and their values, as text."""
    of = {"row": "rows", "class": "classes", "split": "splits"}[suite.of]
    count, total = finding.unexpected, finding.rows
    if not count:
        return f"no exception in {total:,} {of}"
    values = {_text(value): None for value in finding.values}
    shown = ", ".join(list(values)[:_VALUES_NAMED]) + (", …" if len(values) > _VALUES_NAMED else "")
    return f"{count:,} of {total:,} {of}, {percent(count / total)}" + ("" if set(values) == {"1"} else f": {shown}")


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " instead of ".join(_text(v) for v in value)
    text = str(value)
    return text if len(text) <= 20 else f"{text[:12]}…"


def _outside(expectation: Expectation, table: Table) -> list[int]:
    """Return the classes whose value is out of bounds."""
    values = table[expectation.column]
    low, high = expectation.arguments.get("min_value", -np.inf), expectation.arguments.get("max_value", np.inf)
    return [int(label) for label in table["index"][(values < low) | (values > high)]]


def _list(items: Sequence[Any], singular: str, plural: str) -> str:
    shown = ", ".join(str(item) for item in items[:NAMED]) + (", …" if len(items) > NAMED else "")
    return f"{singular if len(items) == 1 else plural} {shown}"
