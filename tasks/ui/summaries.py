"""Summarize the result of each step in one line, for display only."""

from __future__ import annotations

from storage.formats.history import read_history
from storage.records import (
    SPLITS,
    Audit,
    Behaviour,
    Confirmation,
    Decision,
    Evaluation,
    Normalization,
    Quarantine,
    Split,
    Study,
    TrainedModel,
    Trial,
    Validation,
)
from storage.words import brief, counted, times


def split(split: Split) -> str:
    """Return the number and size of a split's images, and of its parts if it has some."""
    return f"{counted(split.rows, 'image')} of {times(split.image_shape)}{_parts(split.parts, ' ')}"


def audit(audit: Audit) -> str:
    """Return how many labels look wrong, and how many test images are in the training split, equal or almost."""
    of = f" of {audit.compared_rows:,} compared" if audit.compared_rows < audit.test_rows else ""
    look = "looks" if audit.flagged_rows == 1 else "look"
    both = f", {audit.equal_rows:,} equal" if audit.equal_rows else ""
    return (
        f"{counted(audit.flagged_rows, 'label')} of {audit.rows:,} {look} wrong, "
        f"{counted(audit.near_rows, 'near-duplicate')}{both}{of}"
    )


def quarantine(quarantine: Quarantine, parts: int = 0) -> str:
    """Return how many rows of each split were set aside, and for which reasons; of splits in parts, in how many."""
    released = (f", {quarantine.released:,} released" if quarantine.released else "") + _parts(parts)
    total = sum(quarantine.set_aside.values())
    if not total:
        return f"no row set aside{released}"
    splits = ", ".join(f"{quarantine.set_aside[name]:,} of {name}" for name in SPLITS if quarantine.set_aside[name])
    reasons = {check: sum(counts[check] for counts in quarantine.reasons.values()) for check in quarantine.checks}
    named = ", ".join(f"{check} {number:,}" for check, number in reasons.items() if number)
    return f"{splits} set aside: {named}{released}"


def validation(validation: Validation, rows: int) -> str:
    """Return how many checks passed on the `rows` of both splits."""
    checks, failures, warnings = len(validation.checks), len(validation.failures), len(validation.warnings)
    remark = f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    parts = _parts(validation.parts)
    if failures:
        return f"{failures} of {counted(checks, 'check')} on {counted(rows, 'row')} failed{remark}{parts}"
    return f"{counted(checks - warnings, 'check')} on {counted(rows, 'row')} passed{remark}{parts}"


def normalization(record: Normalization) -> str:
    """Return the statistics, and the number of rows behind them."""
    return (
        f"mean {record.mean_of_means:.4f}, standard deviation {record.std:.4f} over {counted(record.rows, 'row')}"
        f"{_parts(record.parts)}"
    )


def model(model: TrainedModel) -> str:
    """Return the result of a training: epochs, accuracies, weights."""
    chosen = "" if model.chosen_epoch == model.epochs_run else f", the one after {model.chosen_epoch} kept"
    held_out = read_history(model.history_source)[model.chosen_epoch - 1].validation_accuracy
    watched = "" if held_out is None else f" (held out: {held_out:.2%})"
    resumed = f", the first {model.resumed_after} by an interrupted run" if model.resumed_after else ""
    own = f" of {model.own.name}" if model.own else ""
    return (
        f"{counted(model.epochs_run, 'epoch')}{own}{resumed}{chosen}, {model.train_accuracy:.2%} of rows right"
        f"{watched}, {counted(model.parameters, 'weight')}"
    )


def evaluation(evaluation: Evaluation) -> str:
    """Return the accuracy on the test split, with its 95% confidence interval."""
    return (
        f"{evaluation.correct:,} of {evaluation.rows:,} right, {100 * evaluation.accuracy:.2f}% "
        f"({100 * evaluation.accuracy_low:.2f}–{100 * evaluation.accuracy_high:.2f}), loss {evaluation.loss:.4f}"
        f"{_parts(evaluation.parts)}"
    )


def confirmation(confirmation: Confirmation) -> str:
    """Return for how many rows the fresh process makes the same predictions."""
    rounding = f", within {confirmation.difference:.0e}" if confirmation.difference else ""
    return f"a fresh process predicts the same for {counted(confirmation.rows, 'row')}{rounding}"


def behaviour(behaviour: Behaviour) -> str:
    """Return the share of answers that each test changes, and how many of the named images are right."""
    shares = ", ".join(
        f"{test.name} {'' if place else 'changes '}{test.worst.share:.2%}" for place, test in enumerate(behaviour.tests)
    )
    changed = f"of {counted(behaviour.images, 'answer')}, {shares}" if shares else ""
    right = len(behaviour.named) - len(behaviour.wrong)
    named = f"{right:,} of {counted(len(behaviour.named), 'named image')} right" if behaviour.named else ""
    return ", ".join(filter(None, (changed, named)))


def decision(decision: Decision) -> str:
    """Return the outcome, and how many of the rules are met."""
    if decision.outcome == "unchanged":
        return decision.sentence
    met = sum(rule.passed for rule in decision.rules)
    return f"{decision.outcome}: {met} of {counted(len(decision.rules), 'rule')} met"


def study(study: Study) -> str:
    """Return what a study searches, and by what."""
    return f"{counted(len(study.space), 'parameter')} by {study.by} on held-out rows: {study.sampler}, {study.pruner}"


def trial(trial: Trial) -> str:
    """Return how a trial ended, and what it tried."""
    values = " ".join(f"{name}={brief(value)}" for name, value in trial.values.items())
    if trial.state != "complete":
        return f"{trial.state} after {counted(trial.epochs, 'epoch')}: {values}"
    count = len(trial.accuracies)
    accuracy, loss = sum(trial.accuracies) / count, sum(trial.losses) / count
    return f"{accuracy:.2%} held out, loss {loss:.4f}: {values}"


def _parts(parts: int, separator: str = ", ") -> str:
    return f"{separator}in {counted(parts, 'part')}" if parts else ""
