"""The trend: accuracy, duration and decision of the last runs, this one last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from storage.outcomes import steps_of
from storage.records import RunRecord
from tasks.gate import wilson
from tasks.report import timing
from tasks.report.evidence import MAX_PAST, Evidence
from tasks.report.phrases import counted
from tasks.report.sanitize import presentable
from tasks.report.verdict import outcome

MAX_RUNS = MAX_PAST + 1


def trend(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    """Return the last runs of the data set up to this one, oldest first; None if this is the first."""
    earlier = [run_values for values in evidence.past if (run_values := past_run(values))]
    if not earlier:
        return None
    score = run.evaluation
    this = {
        "id": run.id,
        "outcome": outcome(run),
        "accuracy": score.accuracy if score else None,
        "low": score.accuracy_low if score else None,
        "high": score.accuracy_high if score else None,
        "seconds": timing.total(step.seconds for step in run.steps),
    }
    runs = [*earlier[-MAX_PAST:], this]
    return {"sentence": _sentence(runs), "runs": runs}


def _sentence(runs: list[dict[str, Any]]) -> str:
    accuracies = [values["accuracy"] for values in runs if values["accuracy"] is not None]
    promoted = sum(values["outcome"] == "promoted" for values in runs)
    text = f"The last {counted(len(runs), 'run')} of this data set promoted {counted(promoted, 'model')}"
    if not accuracies:
        return f"{text}; none of these runs tested a model."
    return f"{text}; test accuracy ranged from {min(accuracies):.2%} to {max(accuracies):.2%}."


def past_run(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a run of the trend from its ledger record, which another version may have written; None if it is none."""
    identity, accuracy = values.get("run"), values.get("test_accuracy")
    if not isinstance(identity, str):
        return None
    rows = values.get("test_rows")
    known = isinstance(accuracy, float) and math.isfinite(accuracy)
    low, high = None, None
    if known and accuracy is not None and isinstance(rows, int) and rows > 0:
        low, high = wilson.interval(round(accuracy * rows), rows)
    return {
        "id": presentable(identity),
        "outcome": presentable(str(values.get("state") or "undecided")),
        "accuracy": accuracy if known else None,
        "low": low,
        "high": high,
        "seconds": _seconds(values),
    }


def _seconds(values: Mapping[str, Any]) -> float | None:
    try:
        return timing.total(step.seconds for step in steps_of(values) if step.step != "publish") or None
    except (AttributeError, TypeError, ValueError):
        return None
