"""What came of the run, in large letters: promoted, kept, refused or failed, why, and what to do."""

from __future__ import annotations

from typing import Any

from storage.errors import DataRefused
from storage.ledger import CUT_OFF
from storage.records import Evaluation, RunRecord
from tasks.reporting.evaluation import unseen
from tasks.reporting.evidence import Evidence
from tasks.reporting.words import sentence

_FAILED = {
    "ConfigError": (
        "the configuration cannot be used",
        "Correct the value named above, in the manifest or on the command line, and start the run again.",
    ),
    "FormatError": (
        "an archive is damaged or of another form",
        "Put the archive right at its source, or correct what the manifest declares about it, and run again.",
    ),
    "DigestMismatch": (
        "an archive is not the published one",
        "Fetch the archive again from a source you trust; pin new digests only if the publisher changed the file.",
    ),
    "ValidationFailed": (
        "the data breaks its contract",
        "Look at the failed checks and the rows they name, and correct the data.",
    ),
    "SourceUnavailable": (
        "no source could be read",
        "Check the network, or give a folder that holds the archives with --source.",
    ),
    "ModelRefused": (
        "the model is below a floor",
        "Compare the training curves and the worst classes below; change the training parameters, or the [floors] "
        "of the manifest if they ask for too much.",
    ),
    "StoreError": (
        "the store cannot be used",
        "Free space, or give write permission, or choose another store with --store.",
    ),
    "DamagedEntry": (
        "a file of the store is damaged",
        "Start the run again: what is damaged is made again. If it comes back, check the disk.",
    ),
    "TrainingFailed": (
        "training did not succeed",
        "Lower the learning rate with --set learning_rate=…, and look at the checks of the data.",
    ),
}
_FAILED |= dict.fromkeys(
    (how.capitalize() for how in CUT_OFF),
    ("the run was cut off", "Look at how it ended; nothing is wrong with the data or the model."),
)
_UNKNOWN = ("an unexpected error", "This is not an error idxflow knows: the log of the run has the details.")
_AGAIN = "Steps that finished are in the store, so the same command goes on where this run stopped."


def verdict(run: RunRecord, evidence: Evidence) -> dict[str, Any]:
    """Return outcome, headline, sentence, advice and failure of a run, and its accuracies."""
    return {**_outcome(run), "accuracy": _accuracy(run, evidence)}


def outcome(run: RunRecord) -> str:
    """Return `promoted`, `kept`, `unchanged`, `refused`, `failed` or `undecided`."""
    found: str = _outcome(run)["outcome"]
    return found


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
            "refused": "The model is below a floor and was refused",
        }
        return {
            "outcome": decision.outcome,
            "headline": headlines.get(decision.outcome, decision.outcome),
            "sentence": sentence(decision.sentence),
            "advice": [_FAILED["ModelRefused"][1]] if refused else [],
            "failure": None,
        }
    said = "The run ended before a decision was asked for; the champion was not touched."
    headline = "No decision was made"
    return {"outcome": "undecided", "headline": headline, "sentence": said, "advice": [], "failure": None}


def _failure(run: RunRecord) -> dict[str, Any]:
    failure = run.failure
    if failure is None:
        raise ValueError("expected a run that failed")
    headline, advice = _FAILED.get(failure.kind, _UNKNOWN)
    untouched = "The champion was not touched."
    if run.decision:
        untouched = f"The decision stands: {run.decision.sentence.rstrip('.')}."
    return {
        "outcome": "refused" if failure.exit_code == DataRefused.exit_code else "failed",
        "headline": sentence(headline).rstrip("."),
        "sentence": failure.sentence,
        "advice": [advice, *_settings(run), _AGAIN, untouched],
        "failure": {"kind": failure.kind, "exit_code": failure.exit_code},
    }


def _settings(run: RunRecord) -> list[str]:
    """Return what to change in the manifest if the data is right: the keys that the failed critical checks go by."""
    failures = run.validation.failures if run.validation else ()
    keys = ", ".join(dict.fromkeys(check.setting for check in failures if check.setting))
    return [f"If the data is meant to be so, change {keys} in the manifest."] if keys else []


def _accuracy(run: RunRecord, evidence: Evidence) -> list[dict[str, Any]]:
    found = []
    if run.evaluation:
        score, others = run.evaluation, unseen(evidence)
        note = "none of them in the training split" if run.validation else "of the test split"
        if others:
            in_both = score.rows - others["rows"]
            note = f"{in_both:,} of them in the training split too; {others['accuracy']:.2%} of the other ones"
        found.append(_measure("Test accuracy", score.accuracy, score, note))
    if run.model:
        rows = run.model.fitted_rows + run.model.validation_rows
        held_out = f"{run.model.validation_rows:,} of them held out" if run.model.validation_rows else "all fitted"
        measure = _measure("Training accuracy", run.model.train_accuracy, None, held_out)
        found.append({**measure, "rows": rows})
    if run.champion_evaluation and run.decision and run.decision.previous:
        score = run.champion_evaluation
        before = " before" if run.decision.outcome == "promoted" else ""
        name = f"Champion{before}, v{run.decision.previous}"
        found.append(_measure(name, score.accuracy, score, "the same ones"))
    return found


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
