"""Select the images of a report, and prepare its charts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from storage.formats import behaviour_images, split_rows
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
    drifted = [one["row"] for one in values["drift"]["most"]] if values["drift"] else []
    suspects, near_test, near_train = _of_audit(values["audit"])
    rows_by_split: dict[str, list[int]] = {
        "train": [*examples, *drifted],
        "test": [row for rows in sheets.values() for row in rows],
    }
    for table, rows in offending.values():
        rows_by_split[table] = rows_by_split[table] + rows
    images: dict[str, dict[int, np.ndarray]] = {
        split.name: _images(split, rows_by_split[split.name]) for split in (run.train, run.test) if split
    }
    # An audit is of all rows, also of those that were set aside later.
    audited = {"train": [*suspects, *near_train], "test": near_test}
    of_audit = {split.name: _images(split, audited[split.name]) for split in run.decoded}
    checks = {index: _together(images.get(table), rows) for index, (table, rows) in offending.items()}
    shown = {name: _together(images.get("test"), rows) for name, rows in sheets.items()}
    behaviour = readable(behaviour_images.read, run.behaviour if values["behaviour"] else None)
    return Pictures(
        quarantine=readable(_decoded, [picture for _, picture in evidence.set_aside]),
        examples=_together(images.get("train"), examples),
        means=_means(classes, evidence.means),
        suspects=_together(of_audit.get("train"), suspects),
        near_test=_together(of_audit.get("test"), near_test),
        near_train=_together(of_audit.get("train"), near_train),
        mistakes=shown.pop("mistakes", None),
        disagreements={name: image for name, image in shown.items() if image is not None},
        behaviour_before=behaviour.before if behaviour and len(behaviour.before) else None,
        behaviour_after=behaviour.after if behaviour and len(behaviour.after) else None,
        named=behaviour.named if behaviour and len(behaviour.named) else None,
        drift=_together(images.get("train"), drifted),
        checks={index: image for index, image in checks.items() if image is not None},
        charts=figures.charts(charts.charts(values)),
    )


def _decoded(files: Sequence[bytes]) -> np.ndarray | None:
    """Return the images of PNG files of one size; None if there are none."""
    from PIL import Image

    return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files]) if files else None


def _sheets(mistakes: Mapping[str, Any] | None) -> dict[str, list[int]]:
    """Return the rows of each sheet of test images."""
    if not mistakes:
        return {}
    rows = {"mistakes": [mistake["row"] for mistake in mistakes["shown"]]}
    for name in DISAGREEMENTS:
        if mistakes[name]:
            rows[name] = [row["row"] for row in mistakes[name]["shown"]]
    return rows


def _of_audit(audit: Mapping[str, Any] | None) -> tuple[list[int], list[int], list[int]]:
    """Return the rows of the suspects, and the test and training rows of the pairs."""
    if not audit:
        return [], [], []
    pairs = audit["pairs"]
    return (
        [one["row"] for one in audit["shown"]],
        [pair["test_row"] for pair in pairs],
        [pair["train_row"] for pair in pairs],
    )


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
    labels = [c["label"] for c in classes if c["example"] is not None][:MAX_CLASSES]
    if not labels or any(label not in means for label in labels):
        return None
    images = np.stack([means[label] for label in labels])
    tops = np.maximum(images.max(axis=(1, 2), keepdims=True), 1e-9)
    stretched: np.ndarray = np.rint(images / tops * 255).astype(np.uint8)
    return stretched


def _images(split: Split, rows: list[int]) -> dict[int, np.ndarray]:
    """Return the images of those wanted rows that exist, in one pass over the file."""
    existing = sorted({row for row in rows if 0 <= row < split.rows})
    images = readable(lambda split: split_rows.images(split, existing), split) if existing else None
    return {} if images is None else dict(zip(existing, images, strict=True))


def _together(images: Mapping[int, np.ndarray] | None, rows: Sequence[int]) -> np.ndarray | None:
    """Return the images of `rows`; None unless all are available, so that their positions match."""
    if not images or not rows or any(row not in images for row in rows):
        return None
    return np.stack([images[row] for row in rows])
