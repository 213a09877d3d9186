"""What the report of a run says, as plain JSON values; `publish` gives it its two looks.

`content` returns the whole of `report.json`:

    schema       1; raised when a field changes its meaning or goes away
    run          id, dataset, title, started, asked_by, profile
    verdict      outcome (`promoted`, `kept`, `unchanged`, `refused`, `failed` or `undecided`), headline, sentence,
                 advice (sentences), failure (kind and exit_code; null unless an error ended the run),
                 accuracy (list of name, value, low, high, correct, rows, note),
                 not_reached (names of the sections that this run has nothing for)
    data         sentence, image_shape, classes (label, name, train, test, example: a row of the training split),
                 splits, archives, licence, homepage, citation
    checks       sentence, passed, checks (as `storage.records.Check`, with the labels of its rows),
                 failing first
    training     sentence, overfitting (a word), numbers of `storage.records.TrainedModel`,
                 epochs (as `storage.records.Epoch`), configuration (name, value, default, meaning)
    test         sentence, rows, correct, accuracy, low, high, loss, class_names, per_class (worst recall first;
                 `change` against the champion), confusion (rows: true class), most_confused (its largest count off the
                 diagonal), confusions (most frequent first),
                 mistakes (most confident first), confidence (bands of the answer's probability: low, high, rows,
                 accuracy)
    decision     as `storage.records.Decision` (sentence: of the rules; reason: of the decision), champion_accuracy,
                 comparison (with the champion in sentences; empty where there was none to compare with),
                 looks_sentence, by_hand (what was done to the champion by hand since the run before)
    past         earlier runs of this data set and this one, oldest first: id, outcome, accuracy
    steps        sentence, seconds, steps (as `storage.records.Step`)
    environment  sentence, python, platform, packages, code, digests, seed, command

A section is null where the run did not come that far. Numbers are not rounded; accuracies, shares and
probabilities are 0 to 1, losses are in nats. Pictures are in the HTML only.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.catalog import CATALOG, Dataset
from storage.errors import ConfigError, DataRefused
from storage.records import Check, ClassScore, Epoch, Evaluation, Paired, RunRecord, Split, to_json
from tasks.config import Profile, TrainingConfig, training_config
from tasks.sharing import presentable

SCHEMA = 1
MAX_PAST = 30
"""Runs in the trend."""

_MAX_CONFUSIONS = 10
_BANDS = (0.0, 0.5, 0.7, 0.9, 0.99, 1.0)
# How far apart accuracy on fitted and on held-out rows may be to be called that.
_NO_GAP, _SLIGHT_GAP = 0.01, 0.03
_LOSS_RISE = 1.05

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
        "Look at the failed checks and the rows they name. Correct the data; or, if the data is right and the "
        "limit is not, the [limits] of its manifest.",
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
_UNKNOWN = ("an unexpected error", "This is not an error idxflow knows: the log of the run has the details.")
_AGAIN = "Steps that finished are in the store, so the same command goes on where this run stopped."
_PACKAGES = (
    "tensorflow",
    "keras",
    "numpy",
    "scikit-learn",
    "great-expectations",
    "pyarrow",
    "prefect",
    "matplotlib",
    "pillow",
    "jinja2",
)


@dataclass(frozen=True)
class Evidence:
    """What the report reads beyond the record. Empty or None where there is nothing, or it cannot be read."""

    history: tuple[Epoch, ...] = ()
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """uint8, shape (rows,), by split."""
    probability: np.ndarray | None = None
    """float32, shape (test rows, classes)."""
    past: tuple[Mapping[str, Any], ...] = ()
    """Earlier runs from the ledger, oldest first."""
    by_hand: tuple[str, ...] = ()
    """What was done to the champion by hand since the run before this one, oldest first."""


@dataclass(frozen=True)
class Environment:
    """What a run ran with."""

    python: str
    platform: str
    packages: Mapping[str, str]
    code: Mapping[str, Mapping[str, str]]
    """Digest of each module, by step."""


def environment(steps: Sequence[str]) -> Environment:
    """Describe this process: versions, system and processor, the code of `steps`; no names of user or host."""
    import os
    import platform
    from importlib import metadata

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    machine = f"{platform.system()}, {platform.machine()}, {os.cpu_count() or 1} processors"
    return Environment(platform.python_version(), machine, versions, _code(steps))


def content(dataset: Dataset, run: RunRecord, evidence: Evidence, made_with: Environment) -> dict[str, Any]:
    """Return what the report of `run` says; the module's docstring describes it.

    Every text should have gone through `sharing` before.
    """
    sections = {
        "data": _data(dataset, run, evidence),
        "checks": _checks(dataset, run, evidence),
        "training": _training(run, evidence),
        "test": _test(dataset, run, evidence),
        "decision": _decision(run, evidence),
        "past": _past(run, evidence),
        "steps": _steps(run),
        "environment": _environment(dataset, run, made_with),
    }
    identity = {
        "id": run.id,
        "dataset": run.dataset,
        "title": dataset.title or dataset.name,
        "started": run.started,
        "asked_by": run.asked_by,
        "profile": run.profile,
    }
    missing = [name for name in ("data", "checks", "training", "test", "decision") if sections[name] is None]
    verdict = {**_verdict(run), "accuracy": _accuracy(run), "not_reached": missing}
    return {"schema": SCHEMA, "run": identity, "verdict": verdict, **sections}


def class_name(dataset: Dataset, label: int) -> str:
    """Return the name of a class, or the bare label where there is no such class."""
    return dataset.classes[label] if 0 <= label < len(dataset.classes) else f"label {label}"


def _verdict(run: RunRecord) -> dict[str, Any]:
    decision, failure = run.decision, run.failure
    refused = decision is not None and decision.outcome == "refused"
    if failure and not refused:
        return _failure_verdict(run)
    if decision:
        headlines = {
            "promoted": f"Version {decision.version} is the new champion",
            "kept": f"The champion stays version {decision.champion}" if decision.champion else "No model is in use",
            "unchanged": "Nothing changed since the last decision",
            "refused": "The model is below a floor and was refused",
        }
        advice = [_FAILED["ModelRefused"][1]] if refused else []
        return {
            "outcome": decision.outcome,
            "headline": headlines.get(decision.outcome, decision.outcome),
            "sentence": _sentence(decision.sentence),
            "advice": advice,
            "failure": None,
        }
    sentence = "The run ended before a decision was asked for; the champion was not touched."
    headline = "No decision was made"
    return {"outcome": "undecided", "headline": headline, "sentence": sentence, "advice": [], "failure": None}


def _failure_verdict(run: RunRecord) -> dict[str, Any]:
    failure = run.failure
    if failure is None:
        raise ValueError("expected a run that failed")
    headline, advice = _FAILED.get(failure.kind, _UNKNOWN)
    untouched = "The champion was not touched."
    if run.decision:
        untouched = f"The decision stands: {run.decision.sentence.rstrip('.')}."
    return {
        "outcome": "refused" if failure.exit_code == DataRefused.exit_code else "failed",
        "headline": _sentence(headline).rstrip("."),
        "sentence": failure.sentence,
        "advice": [advice, _AGAIN, untouched],
        "failure": {"kind": failure.kind, "exit_code": failure.exit_code},
    }


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…")) else ".")


def _accuracy(run: RunRecord) -> list[dict[str, Any]]:
    found = []
    if run.evaluation:
        score = run.evaluation
        found.append(_measure("Test accuracy", score.accuracy, score, "never seen by the model"))
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


def _data(dataset: Dataset, run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    splits = [split for split in (run.train, run.test) if split]
    if not splits and not run.archives:
        return None
    counts: dict[str, Sequence[int] | None] = {split.name: _class_counts(run, split, evidence) for split in splits}
    return {
        "sentence": _data_sentence(dataset, splits, counts.get("train")),
        "image_shape": list(dataset.image_shape),
        "classes": _classes(dataset, counts, evidence.labels.get("train")),
        "splits": to_json(splits),
        "archives": to_json(run.archives),
        "licence": dataset.licence,
        "homepage": dataset.homepage,
        "citation": dataset.citation,
    }


def _class_counts(run: RunRecord, split: Split, evidence: Evidence) -> Sequence[int] | None:
    """Return rows per class: as validation counted them, else as the labels say."""
    if run.validation and split.name in run.validation.class_counts:
        return run.validation.class_counts[split.name]
    labels = evidence.labels.get(split.name)
    return None if labels is None else np.bincount(labels, minlength=split.classes)[: split.classes].tolist()


def _classes(
    dataset: Dataset, counts: Mapping[str, Sequence[int] | None], labels: np.ndarray | None
) -> list[dict[str, Any]]:
    first: dict[int, int] = {}
    if labels is not None:
        found, rows = np.unique(labels, return_index=True)
        first = dict(zip(found.tolist(), rows.tolist(), strict=True))

    def rows_of(split: str, label: int) -> int | None:
        known = counts.get(split)
        return known[label] if known is not None and label < len(known) else None

    return [
        {
            "label": label,
            "name": name,
            "train": rows_of("train", label),
            "test": rows_of("test", label),
            "example": first.get(label),
        }
        for label, name in enumerate(dataset.classes)
    ]


def _data_sentence(dataset: Dataset, splits: Sequence[Split], counts: Sequence[int] | None) -> str:
    if not splits:
        return "The archives are here and complete, but were not decoded."
    purpose = {"train": "to learn from", "test": "to test on"}
    said = " and ".join(f"{split.rows:,} images {purpose[split.name]}" for split in splits)
    height, width = dataset.image_shape
    said += f", each {height} × {width} pixels, in {len(dataset.classes)} classes"
    if not counts or not max(counts):
        return said + "."
    if not min(counts):
        return f"{said}; {sum(not n for n in counts)} of the classes have no training images."
    return f"{said}; the largest class has {max(counts) / min(counts):.2f} times the training images of the smallest."


def _checks(dataset: Dataset, run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    validation = run.validation
    if not validation:
        return None
    ordered = sorted(validation.checks, key=lambda check: (check.passed, check.severity != "critical"))
    return {
        "sentence": _checks_sentence(validation.checks),
        "passed": validation.passed,
        "checks": [{**to_json(c), "labels": _labels(dataset, c, evidence)} for c in ordered],
    }


def _labels(dataset: Dataset, check: Check, evidence: Evidence) -> list[str]:
    """Return what the offending rows are labelled as; empty where that is not known of all."""
    labels = evidence.labels.get(check.table)
    if labels is None or any(not 0 <= row < len(labels) for row in check.rows):
        return []
    return [class_name(dataset, int(labels[row])) for row in check.rows]


def _checks_sentence(checks: Sequence[Check]) -> str:
    failed = [check for check in checks if not check.passed]
    critical = sum(check.severity == "critical" for check in failed)
    warnings = len(failed) - critical
    remark = f" {_count(warnings, 'warning')} should be looked at." if warnings else ""
    if critical:
        return f"{critical} of {_count(len(checks), 'check')} failed and stopped the run before training.{remark}"
    if remark:
        return f"No check that stops a run failed, out of {len(checks)}.{remark}"
    return f"The data is what it should be: all {len(checks)} checks hold."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _training(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    model = run.model
    if not model:
        return None
    word, sentence = _overfitting(evidence.history, model.chosen_epoch)
    return {
        "sentence": sentence,
        "overfitting": word,
        **to_json(model),
        "epochs": to_json(evidence.history),
        "configuration": _configuration(run),
    }


def _overfitting(history: Sequence[Epoch], chosen: int) -> tuple[str, str]:
    """Return a word on the gap between fitted and held-out rows at the chosen epoch, and a sentence.

    `none` below 1 percentage point of accuracy, `slight` below 3, else `clear`; and `clear` too when the
    held-out loss has risen by more than 5% above its lowest value until then.
    """
    epoch = next((e for e in history if e.epoch == chosen), None)
    if epoch is None:
        return "unknown", "The history of this training cannot be read, so nothing is said about over-fitting."
    if epoch.validation_accuracy is None or epoch.validation_loss is None:
        return "unknown", "No rows were held out, so over-fitting shows only between training and test accuracy."
    gap = epoch.accuracy - epoch.validation_accuracy
    losses = [e.validation_loss for e in history if e.validation_loss is not None and e.epoch <= chosen]
    risen = epoch.validation_loss > _LOSS_RISE * min(losses)
    word = "clear" if risen or gap >= _SLIGHT_GAP else "slight" if gap >= _NO_GAP else "none"
    said = {"clear": "Clear over-fitting", "slight": "Slight over-fitting", "none": "No over-fitting to speak of"}[word]
    said += (
        f": at epoch {chosen} the model has {epoch.accuracy:.2%} of the fitted rows right and "
        f"{epoch.validation_accuracy:.2%} of the held-out ones, {gap * 100:.2f} points apart"
    )
    return word, f"{said}; {_held_out_trend(history, risen)}."


def _held_out_trend(history: Sequence[Epoch], risen: bool) -> str:
    lowest = min(history, key=lambda e: math.inf if e.validation_loss is None else e.validation_loss)
    if lowest.epoch == history[-1].epoch and len(history) > 1:
        return "the held-out loss was still falling, so more epochs may help"
    if risen:
        return f"the held-out loss was lowest at epoch {lowest.epoch} and rose since, so fewer epochs would do"
    return f"the held-out loss was lowest at epoch {lowest.epoch}"


def _configuration(run: RunRecord) -> list[dict[str, Any]]:
    fields = TrainingConfig.model_fields
    defaults = {name: to_json(field.default) for name, field in fields.items()}
    return [
        {
            "name": name,
            "value": value,
            "default": defaults.get(name),
            "meaning": (fields[name].description or "") if name in fields else "",
        }
        for name, value in to_json(run.config).items()
    ]


def _test(dataset: Dataset, run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    score = run.evaluation
    if not score:
        return None
    before = {c.label: c for c in run.champion_evaluation.per_class} if run.champion_evaluation else {}
    probability = evidence.probability
    return {
        "sentence": (
            f"Of {score.rows:,} images the model has never seen it names {score.correct:,} correctly; with 95% "
            f"confidence its accuracy on more images like these is {score.accuracy_low:.2%} to "
            f"{score.accuracy_high:.2%}."
        ),
        "rows": score.rows,
        "correct": score.correct,
        "accuracy": score.accuracy,
        "low": score.accuracy_low,
        "high": score.accuracy_high,
        "loss": score.loss,
        "per_class": [_class_score(c, before) for c in sorted(score.per_class, key=_by_recall)],
        "class_names": list(dataset.classes),
        "confusion": to_json(score.confusion),
        "most_confused": _most_confused(score),
        "confusions": _confusions(dataset, score),
        "mistakes": [
            {
                **to_json(m),
                "name": class_name(dataset, m.label),
                "predicted_name": class_name(dataset, m.predicted),
                "true_probability": _at(probability, m.row, m.label),
            }
            for m in score.mistakes
        ],
        "confidence": _confidence(evidence),
    }


def _by_recall(score: ClassScore) -> tuple[bool, float, int]:
    known = score.recall is not None and score.rows > 0
    return not known, score.recall if known else 0.0, score.label


def _class_score(score: ClassScore, before: Mapping[int, ClassScore]) -> dict[str, Any]:
    change = score.recall - before[score.label].recall if score.label in before else None
    return {**to_json(score), "change": change}


def _at(probability: np.ndarray | None, row: int, label: int) -> float | None:
    known = probability is not None and row < probability.shape[0] and label < probability.shape[1]
    value = float(probability[row, label]) if known and probability is not None else math.nan
    return value if math.isfinite(value) else None


def _confusions(dataset: Dataset, score: Evaluation) -> list[dict[str, Any]]:
    pairs = [
        (count, true, predicted)
        for true, counts in enumerate(score.confusion)
        for predicted, count in enumerate(counts)
        if count and true != predicted
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [
        {
            "true": class_name(dataset, true),
            "predicted": class_name(dataset, predicted),
            "count": count,
            "share": count / max(sum(score.confusion[true]), 1),
        }
        for count, true, predicted in pairs[:_MAX_CONFUSIONS]
    ]


def _most_confused(score: Evaluation) -> int:
    wrong = (n for true, counts in enumerate(score.confusion) for said, n in enumerate(counts) if said != true)
    return max(wrong, default=0)


def _confidence(evidence: Evidence) -> list[dict[str, Any]]:
    """Return how often the model is right, by what it gave its answer; empty bands are left out."""
    labels, probability = evidence.labels.get("test"), evidence.probability
    if labels is None or probability is None or len(labels) != len(probability):
        return []
    sure, right = probability.max(axis=1), probability.argmax(axis=1) == labels
    bands = []
    for low, high in itertools.pairwise(_BANDS):
        within = (sure >= low) & ((sure < high) if high < 1 else (sure <= 1.001))
        if rows := int(within.sum()):
            bands.append({"low": low, "high": high, "rows": rows, "accuracy": int(right[within].sum()) / rows})
    return bands


def _decision(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    decision = run.decision
    if not decision:
        return None
    broken = [rule for rule in decision.rules if not rule.passed]
    sentence = f"All {_count(len(decision.rules), 'rule')} hold." if decision.rules else "No rule was asked."
    if broken:
        sentence = f"{len(broken)} of {_count(len(decision.rules), 'rule')} not met: {broken[0].name}"
        sentence += f" and {len(broken) - 1} more." if len(broken) > 1 else "."
    score = run.champion_evaluation
    return {
        **to_json(decision),
        "sentence": sentence,
        "reason": _sentence(decision.sentence),
        "champion_accuracy": score.accuracy if score else None,
        "comparison": _comparison(decision.paired) if decision.paired else "",
        "looks_sentence": _looks(decision.looks),
        "by_hand": list(evidence.by_hand),
    }


def _comparison(paired: Paired) -> str:
    return (
        f"Of {_count(paired.rows, 'test image')} both models get {paired.both_right:,} right, only this one "
        f"{paired.only_candidate:,}, only the champion {paired.only_champion:,}, neither {paired.both_wrong:,}: "
        f"net {paired.net:+,}, {100 * paired.difference:+.2f} points, {100 * paired.confidence:.4g}% interval "
        f"{100 * paired.low:+.2f} to {100 * paired.high:+.2f}. Of two equally good models one is so far ahead with "
        f"p {paired.p_better:.2g} (McNemar, exact, one-sided); they are so far apart with p {paired.p_value:.2g} "
        "(mid-p, two-sided)."
    )


def _looks(looks: int) -> str:
    """Return how often a test split has decided; empty for a decision that did not count."""
    if not looks:
        return ""
    if looks == 1:
        return "It is the first decision on these test images."
    return (
        f"It is decision {looks:,} on these test images: the more often they decide, the likelier one of the "
        "promotions is luck."
    )


def _past(run: RunRecord, evidence: Evidence) -> list[dict[str, Any]] | None:
    runs = [found for values in evidence.past if (found := _past_run(values)) and found["id"] < run.id]
    if not runs:
        return None
    this = {
        "id": run.id,
        "outcome": _verdict(run)["outcome"],
        "accuracy": run.evaluation.accuracy if run.evaluation else None,
    }
    return [*sorted(runs, key=lambda values: values["id"])[-(MAX_PAST - 1) :], this]


def _past_run(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read what the trend needs from a record of the ledger, which another version may have written."""
    identity, accuracy = values.get("run"), values.get("test_accuracy")
    if not isinstance(identity, str):
        return None
    known = isinstance(accuracy, float) and math.isfinite(accuracy)
    return {
        "id": presentable(identity),
        "outcome": presentable(str(values.get("state") or "undecided")),
        "accuracy": accuracy if known else None,
    }


def _steps(run: RunRecord) -> dict[str, Any] | None:
    if not run.steps:
        return None
    seconds = sum(step.seconds for step in run.steps)
    reused = sum(step.reused for step in run.steps)
    return {
        "sentence": f"{_count(len(run.steps), 'step')}, {reused} of them found finished in the store and reused.",
        "seconds": seconds,
        "steps": to_json(run.steps),
    }


def _environment(dataset: Dataset, run: RunRecord, made_with: Environment) -> dict[str, Any]:
    digests: dict[str, str] = {}
    for split in (run.train, run.test):
        if split:
            digests[f"{split.name} split"] = split.digest
    named = {"validation": run.validation, "normalization": run.normalization}
    digests |= {name: record.digest for name, record in named.items() if record}
    if run.model:
        digests["weights"] = run.model.weights_digest
    return {
        "sentence": "What this result was made from and with; the command makes it again.",
        "python": made_with.python,
        "platform": made_with.platform,
        "packages": dict(made_with.packages),
        "code": {step: dict(modules) for step, modules in made_with.code.items()},
        "digests": digests,
        "seed": run.config.get("seed"),
        "command": command(dataset, run),
    }


def command(dataset: Dataset, run: RunRecord) -> str:
    """Return the command line that trains with this run's configuration on this data set."""
    known = dataset.manifest.parent == CATALOG
    words = ["idxflow", "run", *([run.dataset] if known else ["--dataset-file", dataset.manifest.name])]
    words += ["--profile", run.profile]
    for name, value in _overrides(dataset, run).items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += ["--set", f"{name}={text}"]
    return shlex.join(words)


def _overrides(dataset: Dataset, run: RunRecord) -> dict[str, Any]:
    config = to_json(run.config)
    profile: Any = run.profile
    try:
        usual = _usual(dataset, profile)
    except ConfigError:
        usual = {}
    return {name: value for name, value in config.items() if name not in usual or usual[name] != value}


def _usual(dataset: Dataset, profile: Profile) -> dict[str, Any]:
    return training_config(dataset, profile).model_dump(mode="json")


def _code(steps: Sequence[str]) -> dict[str, dict[str, str]]:
    from storage import source

    found = {}
    for step in steps:
        try:
            found[step] = source.digests(f"tasks.{step}")
        except OSError:
            continue
    return found
