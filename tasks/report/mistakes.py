"""The images that the model gets wrong with the most confidence, and those on which it and the champion disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from storage.records import RunRecord, to_json
from tasks.report.evidence import Evidence
from tasks.report.phrases import class_name, counted
from tasks.slicing.columns import together

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
    answers = evidence.test_labels, evidence.predicted, evidence.champion_predicted
    blocks = together(*answers, evidence.sure) or together(*answers)
    if blocks is None:
        return {"lost": None, "gained": None, "otherwise_wrong": None}
    lost, gained, otherwise_wrong = _Surest(), _Surest(), _Surest()
    first = 0
    for labels, ours, theirs, *rest in blocks:
        sure = rest[0] if rest else np.full(len(labels), np.nan, np.float32)
        columns = np.arange(first, first + len(labels)), labels, ours, theirs, sure
        right, before = ours == labels, theirs == labels
        lost.add(~right & before, columns)
        gained.add(right & ~before, columns)
        otherwise_wrong.add(~right & ~before & (ours != theirs), columns)
        first += len(labels)
    return {"lost": lost.said(run), "gained": gained.said(run), "otherwise_wrong": otherwise_wrong.said(run)}


class _Surest:
    """Test rows of one kind: how many there are, and those of which the model was surest."""

    def __init__(self) -> None:
        self._count, self._columns = 0, tuple[np.ndarray, ...]()

    def add(self, rows: np.ndarray, columns: Sequence[np.ndarray]) -> None:
        """Add some of the next rows.

        Args:
            rows: which of them, bool of shape (n,).
            columns: their numbers, labels, classes that both models predict, and probabilities, each of shape (n,).
        """
        chosen = [column[rows] for column in columns]
        self._count += len(chosen[0])
        known = [np.concatenate(pair) for pair in zip(self._columns, chosen, strict=True)] if self._columns else chosen
        order = np.argsort(-known[-1], kind="stable")[:MOST]
        self._columns = tuple(column[order] for column in known)

    def said(self, run: RunRecord) -> dict[str, Any]:
        """Return the count and the rows, the surest first."""
        rows = zip(*(column.tolist() for column in self._columns), strict=True)
        shown = [
            {
                "row": row,
                "label": label,
                "name": class_name(run, label),
                "predicted_name": class_name(run, ours),
                "champion_name": class_name(run, theirs),
                "probability": sure if math.isfinite(sure) else None,
            }
            for row, label, ours, theirs, sure in rows
        ]
        return {"count": self._count, "shown": shown}


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
