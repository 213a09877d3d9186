"""Score a model on a split: on all of its rows at once, or part by part by workers.

A worker imports this module, and so it does without what takes long to import, such as Prefect and scikit-learn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from storage.datasets.catalog import Dataset
from storage.errors import ConfigError, DamagedEntry, made_again
from storage.formats import arrays, members, split_rows
from storage.records import ClassScore, Done, Evaluation, FolderEntry, Mistake, Split, TrainedModel
from storage.runtime.prefetch import prefetch
from storage.store import Plan, Store
from storage.workers.current import current
from tasks.gate import wilson
from tasks.model import network
from tasks.model.classifier import Classifier, softmax
from tasks.model.labels import check_labels
from tasks.model.own_network import OwnNetwork
from tasks.ui import summaries
from tasks.ui.steps import with_new

MOST_MISTAKES = 25


@dataclass(frozen=True)
class Item:
    """One part of a test split to score a model on."""

    store: Store
    plan: Plan
    dataset: Dataset
    model: TrainedModel
    part: Split
    first: int
    """The number of its first row in the split."""

    @property
    def label(self) -> str:
        """What people call it."""
        return split_rows.named(self.part, self.first)


def evaluated(item: Item) -> Done[Evaluation]:
    """Score a model on one part, or find an earlier score.

    Raises:
        ConfigError, DataRefused, DamagedEntry: see `evaluate`.
    """

    def make(folder: Path) -> Evaluation:
        return evaluate_into(folder, item.dataset, item.model, item.part, item.first)

    return item.store.get_or_make(item.plan, Evaluation, make, summaries.evaluation)


def in_parts(store: Store, plan: Plan, dataset: Dataset, model: TrainedModel, test: Split) -> Done[Evaluation]:
    """Have the parts scored by workers, and sum up; the same for any workers."""
    started, plan = time.perf_counter(), store.explained(plan)
    items = [
        Item(store, _of_part(plan, test, part), dataset, model, part, first)
        for first, part in split_rows.numbered(test)
    ]
    found: dict[int, Done[Evaluation]] = {}
    for index, done in current().each(evaluated, items, plan.label):
        found[index] = done
    parts = [found[index].record for index in range(len(items))]
    result = store.get_or_make(
        plan, Evaluation, lambda folder: merged(folder, dataset, test, parts), summaries.evaluation
    )
    new = sum(not done.step.reused for done in found.values())
    return with_new(result, test.parts, new, time.perf_counter() - started)


def _of_part(plan: Plan, test: Split, part: Split) -> Plan:
    """Return the plan of scoring a model on one part of the test split of `plan`, wherever in it the part is."""
    inputs = {name: digest for name, digest in plan.inputs.items() if name != "test"} | {"part": part.digest}
    return replace(plan, subject=f"{test.name} part", inputs=inputs, one_of_many=True, why="")


def merged(folder: Path, dataset: Dataset, test: Split, parts: Sequence[Evaluation]) -> Evaluation:
    """Write the list of the evaluations of all parts of a split into `folder`, and return the scores on all rows.

    The counts are those of the split in one file, and so is what follows from them. The loss is the same mean, of sums
    by part, each rounded by itself: it can differ in the last digits.

    Args:
        parts: in the order of the split; at least one.
    """
    for file in folder.iterdir():
        file.unlink()
    members.write(folder, parts)
    rows, correct = sum(part.rows for part in parts), sum(part.correct for part in parts)
    low, high = wilson.interval(correct, rows)
    confusion = np.array([part.confusion for part in parts], np.int64).sum(axis=0)
    firsts = accumulate((part.rows for part in parts), initial=0)
    mistakes = [
        replace(mistake, row=first + mistake.row)
        for first, part in zip(firsts, parts, strict=False)
        for mistake in part.mistakes
    ]
    return Evaluation(
        FolderEntry(folder),
        parts[0].weights_digest,
        test.digest,
        rows,
        correct,
        correct / rows,
        low,
        high,
        math.fsum(part.loss * part.rows for part in parts) / rows,
        *by_counts(dataset.classes, confusion),
        tuple(sorted(mistakes, key=lambda mistake: (-mistake.probability, mistake.row))[:MOST_MISTAKES]),
        len(parts),
    )


def evaluate_into(folder: Path, dataset: Dataset, model: TrainedModel, test: Split, first: int = 0) -> Evaluation:
    """Write `predictions.npz` into `folder`, with a row for each row of `test`, and return the scores.

    Args:
        test: a split without parts, or one part.
        first: the number in the split of the first row of `test`.

    Raises:
        ConfigError, DataRefused, DamagedEntry: see `evaluate`.
    """
    classifier = Classifier(model)
    _check_fit(classifier.architecture, dataset, test)
    labels = split_rows.labels(test).astype(np.int64)
    check_labels(dataset, test, labels, first)
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

    They are those of scikit-learn's `precision_recall_fscore_support`. A score that is undefined, because the class has
    no rows or is never predicted, is 0.
    """
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    return by_counts(names, confusion)


def by_counts(
    names: tuple[str, ...], confusion: np.ndarray
) -> tuple[tuple[ClassScore, ...], tuple[tuple[int, ...], ...]]:
    """Return the same as `by_class` for a confusion matrix, integers of shape (classes, classes)."""
    hits, rows, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    scores = zip(_share(hits, predicted), _share(hits, rows), _share(2 * hits, rows + predicted), strict=True)
    per_class = tuple(
        ClassScore(label, names[label], int(rows[label]), *map(float, score)) for label, score in enumerate(scores)
    )
    return per_class, tuple(tuple(int(count) for count in row) for row in confusion)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return the quotients of counts, 0 where there is nothing to divide by; float64."""
    shares = np.zeros(len(part))
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def worst_mistakes(labels: np.ndarray, predicted: np.ndarray, probability: np.ndarray) -> tuple[Mistake, ...]:
    """Return the mistakes with the highest confidence, at most 25, most confident first."""
    wrong = np.flatnonzero(predicted != labels)
    sure = probability[wrong, predicted[wrong]]
    first = np.argsort(-sure, kind="stable")[:MOST_MISTAKES]
    return tuple(Mistake(int(wrong[n]), int(labels[wrong[n]]), int(predicted[wrong[n]]), float(sure[n])) for n in first)


def _check_fit(architecture: network.Architecture | OwnNetwork, dataset: Dataset, test: Split) -> None:
    expected = (test.image_shape[0] * test.image_shape[1], len(dataset.classes))
    actual = (architecture.inputs, architecture.classes)
    if actual != expected:
        raise ConfigError(
            f"{dataset.name}: expected a model for {expected[0]:,} pixels and {expected[1]} classes; "
            f"found one for {actual[0]:,} pixels and {actual[1]} classes; train one for this data set"
        )
