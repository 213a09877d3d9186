"""What a study has found, for people and for machines."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flows.tuning.course import Course
from storage.records import Trial, to_json
from storage.words import brief, counted
from tasks.tuning.optuna_study import is_better, score

SHOWN = 10
"""Trials of the table."""
_WIDE = 46


def line(course: Course, trial: Trial) -> str:
    """Return the line of a trial that has ended."""
    number = f"trial {trial.number:<4}"
    values = _values(trial.values)
    if trial.state != "complete":
        why = f"  {trial.reason}" if trial.state == "failed" else ""
        return f"{number} {trial.state:<38} {trial.seconds:7.1f} s  {values}{why}"
    best = "  best so far" if course.ranking[0] is trial else ""
    return f"{number} {result(trial):<38} {trial.seconds:7.1f} s  {values}{best}"


def result(trial: Trial) -> str:
    """Return the accuracy and the loss of a complete trial, with the spread of the accuracy if it has several seeds."""
    accuracy, loss = statistics.fmean(trial.accuracies), statistics.fmean(trial.losses)
    return f"{accuracy:.2%}{_spread(trial.accuracies)} held out, loss {loss:.4f}"


def sentence(course: Course) -> str:
    """Return what the study has found, in one sentence."""
    counts = [f"{number:,} {state}" for state, number in course.counts.items() if number]
    done = f"{counted(len(course.trials), 'trial')} ({', '.join(counts)})"
    if not course.ranking:
        return f"{course.job.dataset.name}: no trial of {done} is complete, so there is nothing to use"
    best, first, by = course.ranking[0], course.trials.get(0), course.search.by
    words = f"{course.job.dataset.name}: trial {best.number} is the best of {done}, {result(best)}"
    if first is None or first.state != "complete":
        return words
    if not is_better(score(best, by), score(first, by), by):
        return f"{words}; none is better than the configuration before the search"
    return f"{words}; before the search: {result(first)}"


def table(course: Course) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table: the best trials, and the configuration before the search."""
    ranking = course.ranking
    for place, trial in enumerate(ranking, 1):
        if place <= SHOWN or not trial.number:
            first = "  (before the search)" if not trial.number else ""
            yield f"{place:>3}  trial {trial.number:<4} {result(trial):<38}", f"{_values(trial.values)}{first}"


def to_json_value(course: Course, seconds: float) -> dict[str, Any]:
    """Return what `--json` prints."""
    values, run = summary(course), course.request.tuned_run()
    if values["winner"]:
        values["winner"]["command"] = run.command("run")
    return {
        "state": "complete" if len(course.trials) >= course.total else "unfinished",
        **values,
        "store": course.job.store.address,
        "report": course.report,
        "seconds": round(seconds, 3),
        "error": None,
    }


def summary(course: Course) -> dict[str, Any]:
    """Return what does not depend on where the store is, for the report."""
    winner, run = course.winner(), course.request.tuned_run()
    return {
        "sentence": sentence(course),
        "dataset": course.job.dataset.name,
        "study": course.study.entry.key,
        "by": course.search.by,
        "counts": course.counts,
        "winner": {**winner, "command": replace(run, store=None, source=None).command("run")} if winner else None,
        "trials": [_trial(course, trial) for trial in course.ended],
    }


def _trial(course: Course, trial: Trial) -> dict[str, Any]:
    complete = trial.state == "complete"
    return {
        "number": trial.number,
        "state": trial.state,
        "values": to_json(trial.values),
        "score": score(trial, course.search.by) if complete else None,
        "accuracies": list(trial.accuracies),
        "losses": list(trial.losses),
        "epochs": trial.epochs,
        "weights": trial.weights,
        "seconds": trial.seconds,
        "reason": trial.reason,
    }


def _spread(accuracies: Sequence[float]) -> str:
    return f" ± {100 * statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""


def _values(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={brief(value)}" for name, value in values.items())
