"""Findings of Great Expectations in the parts of a table, and how they merge into the findings for the whole table.

Great Expectations needs a table as one frame in memory, so a table of millions of rows is passed to it in parts.
Counts, sums, extremes, absent values and first offending rows of the parts merge exactly into those of the whole table,
and are compared with the bounds in the same way. `run_suites.run` verifies this: for each part, the result from here
must agree with that of Great Expectations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Protocol, Self

import numpy as np

from expectations.summary import Table

NAMED = 20
"""Maximum offending rows, and values, kept for a part and for the whole. Great Expectations keeps no more."""

Arguments = Mapping[str, Any]


class Finding(Protocol):
    """The finding about one expectation."""

    @classmethod
    def of(cls, result: Mapping[str, Any], arguments: Arguments, table: Table) -> Self:
        """Return Great Expectations' finding (`result` of its JSON result) in the part `table`."""

    def merged(self, later: Self) -> Self:
        """Return the finding for these rows and the later ones together."""

    def holds(self, arguments: Arguments) -> bool:
        """Tell whether the expectation with these arguments is met."""


@dataclass(frozen=True)
class Rows:
    """Finding of an expectation about each row: how many rows break it, and the first of them."""

    rows: int
    considered: int
    """Rows that have a value; an expectation about values ignores the others."""
    unexpected: int
    values: tuple[Any, ...]
    """The first offending values."""
    places: tuple[int, ...]
    """Their `index`."""

    @classmethod
    def of(cls, result: Mapping[str, Any], arguments: Arguments, table: Table) -> Self:
        rows = result["element_count"]
        places = (int(place["index"]) for place in result.get("partial_unexpected_index_list") or ())
        return cls(
            rows,
            rows - result.get("missing_count", 0),
            result["unexpected_count"],
            tuple(result["partial_unexpected_list"])[:NAMED],
            tuple(places)[:NAMED],
        )

    def merged(self, later: Self) -> Self:
        return type(self)(
            self.rows + later.rows,
            self.considered + later.considered,
            self.unexpected + later.unexpected,
            (self.values + later.values)[:NAMED],
            (self.places + later.places)[:NAMED],
        )

    def holds(self, arguments: Arguments) -> bool:
        mostly: float = arguments.get("mostly", 1.0)
        return not self.considered or (self.considered - self.unexpected) / self.considered >= mostly


@dataclass(frozen=True)
class Absent:
    """Finding of an expectation that a column has every value of a set: the absent values, in the order of the set."""

    values: tuple[Any, ...]

    @classmethod
    def of(cls, result: Mapping[str, Any], arguments: Arguments, table: Table) -> Self:
        # Great Expectations names at most 20, among which a value absent from all parts could be missing.
        present = set(np.unique(table[arguments["column"]]).tolist())
        return cls(tuple(value for value in arguments["value_set"] if value not in present))

    def merged(self, later: Self) -> Self:
        return type(self)(tuple(value for value in self.values if value in set(later.values)))

    def holds(self, arguments: Arguments) -> bool:
        return not self.values


@dataclass(frozen=True)
class Columns:
    """Finding of an expectation about the names of the columns."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, result: Mapping[str, Any], arguments: Arguments, table: Table) -> Self:
        return cls(tuple(result["observed_value"]))

    def merged(self, later: Self) -> Self:
        """Return the names that all parts have; a name that only some parts have is not a column of the whole table."""
        return type(self)(tuple(name for name in self.names if name in later.names))

    def holds(self, arguments: Arguments) -> bool:
        return set(self.names) == set(arguments["column_set"])


@dataclass(frozen=True)
class Value:
    """Finding of an expectation about one number for all rows: that number, or None."""

    value: float | None

    @classmethod
    def of(cls, result: Mapping[str, Any], arguments: Arguments, table: Table) -> Self:
        return cls(result["observed_value"])

    def merged(self, later: Self) -> Self:
        values = [value for value in (self.value, later.value) if value is not None]
        return type(self)(self._together(values) if values else None)

    def holds(self, arguments: Arguments) -> bool:
        if self.value is None:
            return False
        low, high = (arguments.get(name, arguments.get("value")) for name in ("min_value", "max_value"))
        # Great Expectations returns some numbers as NumPy scalars, whose comparisons are not a plain bool.
        return bool((low is None or self.value >= low) and (high is None or self.value <= high))

    @staticmethod
    def _together(values: list[float]) -> float:
        """Combine the numbers of the parts into the number for all rows."""
        raise NotImplementedError


class Count(Value):
    """The number of rows."""

    @staticmethod
    def _together(values: list[float]) -> float:
        return sum(values)


class Least(Value):
    """The smallest value of a column."""

    @staticmethod
    def _together(values: list[float]) -> float:
        return min(values)


class Most(Value):
    """The largest value of a column."""

    @staticmethod
    def _together(values: list[float]) -> float:
        return max(values)


@dataclass(frozen=True)
class Mean:
    """The mean of a column, kept as the sum and the number of its values: exact for integers."""

    total: Fraction
    rows: int

    @classmethod
    def of(cls, result: Mapping[str, Any], arguments: Arguments, table: Table) -> Self:
        column = table[arguments["column"]]
        rows = int(np.count_nonzero(column == column))  # NaN, a missing value, is not equal to itself
        total = Fraction(result["observed_value"] or 0) * rows
        return cls(total if column.dtype.kind == "f" else Fraction(round(total)), rows)

    @property
    def value(self) -> float | None:
        return float(self.total / self.rows) if self.rows else None

    def merged(self, later: Self) -> Self:
        return type(self)(self.total + later.total, self.rows + later.rows)

    def holds(self, arguments: Arguments) -> bool:
        return Value(self.value).holds(arguments)


FINDINGS: dict[str, type[Finding]] = {
    "ExpectColumnDistinctValuesToContainSet": Absent,
    "ExpectColumnMaxToBeBetween": Most,
    "ExpectColumnMeanToBeBetween": Mean,
    "ExpectColumnMinToBeBetween": Least,
    "ExpectColumnPairValuesToBeEqual": Rows,
    "ExpectColumnValuesToBeInSet": Rows,
    "ExpectColumnValuesToNotBeNull": Rows,
    "ExpectTableColumnsToMatchSet": Columns,
    "ExpectTableRowCountToBeBetween": Count,
    "ExpectTableRowCountToEqual": Count,
}
"""The expectations whose findings in parts can be merged, by their class in Great Expectations."""


def to_json(finding: Finding) -> dict[str, Any]:
    """Return a finding as JSON values. Numbers come back as they are: JSON has 17 digits of a float, if need be."""
    values: Any = finding
    return {
        each.name: str(value) if isinstance(value := getattr(finding, each.name), Fraction) else value
        for each in fields(values)
    }


def from_json(kind: type[Finding], values: Mapping[str, Any]) -> Finding:
    """Return the finding of a class of `FINDINGS` from its JSON values.

    Raises:
        TypeError, ValueError: they are not those of such a finding.
    """
    return kind(**{name: _revived(kind, name, value) for name, value in values.items()})


def _revived(kind: type[Finding], name: str, value: Any) -> Any:
    if kind is Mean and name == "total":
        return Fraction(value)
    return tuple(value) if isinstance(value, list) else value
