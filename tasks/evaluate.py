"""Score a trained model on every row of the test split."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import Dataset
from storage.errors import ConfigError, DamagedEntry, made_again
from storage.files import sha256_of
from storage.formats import arrays, split_rows
from storage.records import ClassScore, Done, Evaluation, FolderEntry, Mistake, Split, TrainedModel
from storage.runtime import code_digests, imports
from storage.runtime.prefetch import prefetch
from storage.store import Plan, Store
from tasks.gate import wilson
from tasks.model import network
from tasks.model.classifier import Classifier, softmax
from tasks.model.labels import check_labels
from tasks.ui import summaries
from tasks.ui.steps import log_step

MOST_MISTAKES = 25


_log = logging.getLogger(__name__)


@task(task_run_name="evaluate-{whose}", cache_policy=NO_CACHE)
def evaluate(
    store: Store, dataset: Dataset, model: TrainedModel, test: Split, whose: str = "candidate"
) -> Done[Evaluation]:
    """Score `model` on all rows of `test`, or find an earlier score. `whose` only names the step.

    Raises:
        ConfigError: the model is for other classes or another image size.
        DataRefused: a label is not a class of the data set.
        DamagedEntry: a file of the model is not what its record says.
    """
    plan = Plan(
        dataset.name,
        "evaluate",
        inputs={
            "weights": model.weights_digest,
            "architecture": _digest(model, "architecture.json"),
            "normalization": _digest(model, "normalization.npz"),
            "test": test.digest,
        },
        parameters={"classes": list(dataset.classes)},
        code=code_digests.digests(__name__),
        libraries=code_digests.library_versions("numpy", "scikit-learn", "scipy"),
    )
    result = store.get_or_make(
        plan, Evaluation, lambda folder: evaluate_into(folder, dataset, model, test), summaries.evaluation
    )
    if whose != "candidate":
        result = replace(result, step=replace(result.step, of=whose))
    log_step(_log, result.step)
    return result


def evaluate_into(folder: Path, dataset: Dataset, model: TrainedModel, test: Split) -> Evaluation:
    """Write `predictions.npz` into `folder`, with a row for each row of `test`, and return the scores.

    Raises:
        ConfigError, DataRefused, DamagedEntry: see `evaluate`.
    """
    classifier = Classifier(model)
    _check_fit(classifier.architecture, dataset, test)
    labels = split_rows.labels(test).astype(np.int64)
    check_labels(dataset, test, labels)
    logits = np.concatenate([classifier.logits(images) for images, _ in prefetch(split_rows.blocks(test))])
    if not len(logits) == len(labels) == test.rows:
        raise DamagedEntry(
            f"{test.file}: expected {test.rows:,} rows, as its entry says; found {len(logits):,}; "
            f"{made_again(test.file)}"
        )
    probability = softmax(logits)
    predicted = logits.argmax(axis=1)
    correct = int((predicted == labels).sum())
    low, high = wilson.interval(correct, test.rows)
    per_class, confusion = by_class(dataset.classes, labels, predicted)
    evaluation = Evaluation(
        FolderEntry(folder),
        model.weights_digest,
        test.digest,
        test.rows,
        correct,
        correct / test.rows,
        low,
        high,
        cross_entropy(logits, labels),
        per_class,
        confusion,
        worst_mistakes(labels, predicted, probability),
    )
    evaluation.file.unlink(missing_ok=True)
    arrays.write(evaluation.file, {"predicted": predicted.astype(np.uint8), "probability": probability})
    return evaluation


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of -log(probability of the label), in nats; finite even if that probability underflows."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return float(losses.mean())


def by_class(
    names: tuple[str, ...], labels: np.ndarray, predicted: np.ndarray
) -> tuple[tuple[ClassScore, ...], tuple[tuple[int, ...], ...]]:
    """Return precision, recall and F1 of each class, and the confusion matrix (rows: true, columns: predicted).

    A score that is undefined, because the class has no rows or is never predicted, is 0.
    """
    # It takes data frames where pandas is installed, and imports it for that.
    with imports.without("pandas"):
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes = list(range(len(names)))
    scores = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    per_class = tuple(
        ClassScore(label, names[label], int(rows), float(precision), float(recall), float(f1))
        for label, precision, recall, f1, rows in zip(classes, *scores, strict=True)
    )
    matrix = confusion_matrix(labels, predicted, labels=classes)
    return per_class, tuple(tuple(int(count) for count in row) for row in matrix)


def worst_mistakes(labels: np.ndarray, predicted: np.ndarray, probability: np.ndarray) -> tuple[Mistake, ...]:
    """Return the mistakes with the highest confidence, at most 25, most confident first."""
    wrong = np.flatnonzero(predicted != labels)
    sure = probability[wrong, predicted[wrong]]
    first = np.argsort(-sure, kind="stable")[:MOST_MISTAKES]
    return tuple(Mistake(int(wrong[n]), int(labels[wrong[n]]), int(predicted[wrong[n]]), float(sure[n])) for n in first)


def _check_fit(architecture: network.Architecture, dataset: Dataset, test: Split) -> None:
    expected = (test.image_shape[0] * test.image_shape[1], len(dataset.classes))
    actual = (architecture.inputs, architecture.classes)
    if actual != expected:
        raise ConfigError(
            f"{dataset.name}: expected a model for {expected[0]:,} pixels and {expected[1]} classes; "
            f"found one for {actual[0]:,} pixels and {actual[1]} classes; train one for this data set"
        )


def _digest(model: TrainedModel, name: str) -> str:
    try:
        return model.entry.sha256(name) or sha256_of(model.entry.path(name))
    except OSError as error:
        file = model.entry.path(name)
        raise DamagedEntry(
            f"{file}: expected a file of a trained model; {error.strerror}; {made_again(file)}"
        ) from error
