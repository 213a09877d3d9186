"""Compare two runs: their inputs, their scores, and the test images on which their predictions differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.formats import split_rows
from storage.formats.quarantined import archive_rows, rows_of
from storage.records import Behaviour, Evaluation, Paired, RunRecord, to_json
from storage.store import Store
from tasks.gate import criteria
from tasks.gate.behaviour import described
from tasks.report import past_runs, sanitize
from tasks.report.changes import run_differences
from tasks.report.evidence import answers, made_from, readable
from tasks.report.phrases import class_name

KINDS = ("right_to_wrong", "wrong_to_right")
MOST_PICTURED = 25
"""Maximum number of images in a picture."""


@dataclass(frozen=True)
class _Answers:
    """The predictions of both models for the same test images: integers of shape (rows,)."""

    labels: np.ndarray
    a: np.ndarray
    b: np.ndarray


def compare(store: Store, a: RunRecord, b: RunRecord) -> dict[str, Any]:
    """Return the differences between two runs of a data set, as JSON values.

    `differences` (part, name, a, b), `accuracy` (by split, only if they differ), `classes` (recall, only if it
    differs), `behaviour` (name, a, b: the share of answers that a test changes, or of named images that are right, only
    if it differs), `paired` (b against a on the same test images, see `storage.records.Paired`), `flips` (images that
    only one of the two gets right, by `KINDS`), and `missing`, sentences on what cannot be compared. Parts that cannot
    be compared are null.
    """
    both, reason = _answers(a, b)
    changed = run_differences((a, made_from(store, a)), (b, made_from(store, b)))
    values = {
        "dataset": a.dataset,
        "a": a.id,
        "b": b.id,
        "differences": [{"part": d.part, "name": d.name, "a": to_json(d.old), "b": to_json(d.new)} for d in changed],
        "accuracy": _accuracies(a, b),
        "classes": _classes(a.evaluation, b.evaluation),
        "behaviour": _behaviour(a.behaviour, b.behaviour),
        "paired": _paired(criteria.paired(both.labels, both.b, both.a)) if both else None,
        "flips": _flips(b if b.test else a, both) if both else None,
        "missing": [*_missing((a, b)), *([reason] if reason else [])],
    }
    shown: dict[str, Any] = sanitize.shareable_values(values, {store.address: "store", str(store.root): "store"})
    return shown


def pictured(flips: dict[str, Any]) -> list[dict[str, Any]]:
    """Return up to 25 of the flipped images, of both kinds if both occur, in the order of `KINDS`."""
    lost, gained = (flips[kind]["rows"] for kind in KINDS)
    first = lost[: max((MOST_PICTURED + 1) // 2, MOST_PICTURED - len(gained))]
    return [*first, *gained[: MOST_PICTURED - len(first)]]


def images(a: RunRecord, b: RunRecord, rows: list[int]) -> np.ndarray:
    """Return test images of two runs with the same test split, uint8 of shape (rows, height, width).

    Args:
        rows: their numbers in the archive, as `compare` names them.
    """
    test = b.test or a.test
    if test is None:
        raise ValueError("expected runs whose test images are in the store")
    return split_rows.images(test, rows_of(test, rows))


def _answers(a: RunRecord, b: RunRecord) -> tuple[_Answers | None, str]:
    """Return the predictions of both runs for the same images, or the reason why they cannot be compared."""
    first, second, test = a.evaluation, b.evaluation, b.test or a.test
    if first is None or second is None:
        return None, "without the predictions of both models, they cannot be compared image by image"
    if first.split_digest != second.split_digest:
        return None, "the runs were tested on different images, so their predictions are not compared image by image"
    if test is None:
        return None, "without the test images, the predictions cannot be compared"
    labels = readable(lambda test: split_rows.labels(test), test)
    ours, theirs = answers(first), answers(second)
    if labels is None or ours is None or theirs is None or not len(labels) == len(ours) == len(theirs):
        return None, "the predictions of the models do not match the test images, so they are not compared"
    return _Answers(labels, ours, theirs), ""


def _accuracies(a: RunRecord, b: RunRecord) -> dict[str, dict[str, float | None]]:
    accuracies = {
        "training": [run.model.train_accuracy if run.model else None for run in (a, b)],
        "test": [run.evaluation.accuracy if run.evaluation else None for run in (a, b)],
    }
    return {name: {"a": first, "b": second} for name, (first, second) in accuracies.items() if first != second}


def _classes(a: Evaluation | None, b: Evaluation | None) -> list[dict[str, Any]] | None:
    if a is None or b is None:
        return None
    before = {score.name: score for score in a.per_class}
    return [
        {"class": now.name, "rows": now.rows, "a": before[now.name].recall, "b": now.recall}
        for now in b.per_class
        if now.name in before and before[now.name].recall != now.recall
    ]


def _behaviour(a: Behaviour | None, b: Behaviour | None) -> list[dict[str, Any]] | None:
    if a is None or b is None:
        return None
    before, now = _shares(a), _shares(b)
    return [
        {"name": name, "a": before[name], "b": share}
        for name, share in now.items()
        if name in before and before[name] != share
    ]


def _shares(behaviour: Behaviour) -> dict[str, float]:
    named = len(behaviour.named)
    right = {"named images that are right": (named - len(behaviour.wrong)) / named} if named else {}
    return {f"answers changed by {described(test)}": test.worst.share for test in behaviour.tests} | right


def _paired(paired: Paired) -> dict[str, Any]:
    return {
        "rows": paired.rows,
        "both_right": paired.both_right,
        "only_a": paired.only_champion,
        "only_b": paired.only_candidate,
        "both_wrong": paired.both_wrong,
        "differing": paired.differing,
        "net": paired.net,
        "p_value": paired.p_value,
        "p_better": paired.p_better,
        "difference": paired.difference,
        "low": paired.low,
        "high": paired.high,
        "confidence": paired.confidence,
    }


def _flips(run: RunRecord, both: _Answers) -> dict[str, Any]:
    before, now = both.a == both.labels, both.b == both.labels

    def among(rows: np.ndarray) -> dict[str, Any]:
        indices = np.flatnonzero(rows).tolist()
        numbers = archive_rows(run.test, indices) if run.test else indices
        flips = [_flip(run, both, row, number) for row, number in zip(indices, numbers, strict=True)]
        return {"count": len(indices), "rows": flips}

    return {"right_to_wrong": among(before & ~now), "wrong_to_right": among(~before & now)}


def _flip(run: RunRecord, both: _Answers, row: int, number: int) -> dict[str, Any]:
    named = {"label": both.labels, "a": both.a, "b": both.b}
    return {"row": number, **{name: class_name(run, int(values[row])) for name, values in named.items()}}


def _missing(runs: Sequence[RunRecord]) -> list[str]:
    """Return sentences on the results of each run that can no longer be read, and on how it ended if it ended early."""
    sentences = []
    for run in dict.fromkeys(run.id for run in runs):
        record = next(r for r in runs if r.id == run)
        if missing := past_runs.missing(record):
            sentences.append(f"run {run}: removed from the store or damaged: {', '.join(missing)}")
        if record.failure and not record.evaluation:
            sentences.append(f"run {run} ended before its model was tested")
    return sentences
