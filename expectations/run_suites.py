"""Run a suite on a table with Great Expectations, and report the results as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expectations import engine_process
from expectations.engine import Result
from expectations.findings import FINDINGS, NAMED, Absent, Columns, Finding, Mean, Rows, Value, from_json, to_json
from expectations.suites import Expectation, Suite, percent
from expectations.summary import Table
from storage.errors import IdxflowError
from storage.records import Check

_VALUES_NAMED = 5


@dataclass(frozen=True)
class Seen:
    """What was found about one expectation in some rows of a table."""

    finding: Finding
    outside: tuple[int, ...] = ()
    """The classes that are out of bounds, if a row of the table is a class."""

    def merged(self, later: Seen) -> Seen:
        """Return what was found in these rows and the later ones together."""
        return Seen(self.finding.merged(later.finding), self.outside + later.outside)


Look = tuple[Seen, ...]
"""What was found in some rows of a table, in the order of the suite."""


def run(suite: Suite, parts: Iterable[Table]) -> tuple[Check, ...]:
    """Evaluate every expectation of `suite`, in order, on the table made of `parts`.

    One part is in memory at a time. The result is the same as for all rows at once, for any division into parts. Uses
    neither disk nor network. Thread-safe.

    Raises:
        IdxflowError: the suite is empty, there are no parts, or an expectation could not be evaluated, which is not a
            verdict on the data.
    """
    return checks(suite, [look(suite, parts)])


def look(suite: Suite, tables: Iterable[Table]) -> Look:
    """Return what Great Expectations finds in the rows of all `tables`, one of which is in memory at a time.

    Raises:
        IdxflowError: as for `run`.
    """
    if not suite.expectations:
        raise IdxflowError(f"{suite.table}: expected a suite of expectations; it is empty and would pass any data")
    return _together(suite, (_look(suite, table) for table in tables))


def checks(suite: Suite, looks: Iterable[Look]) -> tuple[Check, ...]:
    """Return the results of a suite from what was found in all rows, in their order.

    Raises:
        IdxflowError: there are none.
    """
    seen = _together(suite, looks)
    return tuple(_check(suite, expectation, one) for expectation, one in zip(suite.expectations, seen, strict=True))


def looked(suite: Suite, values: Sequence[Mapping[str, Any]]) -> Look:
    """Return what was found in some rows of a table from its JSON form: `look_json` of a suite without classes."""
    kinds = (FINDINGS[expectation.kind] for expectation in suite.expectations)
    return tuple(Seen(from_json(kind, one)) for kind, one in zip(kinds, values, strict=True))


def look_json(seen: Look) -> list[dict[str, Any]]:
    """Return what was found as JSON values."""
    return [to_json(one.finding) for one in seen]


def _together(suite: Suite, looks: Iterable[Look]) -> Look:
    together: Look | None = None
    for one in looks:
        together = one if together is None else tuple(a.merged(b) for a, b in zip(together, one, strict=True))
    if together is None:
        raise IdxflowError(f"{suite.table}: expected at least one part of a table; found none to evaluate")
    return together


def _look(suite: Suite, table: Table) -> Look:
    """Return the findings in one part, in the order of the suite."""
    results = engine_process.evaluate(suite, table)
    if sorted(results) != list(range(len(suite.expectations))):
        raise IdxflowError(
            f"{suite.table}: expected {len(suite.expectations)} expectations to be evaluated; {len(results)} were; "
            "this is a fault of the suite, not of the data"
        )
    return tuple(
        Seen(
            _finding(suite, expectation, results[number], table),
            _outside(expectation, table) if suite.of == "class" else (),
        )
        for number, expectation in enumerate(suite.expectations)
    )


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


def _check(suite: Suite, expectation: Expectation, seen: Seen) -> Check:
    finding = seen.finding
    passed, observed = finding.holds(expectation.arguments), _observed(suite, expectation, finding)
    if suite.of == "class" and not passed:
        observed += f" ({_list(seen.outside, 'class', 'classes')})"
    return Check(
        table=suite.table,
        name=expectation.name,
        expectation=re.sub("(?<!^)(?=[A-Z])", "_", expectation.kind).lower(),
        column=expectation.column,
        limit=expectation.limit,
        observed=observed,
        severity=expectation.severity,
        passed=passed,
        rows=finding.places if isinstance(finding, Rows) and suite.of in ("row", "part") else (),
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
    of = {"row": "rows", "class": "classes", "part": "parts", "split": "splits"}[suite.of]
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


def _outside(expectation: Expectation, table: Table) -> tuple[int, ...]:
    """Return the classes whose value is out of bounds."""
    values = table[expectation.column]
    low, high = expectation.arguments.get("min_value", -np.inf), expectation.arguments.get("max_value", np.inf)
    return tuple(int(label) for label in table["index"][(values < low) | (values > high)])


def _list(items: Sequence[Any], singular: str, plural: str) -> str:
    shown = ", ".join(str(item) for item in items[:NAMED]) + (", …" if len(items) > NAMED else "")
    return f"{singular if len(items) == 1 else plural} {shown}"
