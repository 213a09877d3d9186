"""The test: accuracy with its interval, each class, the confusions, calibration, ink and slant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage.records import ClassScore, Confirmation, Evaluation, RunRecord, to_json
from tasks.gate import wilson
from tasks.report.calibration import calibration
from tasks.report.evidence import Evidence
from tasks.report.phrases import class_name, class_names, counted
from tasks.report.slices import slices, weakest
from tasks.slicing.columns import together

_MAX_CONFUSIONS = 10


def evaluation(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    """Return the score of the run's model on the test split; None if it was not tested."""
    score = run.evaluation
    if not score:
        return None
    before = {c.label: c for c in run.champion_evaluation.per_class} if run.champion_evaluation else {}
    quarters, others = slices(evidence.measures, evidence.right), unseen(evidence)
    only_seen = leaked(run, evidence) == score.rows
    return {
        "sentence": _sentence(score, others, only_seen),
        "unseen": others,
        "rows": score.rows,
        "correct": score.correct,
        "accuracy": score.accuracy,
        "low": score.accuracy_low,
        "high": score.accuracy_high,
        "loss": score.loss,
        "confirmation": _confirmation(run.confirmation) if run.confirmation else None,
        "per_class": [_class_score(c, before) for c in sorted(score.per_class, key=_by_recall)],
        "class_names": list(class_names(run)),
        "confusion": to_json(score.confusion),
        "confusion_change": _confusion_change(run),
        "most_confused": _most_confused(score),
        "confusions": _confusions(run, score),
        "calibration": calibration(evidence.sure, evidence.right),
        "slices": quarters,
        "slices_sentence": weakest(quarters),
    }


def unseen(evidence: Evidence) -> dict[str, Any] | None:
    """Return the score on the test images that are not in the training split; None if all or none of them are."""
    rows = correct = 0
    for leaked, right in together(evidence.leaked, evidence.right) or ():
        rows, correct = rows + int((~leaked).sum()), correct + int(right[~leaked].sum())
    if not rows:
        return None
    low, high = wilson.interval(correct, rows)
    return {"rows": rows, "correct": correct, "accuracy": correct / rows, "low": low, "high": high}


def leaked(run: RunRecord, evidence: Evidence) -> int | None:
    """Return how many test images are also in the training split; None if unknown."""
    if evidence.leaked is not None:
        return sum(int(leaked.sum()) for leaked in evidence.leaked.blocks())
    checks = [check for check in run.validation.checks if check.column == "leaked"] if run.validation else []
    # The check names the rows even if its limit allows them.
    return 0 if checks and not any(check.rows for check in checks) else None


def _sentence(score: Evaluation, others: Mapping[str, Any] | None, only_seen: bool) -> str:
    text = f"The model classifies {score.correct:,} of {score.rows:,} test images correctly"
    if others:
        text += (
            f", but {score.rows - others['rows']:,} test images are in the training split too. Of the other "
            f"{others['rows']:,}, it classifies {others['correct']:,} correctly ({others['accuracy']:.2%})"
        )
    if only_seen:
        return f"{text}, but all test images are in the training split too, so this says nothing about new images."
    low, high = (others["low"], others["high"]) if others else (score.accuracy_low, score.accuracy_high)
    return f"{text}; on more images like these, expect an accuracy of {low:.2%} to {high:.2%} (95% interval)."


def _confirmation(confirmation: Confirmation) -> dict[str, Any]:
    rows, difference = counted(confirmation.rows, "test image"), confirmation.difference
    largest = f"the largest difference in probability is {difference:.0e}" if difference else "to the last bit"
    text = f"A new process that loaded the saved model predicted the same for {rows}: {largest}."
    return {"sentence": text, **to_json(confirmation)}


def _by_recall(score: ClassScore) -> tuple[bool, float, int]:
    known = score.recall is not None and score.rows > 0
    return not known, score.recall if known else 0.0, score.label


def _class_score(score: ClassScore, before: Mapping[int, ClassScore]) -> dict[str, Any]:
    change = score.recall - before[score.label].recall if score.label in before else None
    known = score.recall is not None and score.rows > 0
    low, high = wilson.interval(round(score.recall * score.rows), score.rows) if known else (None, None)
    return {**to_json(score), "low": low, "high": high, "change": change}


def _confusion_change(run: RunRecord) -> list[list[int]]:
    """Return the confusion matrix minus the champion's; empty without a champion to compare with."""
    ours, theirs = run.evaluation, run.champion_evaluation
    if not ours or not theirs or len(ours.confusion) != len(theirs.confusion):
        return []
    return [
        [now - before for now, before in zip(row, old, strict=True)]
        for row, old in zip(ours.confusion, theirs.confusion, strict=True)
    ]


def _confusions(run: RunRecord, score: Evaluation) -> list[dict[str, Any]]:
    pairs = [
        (count, true, predicted)
        for true, counts in enumerate(score.confusion)
        for predicted, count in enumerate(counts)
        if count and true != predicted
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [
        {
            "true": class_name(run, true),
            "predicted": class_name(run, predicted),
            "count": count,
            "share": count / max(sum(score.confusion[true]), 1),
        }
        for count, true, predicted in pairs[:_MAX_CONFUSIONS]
    ]


def _most_confused(score: Evaluation) -> int:
    wrong = (
        n for true, counts in enumerate(score.confusion) for predicted, n in enumerate(counts) if predicted != true
    )
    return max(wrong, default=0)
