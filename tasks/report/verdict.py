"""The headline of the report: promoted, kept, refused or failed, the reason, and what to do."""

from __future__ import annotations

from typing import Any

from storage.errors import ModelRefused, error_class
from storage.records import Evaluation, RunRecord
from tasks.gate.behaviour import behaviour_rules
from tasks.report.evaluation import leaked, unseen
from tasks.report.evidence import Evidence
from tasks.report.phrases import class_names, sentence

_AGAIN = "Finished steps stay in the store; the next run reuses those whose inputs are the same."
_UNTOUCHED = "This run did not change the champion."


def verdict(run: RunRecord, evidence: Evidence) -> dict[str, Any]:
    """Return outcome, headline, sentence, advice and failure of a run, and its accuracies."""
    return {**_outcome(run), "accuracy": _accuracy(run, evidence)}


def outcome(run: RunRecord) -> str:
    """Return `promoted`, `kept`, `unchanged`, `refused`, `failed` or `undecided`."""
    name: str = _outcome(run)["outcome"]
    return name


def _outcome(run: RunRecord) -> dict[str, Any]:
    decision, failure = run.decision, run.failure
    refused = decision is not None and decision.outcome == "refused"
    if failure and not refused:
        return _failure(run)
    if decision:
        headlines = {
            "promoted": f"Version {decision.version} is the new champion",
            "kept": f"The champion stays version {decision.champion}" if decision.champion else "No model is in use",
            "unchanged": "Nothing changed since the last decision",
            "refused": f"The model {_fault(run)} and was refused",
        }
        return {
            "outcome": decision.outcome,
            "headline": headlines.get(decision.outcome, decision.outcome),
            "sentence": sentence(decision.sentence),
            "advice": [ModelRefused.advice] if refused else [],
            "failure": None,
        }
    text = f"The run ended before the decision. {_UNTOUCHED}"
    headline = "No decision was made"
    return {"outcome": "undecided", "headline": headline, "sentence": text, "advice": [], "failure": None}


def _fault(run: RunRecord) -> str:
    """Return why a model was refused."""
    tests = {rule.name for rule in behaviour_rules(run.behaviour, class_names(run))}
    broken = {rule.name for rule in run.decision.rules if not rule.passed} if run.decision else set()
    return "fails a test of its behaviour" if broken and broken <= tests else "is below a floor"


def _failure(run: RunRecord) -> dict[str, Any]:
    failure = run.failure
    if failure is None:
        raise ValueError("expected a run that failed")
    kind = error_class(failure.kind)
    untouched = _UNTOUCHED
    if run.decision:
        untouched = f"The decision stands: {run.decision.sentence.rstrip('.')}."
    return {
        "outcome": "refused" if kind.refuses == "data" else "failed",
        "headline": sentence(kind.headline).rstrip("."),
        "sentence": failure.sentence,
        "advice": [kind.advice, *_settings(run), _AGAIN, untouched],
        "failure": {"kind": failure.kind, "exit_code": failure.exit_code},
    }


def _settings(run: RunRecord) -> list[str]:
    """Return the manifest keys to change if the data is right: those with the limits of the failed checks."""
    failures = run.validation.failures if run.validation else ()
    keys = ", ".join(dict.fromkeys(check.setting for check in failures if check.setting))
    return [f"If this data is intended, change {keys} in the manifest."] if keys else []


def _accuracy(run: RunRecord, evidence: Evidence) -> list[dict[str, Any]]:
    measures = []
    if run.evaluation:
        score, others = run.evaluation, unseen(evidence)
        note = _in_training(score.rows, leaked(run, evidence))
        if others:
            note += f"; accuracy on the others: {others['accuracy']:.2%}"
        measures.append(_measure("Test accuracy", score.accuracy, score, note))
    if run.model:
        rows = run.model.fitted_rows + run.model.validation_rows
        held_out = f"{run.model.validation_rows:,}" if run.model.validation_rows else "none"
        measure = _measure("Training accuracy", run.model.train_accuracy, None, f"{held_out} of them held out")
        measures.append({**measure, "rows": rows})
    if run.champion_evaluation and run.decision and run.decision.previous:
        score = run.champion_evaluation
        before = " before" if run.decision.outcome == "promoted" else ""
        name = f"Champion{before}, v{run.decision.previous}"
        measures.append(_measure(name, score.accuracy, score, "the same images as above"))
    return measures


def _in_training(rows: int, leaks: int | None) -> str:
    """Return a note on how many of `rows` test images are also in the training split, if known."""
    if leaks is None:
        return "of the test split"
    if leaks in (0, rows):
        return f"{'all' if leaks else 'none'} of them in the training split{' too' if leaks else ''}"
    return f"{leaks:,} of them in the training split too"


def _measure(name: str, value: float | None, score: Evaluation | None, note: str) -> dict[str, Any]:
    interval: dict[str, float | int | None] = {"low": None, "high": None, "correct": None, "rows": None}
    if score:
        interval = {
            "low": score.accuracy_low,
            "high": score.accuracy_high,
            "correct": score.correct,
            "rows": score.rows,
        }
    return {"name": name, "value": value, "note": note, **interval}
