"""Runs to look at in a browser: the real embedded digits, and a large synthetic data set with many classes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.datasets.manifest import Slices
from storage.datasets.training import training_config
from storage.formats import parquet
from storage.ledger import Ledger
from storage.records import (
    SPLITS,
    Check,
    Decision,
    Epoch,
    Evaluation,
    Failure,
    FolderEntry,
    Rule,
    RunRecord,
    SliceScore,
    Split,
    Step,
    TrainedModel,
    Validation,
    to_json,
)
from storage.registry import Registry
from storage.store import Store
from tasks.gate import criteria, slices
from tasks.slicing import cuts, measures
from tasks.sources.embedded import digits
from tests.support.reports import scored, written
from tests.support.stores import promote

SLICING = {"alpha": 0.05, "min_rows": 30}


def of_slices(dataset: Dataset, test: Split, evaluation: Evaluation, champion: Evaluation) -> tuple[SliceScore, ...]:
    """Return the scores on slices by class and by ink."""
    labels, ink = parquet.labels(test.file), measures.measured("ink", parquet.blocks(test.file))
    kinds = slices.kinds(labels, answers(evaluation), answers(champion))
    by_ink = cuts.by_quantile("ink", ink, 4)
    assert by_ink
    tallies = [cuts.Tally(cut, slices.KINDS) for cut in (cuts.by_class(dataset.classes), by_ink)]
    for tally, numbers in zip(tallies, (labels, ink.between(0, ink.rows)), strict=True):
        tally.add(numbers, kinds)
    return slices.scores(Slices(by=("class", "ink"), accuracy=0.8), tallies, True)


def real_digits(store: Store, dataset: Dataset) -> RunRecord:
    """Return a complete run over the embedded digits, judged by their nearest class centroid."""
    arrays = digits()
    folder = _folder(store, dataset)
    train = written(folder / "train", dataset, "train", arrays["train-images"], arrays["train-labels"])
    test = written(folder / "test", dataset, "test", arrays["test-images"], arrays["test-labels"])
    means = np.stack([arrays["train-images"][arrays["train-labels"] == n].mean(axis=0).ravel() for n in range(10)])
    distance = ((arrays["test-images"].reshape(-1, 1, 64) - means) ** 2).sum(axis=2)
    near = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / 100)
    probability = near / near.sum(axis=1, keepdims=True)
    evaluation = scored(folder / "evaluation", dataset, test, probability)
    labels = arrays["test-labels"].astype(int)
    right = probability.argmax(axis=1) == labels
    champion_probability = probability.copy()
    # The champion is wrong on six rows that the model gets right, and right on eight that it gets wrong.
    champion_probability[np.flatnonzero(right)[:60:10]] = np.roll(probability[np.flatnonzero(right)[:60:10]], 1, axis=1)
    champion_probability[np.flatnonzero(~right)[:8]] = np.eye(10)[labels[np.flatnonzero(~right)[:8]]]
    champion = scored(folder / "champion", dataset, test, champion_probability)
    return assembled(store, dataset, (train, test), (evaluation, champion))


def synthetic(store: Store, classes: int, shape: tuple[int, int]) -> tuple[Dataset, RunRecord]:
    dataset = dataclasses.replace(
        catalog.find("digits"), classes=tuple(f"c{n}" for n in range(classes)), image_shape=shape
    )
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (400, *shape), dtype=np.uint8)
    labels = (np.arange(400) % classes).astype(np.uint8)
    folder = _folder(store, dataset)
    train, test = (written(folder / name, dataset, name, images, labels) for name in SPLITS)
    scores = [scored(folder / n, dataset, test, random.dirichlet(np.ones(classes), 400)) for n in "ab"]
    return dataset, assembled(store, dataset, (train, test), (scores[0], scores[1]))


def _folder(store: Store, dataset: Dataset) -> Path:
    """Return a folder for data sets of so many classes: a store has several."""
    return store.root / f"{len(dataset.classes)}"


def assembled(
    store: Store, dataset: Dataset, splits: tuple[Split, Split], scores: tuple[Evaluation, Evaluation]
) -> RunRecord:
    (train, test), (evaluation, champion) = splits, scores
    folder = _folder(store, dataset) / "model"
    folder.mkdir()
    model = TrainedModel(FolderEntry(folder), evaluation.weights_digest, 6460, 1293, 144, 30, 21, 0.05, 0.99)
    epochs = [
        Epoch(n, 0.01, 2 / n, 1 - 0.5 / n, 2.2 / n + n / 900, 1 - 0.6 / n, 0.1, {"hidden_1": 2 / n, "classes": 1 / n})
        for n in range(1, 31)
    ]
    model.history.write_text("".join(json.dumps(to_json(epoch)) + "\n" for epoch in epochs), encoding="utf-8")
    check = Check(
        "test",
        "images that repeat an earlier one",
        "e",
        "digest",
        "at most 1.00%",
        "1.39%",
        "warning",
        False,
        tuple(range(0, 100, 7)),
    )
    holds = dataclasses.replace(check, name="every label names a class", severity="critical", passed=True, rows=())
    rule = Rule("more test rows right than champion v3", "more than 326 of 360", "324 of 360", False)
    paired = criteria.paired(parquet.labels(test.file), answers(evaluation), answers(champion))
    sentence = f"kept champion v3: candidate v4, net {paired.net:+} of {paired.rows} test rows"
    decision = Decision("kept", sentence, 4, 3, 3, (rule,), "better", {"alpha": 0.05}, paired, 12)
    decision = dataclasses.replace(decision, slices=of_slices(dataset, test, evaluation, champion), slicing=SLICING)
    return RunRecord(
        "x",
        "digits",
        "2026-05-02T09:00:13+00:00",
        "deployment retrain/digits",
        "default",
        training_config(dataset).model_dump(mode="json"),
        (
            Step("decode", "d" * 32, "1,437 images of 8×8", 0.04, True, "nothing changed", "train"),
            Step("train", "e" * 32, "30 epochs, best 21", 4.2, False, "learning_rate 0.001 → 0.01"),
        ),
        (),
        train,
        test,
        validation=Validation(FolderEntry(folder), True, "8" * 64, (check, holds), {}),
        model=model,
        evaluation=evaluation,
        champion_evaluation=champion,
        decision=decision,
    )


def answers(score: Evaluation) -> np.ndarray:
    with np.load(score.file) as arrays:
        return np.asarray(arrays["predicted"])


def with_a_past(store: Store, dataset: Dataset, run: RunRecord) -> None:
    """Put 40 earlier runs into the ledger, and three versions into the registry, the last of them the champion."""
    ledger, registry = Ledger(store, dataset.name), Registry(store, dataset.name)
    random = np.random.default_rng(1)
    assert run.evaluation
    for n in range(40):
        name = f"a-{n:02d}"
        state = "promoted" if n in (0, 17, 31) else "kept"
        accuracy = 0.88 + 0.02 * float(random.random())
        steps = {"train": {"seconds": 3 + n % 5, "key": "k", "summary": "", "reused": False, "reason": ""}}
        outcome = {"state": state, "test_accuracy": accuracy, "test_rows": 360, "seconds": 4.0, "dataset": dataset.name}
        config = {**run.config, "learning_rate": 0.02, "hidden": [100, 50]}
        ledger.append("runs", name, {**outcome, "steps": steps, "config": config, "profile": "default"})
        if state == "promoted":
            registry.register(
                model=name,
                evaluation=name,
                weights_digest="6" * 64,
                test_digest=run.evaluation.split_digest,
                test_accuracy=accuracy,
                train_accuracy=0.95,
                classes=dataset.classes,
                image_shape=dataset.image_shape,
                run=name,
            )
    promote(registry, 3, "a-31")


def refused(run: RunRecord) -> RunRecord:
    bad = Check("train", "every label names a class", "e", "label", "0 to 9", "0 to 37", "critical", False, (4, 11, 77))
    return dataclasses.replace(
        run,
        model=None,
        evaluation=None,
        champion_evaluation=None,
        decision=None,
        validation=Validation(FolderEntry(Path()), False, "8" * 64, (bad,), {}),
        failure=Failure("ValidationFailed", "digits: expected labels from 0 to 9; row 4 is 37; correct the archive", 3),
    )
