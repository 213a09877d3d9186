"""The contract of a data set, as suites of expectations built from its manifest, never from the data under check.

Suites are Python: a suite file with an unknown expectation silently loses it, and Python does not.
Nothing here imports Great Expectations; `kind` names its class, which `check.run` looks up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expectations.summary import IMAGE_COLUMNS
from storage.catalog import Dataset
from storage.records import SPLITS, Severity, SplitName

# Limits are shares written in decimal: 1 - 0.059 is a little more than 0.941, the share that then still passes.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Expectation:
    """One thing that must hold for a table."""

    name: str
    """What is expected, in words."""
    kind: str
    """A class of `great_expectations.expectations`."""
    arguments: Mapping[str, Any]
    """What that class takes."""
    limit: str
    """The bounds, in words."""
    severity: Severity = "critical"
    """Critical: the data is refused. Warning: it is remarked on."""
    percent: bool = False
    """Whether what is observed is a share, shown in per cent."""

    @property
    def column(self) -> str:
        """The column it is about; empty where it is about the whole table."""
        return str(self.arguments.get("column") or self.arguments.get("column_A") or "")


@dataclass(frozen=True)
class Suite:
    """All that must hold for one table."""

    table: str
    """`archives`, `train` or `test`."""
    of: str
    """What one row of the table is: `row` (an image), `class` or `split`."""
    expectations: tuple[Expectation, ...]


def archives(dataset: Dataset) -> Suite:
    """Return what must hold for `summary.archive_table`: what decode found is what the manifest declares."""
    wanted = [
        _equal("rows in the file are those that were decoded", "rows_found", "rows_decoded"),
        _equal("content of the file is what was decoded", "content_found", "content_decoded"),
        _equal("image shape is as declared", "shape_found", "shape_declared"),
    ]
    if dataset.rows:
        wanted.append(_equal("rows are as declared", "rows_found", "rows_declared"))
    for kind in ("images", "labels"):
        if any(dataset.archive(f"{split}-{kind}").payload_sha256 for split in SPLITS):
            wanted.append(_equal(f"{kind} are the published bytes", f"{kind}_found", f"{kind}_declared"))
    count = Expectation("both splits are there", "ExpectTableRowCountToEqual", {"value": len(SPLITS)}, str(len(SPLITS)))
    return Suite("archives", "split", (count, *wanted))


def images(dataset: Dataset, split: SplitName) -> Suite:
    """Return what must hold for the image table (`summary.images`) of a split."""
    return Suite(
        split, "row", (*_complete(dataset, split), *_labels(dataset), *_pixels(dataset), *_repeats(dataset, split))
    )


def classes(dataset: Dataset, split: SplitName) -> Suite:
    """Return what must hold for the class table (`summary.class_table`) of a split."""
    limits = dataset.limits
    least = limits.least_class_share(len(dataset.classes))
    return Suite(
        split,
        "class",
        (
            _at_least("smallest class is large enough", "ExpectColumnMinToBeBetween", "share", least, percent=True),
            _at_most(
                "largest class is not nearly all",
                "ExpectColumnMaxToBeBetween",
                "share",
                limits.max_class_share,
                percent=True,
            ),
            _at_most(
                "classes are balanced: largest / smallest",
                "ExpectColumnMaxToBeBetween",
                "imbalance",
                limits.max_imbalance,
                severity="warning",
            ),
        ),
    )


def percent(share: float) -> str:
    """Return a share for people: 0.0123 is `1.23%`."""
    return f"{100 * share:.4g}%"


def _complete(dataset: Dataset, split: SplitName) -> tuple[Expectation, ...]:
    columns = list(IMAGE_COLUMNS)
    if split in dataset.rows:
        rows = dataset.rows[split]
        count = Expectation("rows are as declared", "ExpectTableRowCountToEqual", {"value": rows}, f"{rows:,}")
    else:
        least = len(dataset.classes)
        count = Expectation(
            "enough rows for every class", "ExpectTableRowCountToBeBetween", {"min_value": least}, f"at least {least:,}"
        )
    return (
        Expectation(
            "columns are those of the summary",
            "ExpectTableColumnsToMatchSet",
            {"column_set": columns, "exact_match": True},
            f"{len(columns)} columns",
        ),
        count,
        Expectation("no label is missing", "ExpectColumnValuesToNotBeNull", {"column": "label"}, "none missing"),
        Expectation("every image was measured", "ExpectColumnValuesToNotBeNull", {"column": "mean"}, "none missing"),
    )


def _labels(dataset: Dataset) -> tuple[Expectation, ...]:
    labels = list(range(len(dataset.classes)))
    span = f"0 to {labels[-1]}"
    return (
        Expectation(
            "labels are classes", "ExpectColumnValuesToBeInSet", {"column": "label", "value_set": labels}, span
        ),
        Expectation(
            "every class is present",
            "ExpectColumnDistinctValuesToContainSet",
            {"column": "label", "value_set": labels},
            f"all of {span}",
        ),
        _at_least(
            "labels belong to their images: nearest class mean",
            "ExpectColumnMeanToBeBetween",
            "centroid_hit",
            dataset.limits.least_centroid_hit(len(labels)),
            percent=True,
        ),
    )


def _pixels(dataset: Dataset) -> tuple[Expectation, ...]:
    limits = dataset.limits
    return (
        Expectation(
            "brightest pixel uses the range",
            "ExpectColumnMaxToBeBetween",
            {"column": "pixel_max", "min_value": limits.min_pixel_max, "max_value": 255},
            f"{limits.min_pixel_max} to 255",
        ),
        Expectation(
            "darkest pixel uses the range",
            "ExpectColumnMinToBeBetween",
            {"column": "pixel_min", "min_value": 0, "max_value": limits.max_pixel_min},
            f"0 to {limits.max_pixel_min}",
        ),
        Expectation(
            "mean pixel is in the usual range",
            "ExpectColumnMeanToBeBetween",
            {"column": "mean", "min_value": limits.min_pixel_mean, "max_value": limits.max_pixel_mean},
            f"{limits.min_pixel_mean:g} to {limits.max_pixel_mean:g}",
        ),
        _rarely("no image is blank", "blank", limits.max_blank),
    )


def _repeats(dataset: Dataset, split: SplitName) -> tuple[Expectation, ...]:
    limits = dataset.limits
    repeats = (
        _rarely("no image occurs twice", "duplicate", limits.max_duplicates, "warning"),
        _rarely("no image has two labels", "conflict", limits.max_conflicts, "warning"),
    )
    if split == "train":
        return repeats
    return (*repeats, _rarely("no test image is in the training split", "leaked", limits.max_leaked))


def _equal(name: str, found: str, declared: str) -> Expectation:
    arguments = {"column_A": found, "column_B": declared, "ignore_row_if": "either_value_is_missing"}
    return Expectation(name, "ExpectColumnPairValuesToBeEqual", arguments, "equal")


def _rarely(name: str, column: str, share: float, severity: Severity = "critical") -> Expectation:
    """Expect the 0/1 column to be 1 in at most this share of the rows."""
    arguments = {"column": column, "value_set": [0], "mostly": max(0.0, 1 - share - _ROUNDING) if share else 1.0}
    limit = f"at most {percent(share)}" if share else "none"
    return Expectation(name, "ExpectColumnValuesToBeInSet", arguments, limit, severity)


def _at_least(name: str, kind: str, column: str, bound: float, percent: bool) -> Expectation:
    arguments = {"column": column, "min_value": bound}
    return Expectation(name, kind, arguments, f"at least {_shown(bound, percent)}", percent=percent)


def _at_most(
    name: str, kind: str, column: str, bound: float, percent: bool = False, severity: Severity = "critical"
) -> Expectation:
    arguments = {"column": column, "max_value": bound}
    return Expectation(name, kind, arguments, f"at most {_shown(bound, percent)}", severity, percent)


def _shown(bound: float, as_percent: bool) -> str:
    return percent(bound) if as_percent else f"{bound:g}"
