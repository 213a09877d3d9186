"""Select the images of a report, and prepare its charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from storage.formats import parquet
from storage.records import RunRecord, Split
from tasks.report import charts, figures
from tasks.report.evidence import Evidence, readable
from tasks.report.rendering import Pictures

MAX_CLASSES = 64
"""Maximum number of classes with a picture."""
MAX_CHECKS = 12
"""Maximum number of checks whose rows are shown."""
DISAGREEMENTS = ("lost", "gained", "otherwise_wrong")


def pictures(run: RunRecord, values: Mapping[str, Any], evidence: Evidence) -> Pictures:
    """Return the images and charts of the report with the content `values`."""
    classes = values["data"]["classes"] if values["data"] else []
    examples = [c["example"] for c in classes if c["example"] is not None][:MAX_CLASSES]
    offending = _offending(values["checks"])
    sheets = _sheets(values["mistakes"])
    wanted: dict[str, list[int]] = {"train": list(examples), "test": [row for rows in sheets.values() for row in rows]}
    for table, rows in offending.values():
        wanted[table] = wanted[table] + rows
    images: dict[str, dict[int, np.ndarray]] = {
        split.name: _images(split, wanted[split.name]) for split in (run.train, run.test) if split
    }
    checks = {index: _together(images.get(table), rows) for index, (table, rows) in offending.items()}
    shown = {name: _together(images.get("test"), rows) for name, rows in sheets.items()}
    return Pictures(
        examples=_together(images.get("train"), examples),
        means=_means(classes, evidence.means),
        mistakes=shown.pop("mistakes", None),
        disagreements={name: found for name, found in shown.items() if found is not None},
        checks={index: found for index, found in checks.items() if found is not None},
        charts={chart.name: figures.chart(chart) for chart in charts.charts(values)},
    )


def _sheets(mistakes: Mapping[str, Any] | None) -> dict[str, list[int]]:
    """Return the rows of each sheet of test images."""
    if not mistakes:
        return {}
    found = {"mistakes": [mistake["row"] for mistake in mistakes["shown"]]}
    for name in DISAGREEMENTS:
        if mistakes[name]:
            found[name] = [row["row"] for row in mistakes[name]["shown"]]
    return found


def _offending(checks: Mapping[str, Any] | None) -> dict[int, tuple[str, list[int]]]:
    """Return table and rows of the failed checks that name rows, by position."""
    failed = enumerate(checks["checks"] if checks else [])
    named = [
        (index, (check["table"], check["rows"]))
        for index, check in failed
        if not check["passed"] and check["rows"] and check["table"] in ("train", "test")
    ]
    return dict(named[:MAX_CHECKS])


def _means(classes: Sequence[Mapping[str, Any]], means: Mapping[int, np.ndarray]) -> np.ndarray | None:
    """Return the mean image of each class that has an example, each stretched to its own full range."""
    wanted = [c["label"] for c in classes if c["example"] is not None][:MAX_CLASSES]
    if not wanted or any(label not in means for label in wanted):
        return None
    found = np.stack([means[label] for label in wanted])
    tops = np.maximum(found.max(axis=(1, 2), keepdims=True), 1e-9)
    stretched: np.ndarray = np.rint(found / tops * 255).astype(np.uint8)
    return stretched


def _images(split: Split, wanted: list[int]) -> dict[int, np.ndarray]:
    """Return the images of those wanted rows that exist, in one pass over the file."""
    there = sorted({row for row in wanted if 0 <= row < split.rows})
    found = readable(lambda path: parquet.rows(path, there), split.file) if there else None
    return {} if found is None else dict(zip(there, found, strict=True))


def _together(images: Mapping[int, np.ndarray] | None, rows: Sequence[int]) -> np.ndarray | None:
    """Return the images of `rows`; None unless all are available, so that their positions match."""
    if not images or not rows or any(row not in images for row in rows):
        return None
    return np.stack([images[row] for row in rows])
