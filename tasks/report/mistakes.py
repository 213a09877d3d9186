"""The images that the model gets wrong with the most confidence, and those on which it and the champion disagree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from storage.records import RunRecord, to_json
from tasks.report.evidence import Evidence
from tasks.report.phrases import class_name, counted

MOST = 25
"""Maximum number of images of each kind of disagreement."""


def mistakes(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    """Return the most confident mistakes and the disagreements with the champion; None if nothing was tested.

    `lost` are rows that the champion gets right and the model wrong, `gained` the opposite, `otherwise_wrong` rows that
    both get wrong with different answers; the most confident come first. All three are null if there are no champion's
    answers to compare with.
    """
    score = run.evaluation
    if not score:
        return None
    named = [
        {
            **to_json(m),
            "name": class_name(run, m.label),
            "predicted_name": class_name(run, m.predicted),
            "true_probability": _at(evidence.mistakes.get(m.row), m.label),
        }
        for m in score.mistakes
    ]
    disagreements = _disagreements(run, evidence)
    wrong = score.rows - score.correct
    return {"sentence": _sentence(wrong, disagreements), "count": wrong, "shown": named, **disagreements}


def _disagreements(run: RunRecord, evidence: Evidence) -> dict[str, dict[str, Any] | None]:
    labels, ours, theirs = evidence.test_labels, evidence.predicted, evidence.champion_predicted
    if labels is None or ours is None or theirs is None or not len(labels) == len(ours) == len(theirs):
        return {"lost": None, "gained": None, "otherwise_wrong": None}
    sure = evidence.sure
    right, before = ours == labels, theirs == labels

    def among(rows: np.ndarray) -> dict[str, Any]:
        numbers = np.flatnonzero(rows)
        if sure is not None:
            numbers = numbers[np.argsort(-sure[numbers], kind="stable")]
        shown = [
            {
                "row": row,
                "label": int(labels[row]),
                "name": class_name(run, int(labels[row])),
                "predicted_name": class_name(run, int(ours[row])),
                "champion_name": class_name(run, int(theirs[row])),
                "probability": _at(sure, row),
            }
            for row in numbers[:MOST].tolist()
        ]
        return {"count": len(numbers), "shown": shown}

    return {
        "lost": among(~right & before),
        "gained": among(right & ~before),
        "otherwise_wrong": among(~right & ~before & (ours != theirs)),
    }


def _at(values: np.ndarray | None, place: int) -> float | None:
    value = float(values[place]) if values is not None and place < len(values) else math.nan
    return value if math.isfinite(value) else None


def _sentence(wrong: int, disagreements: dict[str, Any]) -> str:
    text = f"The model gets {counted(wrong, 'test image')} wrong" if wrong else "The model gets every test image right"
    if disagreements["lost"] is None:
        return f"{text}; there are no champion's predictions to compare with."
    lost, gained = disagreements["lost"]["count"], disagreements["gained"]["count"]
    if not lost and not gained:
        return f"{text}, the same ones as the champion." if wrong else f"{text}, as does the champion."
    return f"{text}. Compared with the champion, {counted(gained, 'image')} became right and {lost:,} became wrong."
