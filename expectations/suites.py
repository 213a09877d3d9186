"""The contract of a data set, as suites of expectations built from its manifest, never from the data to be checked.

Suites are Python, because a suite file silently loses an unknown expectation. Nothing here imports Great Expectations:
`kind` names its class, which `run_suites.run` looks up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expectations.summary import IMAGE_COLUMNS
from storage.datasets.catalog import Dataset, Ink
from storage.datasets.manifest import Limits
from storage.records import SPLITS, Severity, SplitName

# Limits are decimal shares: in floating point, 1 - 0.059 is slightly more than 0.941, a share that must still pass.
_ROUNDING = 1e-9
_HALF = 0.5


@dataclass(frozen=True)
class Expectation:
    """One condition that a table must meet."""

    name: str
    """Description of the expectation, for display."""
    kind: str
    """A class of `great_expectations.expectations`."""
    arguments: Mapping[str, Any]
    """Arguments of that class."""
    limit: str
    """The bounds, for display."""
    severity: Severity = "critical"
    """A failed critical expectation refuses the data; a failed warning is only reported."""
    percent: bool = False
    """Whether the observed value is a share, shown as a percentage."""
    setting: str = ""
    """Manifest key to change if the data is correct as it is; empty if no setting relaxes this expectation."""

    @property
    def column(self) -> str:
        """The column that it is about; empty if it is about the whole table."""
        return str(self.arguments.get("column") or self.arguments.get("column_A") or "")


@dataclass(frozen=True)
class Suite:
    """All expectations for one table."""

    table: str
    """`archives`, `train` or `test`."""
    of: str
    """What a row of the table represents: `row` (an image), `class`, `part` or `split`."""
    expectations: tuple[Expectation, ...]


def archives(dataset: Dataset) -> Suite:
    """Return the suite for `summary.archive_table`: the decoded archives match the manifest."""
    expectations = [
        _equal("rows in the file are those that were decoded", "rows_found", "rows_decoded"),
        _equal("content of the file is what was decoded", "content_found", "content_decoded"),
        _equal("image shape is as declared", "shape_found", "shape_declared", "image_shape"),
    ]
    if dataset.rows:
        expectations.append(_equal("rows are as declared", "rows_found", "rows_declared", "[rows]"))
    for kind in ("images", "labels"):
        if any(dataset.payload_sha256(f"{split}-{kind}") for split in SPLITS):
            expectations.append(
                _equal(f"{kind} are the published bytes", f"{kind}_found", f"{kind}_declared", "payload_sha256")
            )
    count = Expectation("both splits are there", "ExpectTableRowCountToEqual", {"value": len(SPLITS)}, str(len(SPLITS)))
    return Suite("archives", "split", (count, *expectations))


def images(dataset: Dataset, split: SplitName) -> Suite:
    """Return the suite for the image table (`summary.images`) of a split."""
    return Suite(
        split, "row", (*_complete(dataset, split), *_labels(dataset), *_pixels(dataset), *_repeats(dataset, split))
    )


def classes(dataset: Dataset, split: SplitName) -> Suite:
    """Return the suite for the class table (`summary.class_table`) of a split."""
    limits = dataset.limits
    least = limits.least_class_share(len(dataset.classes))
    return Suite(
        split,
        "class",
        (
            Expectation(
                "smallest class is large enough",
                "ExpectColumnMinToBeBetween",
                {"column": "share", "min_value": least},
                f"at least {percent(least)}",
                percent=True,
                setting=_limits("min_class_share"),
            ),
            Expectation(
                "largest class is not nearly all",
                "ExpectColumnMaxToBeBetween",
                {"column": "share", "max_value": limits.max_class_share},
                f"at most {percent(limits.max_class_share)}",
                percent=True,
                setting=_limits("max_class_share"),
            ),
            Expectation(
                "classes are balanced: largest / smallest",
                "ExpectColumnMaxToBeBetween",
                {"column": "imbalance", "max_value": limits.max_imbalance},
                f"at most {limits.max_imbalance:g}",
                "warning",
                setting=_limits("max_imbalance"),
            ),
        ),
    )


def match(dataset: Dataset, split: SplitName) -> Suite:
    """Return the suite for the match of labels and images (`summary.match_table`) of a split."""
    most = dataset.limits.max_label_chance
    expectation = Expectation(
        "labels belong to their images: not so by chance",
        "ExpectColumnMaxToBeBetween",
        {"column": "by_chance", "max_value": most},
        f"probability at most {most:g}",
        setting=_limits("max_label_chance"),
    )
    return Suite(split, "split", (expectation,))


def parts(dataset: Dataset, split: SplitName) -> Suite:
    """Return the suite for the match of labels and images in each part (`summary.part_table`) of a split."""
    expectation = Expectation(
        "labels of every part belong to its images",
        "ExpectColumnValuesToBeInSet",
        {"column": "unrelated", "value_set": [0]},
        "none that match by chance",
        setting=_limits("max_label_chance"),
    )
    return Suite(split, "part", (expectation,))


def ground(ink: Ink, split: SplitName) -> Suite:
    """Return the suite for the ground (`summary.ground_table`) of a split whose manifest declares its ink."""
    half = percent(_HALF)
    if ink == "bright":
        name, limit = "ink is bright: the border is in the darker half of the pixel range", f"at most {half}"
        kind, bound = "ExpectColumnMaxToBeBetween", "max_value"
    else:
        name, limit = "ink is dark: the border is in the brighter half of the pixel range", f"at least {half}"
        kind, bound = "ExpectColumnMinToBeBetween", "min_value"
    expectation = Expectation(name, kind, {"column": "ground", bound: _HALF}, limit, percent=True, setting="ink")
    return Suite(split, "split", (expectation,))


def percent(share: float) -> str:
    """Format a share for display: 0.0123 is `1.23%`."""
    return f"{100 * share:.4g}%"


def _complete(dataset: Dataset, split: SplitName) -> tuple[Expectation, ...]:
    columns = list(IMAGE_COLUMNS)
    if split in dataset.rows:
        rows = dataset.rows[split]
        count = Expectation(
            "rows are as declared",
            "ExpectTableRowCountToEqual",
            {"value": rows},
            f"{rows:,}",
            setting=f"[rows] {split}",
        )
    else:
        least = len(dataset.classes)
        count = Expectation(
            "enough rows for every class",
            "ExpectTableRowCountToBeBetween",
            {"min_value": least},
            f"at least {least:,}",
            setting="classes",
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
    span, least = f"0 to {labels[-1]}", dataset.limits.least_centroid_hit(len(labels))
    return (
        Expectation(
            "labels are classes",
            "ExpectColumnValuesToBeInSet",
            {"column": "label", "value_set": labels},
            span,
            setting="classes and labels",
        ),
        Expectation(
            "every class is present",
            "ExpectColumnDistinctValuesToContainSet",
            {"column": "label", "value_set": labels},
            f"all of {span}",
            setting="classes and labels",
        ),
        Expectation(
            "labels belong to their images: nearest class mean",
            "ExpectColumnMeanToBeBetween",
            {"column": "centroid_hit", "min_value": least},
            f"at least {percent(least)}",
            # A limit set for this data set is critical; failing the default one only shows that classes look alike.
            "warning" if dataset.limits.min_centroid_hit is None else "critical",
            percent=True,
            setting=_limits("min_centroid_hit"),
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
            setting=_limits("min_pixel_max"),
        ),
        Expectation(
            "darkest pixel uses the range",
            "ExpectColumnMinToBeBetween",
            {"column": "pixel_min", "min_value": 0, "max_value": limits.max_pixel_min},
            f"0 to {limits.max_pixel_min}",
            setting=_limits("max_pixel_min"),
        ),
        Expectation(
            "mean pixel is in the usual range",
            "ExpectColumnMeanToBeBetween",
            {"column": "mean", "min_value": limits.min_pixel_mean, "max_value": limits.max_pixel_mean},
            f"{limits.min_pixel_mean:g} to {limits.max_pixel_mean:g}",
            setting=_limits("min_pixel_mean", "max_pixel_mean"),
        ),
        _rarely("no image is blank", "blank", limits, "max_blank"),
    )


def _repeats(dataset: Dataset, split: SplitName) -> tuple[Expectation, ...]:
    limits = dataset.limits
    repeats = (
        _rarely("no image occurs twice", "duplicate", limits, "max_duplicates", "warning"),
        _rarely("no image has two labels", "conflict", limits, "max_conflicts", "warning"),
    )
    if split == "train":
        return repeats
    return (*repeats, _rarely("no test image is in the training split", "leaked", limits, "max_leaked"))


def _equal(name: str, actual: str, declared: str, setting: str = "") -> Expectation:
    arguments = {"column_A": actual, "column_B": declared, "ignore_row_if": "either_value_is_missing"}
    return Expectation(name, "ExpectColumnPairValuesToBeEqual", arguments, "equal", setting=setting)


def _rarely(name: str, column: str, limits: Limits, key: str, severity: Severity = "critical") -> Expectation:
    """Expect the 0/1 column to be 1 in at most the share of rows that `key` of the limits allows."""
    share: float = getattr(limits, key)
    arguments = {"column": column, "value_set": [0], "mostly": max(0.0, 1 - share - _ROUNDING) if share else 1.0}
    limit = f"at most {percent(share)}" if share else "none"
    return Expectation(name, "ExpectColumnValuesToBeInSet", arguments, limit, severity, setting=_limits(key))


def _limits(*keys: str) -> str:
    """Return where to find these keys in a manifest."""
    return f"[limits] {' and '.join(keys)}"
