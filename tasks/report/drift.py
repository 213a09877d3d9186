"""How far the training data of a run is from that of the champion before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.records import RunRecord
from tasks.drifting.champion import sample_of
from tasks.drifting.compare import compare, reference
from tasks.report.evidence import DriftFound, Evidence, readable
from tasks.report.phrases import class_name

if TYPE_CHECKING:
    from storage.datasets.manifest import Drift

MOST_ROWS = 5_000
"""The most images of each that are compared: a report is to be cheap."""
_LEAST_ROWS = 20


def found(run: RunRecord, evidence: Evidence) -> DriftFound | None:
    """Compare the training images of a run with those of the champion before it, without the answers of either model.

    Returns:
        None if there is no champion, its data is gone or the same, or the images cannot be compared.
    """
    champion = evidence.champion
    old, new = champion.run.train if champion else None, run.train
    if old is None or new is None or old.digest == new.digest or old.image_shape != new.image_shape:
        return None
    samples = [readable(lambda split: sample_of(split, MOST_ROWS), split) for split in (old, new)]
    before, after = samples
    if before is None or after is None or min(len(before), len(after)) < _LEAST_ROWS:
        return None
    limits = _limits(run)
    comparison = readable(lambda sample: compare(reference(before, old.classes, None), sample, None, limits), after)
    return DriftFound(comparison, after.rows, after.labels) if comparison else None


def drift(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    """Return the drift as JSON values; None if there is nothing to compare, or no new training data.

    `most` are the training images that differ most, by their rows.
    """
    seen, champion = evidence.drift, evidence.champion
    if seen is None or champion is None:
        return None
    sentence = seen.comparison.sentence(f"champion v{champion.number}")
    most = []
    for place, newness in seen.comparison.most:
        label = None if seen.labels is None else int(seen.labels[place])
        name = None if label is None else class_name(run, label)
        most.append({"row": int(seen.rows[place]), "newness": newness, "label": label, "name": name})
    return {
        "sentence": f"{sentence[0].upper()}{sentence[1:]}.",
        "champion": champion.number,
        **seen.comparison.values(),
        "most": most,
    }


def _limits(run: RunRecord) -> Drift:
    from storage.datasets.manifest import Drift

    changed: dict[str, Any] = dict(run.facts.drift or {}) if run.facts else {}
    return Drift(**changed)
