"""The duration of each step, and whether its result was reused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from storage.records import RunRecord, to_json
from tasks.report.phrases import counted


def timing(run: RunRecord) -> dict[str, Any] | None:
    """Return the steps of a run in order; None if it had none."""
    if not run.steps:
        return None
    reused = sum(step.reused for step in run.steps)
    seconds = total(step.seconds for step in run.steps)
    return {
        "sentence": f"{counted(len(run.steps), 'step')}, {reused} of them reused from the store.",
        "seconds": seconds,
        "steps": [{"name": step.name, **to_json(step), "seconds": round(step.seconds, 3)} for step in run.steps],
    }


def total(seconds: Iterable[float]) -> float:
    """Return the sum of the steps' durations, each rounded to the millisecond, as in the ledger."""
    return round(sum(round(taken, 3) for taken in seconds), 3)
