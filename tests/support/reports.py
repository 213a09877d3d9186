"""Runs to report on, of every kind: complete, cut short, hostile, tiny and large; made by hand, not trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from storage.datasets.catalog import Dataset
from storage.datasets.manifest import Drift, Floors, Gate, Limits, Quarantine, Slices
from storage.datasets.training import TrainingConfig
from storage.formats import parquet
from storage.records import (
    Archive,
    Check,
    ClassScore,
    Decision,
    Epoch,
    Evaluation,
    Failure,
    FolderEntry,
    Mistake,
    Rule,
    RunRecord,
    Split,
    SplitName,
    Step,
    TrainedModel,
    Validation,
    to_json,
)
from storage.store import Store
from tasks.report import past_runs

HOSTILE = (
    "<script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "https://evil.example/ www.evil.example",
    "</style></title><b>",
    "`code` **bold** | cell\n\n# heading\n- item",
    "{{ 7 * 7 }} {% raw %}",
    "👩‍🔬 é 中文 \u202egnp.exe \x00\x1b[31m",
    "x" * 5000,
)
MARKUP = (
    "<script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "<img src=//evil.example/x onerror='alert(1)'>",
    "[x](javascript:alert(1)) ![x](https://evil.example/x.png)",
    "</style></title><base href=//evil.example><b>",
    "<!--<iframe src=javascript:alert(1)>",
    "{{ 7 * 7 }} {% include 'x' %}",
    "<details open ontoggle=alert(1)> www.evil.example",
)
"""The same kind, each short enough for the name of a class."""


def a_dataset(folder: Path, classes: int = 3, shape: tuple[int, int] = (9, 7), **changes: Any) -> Dataset:
    values: dict[str, Any] = {
        "name": "tiny",
        "title": "Tiny bars",
        "classes": tuple(f"bar {n}" for n in range(classes)),
        "image_shape": shape,
        "archives": (),
        "manifest": folder / "tiny.toml",
        "limits": Limits(),
        "floors": Floors(),
        "gate": Gate(),
        "quarantine": Quarantine(),
        "drift": Drift(),
        "slices": Slices(),
        "licence": "CC0",
        "homepage": "https://example.org/bars?a=1&b=2",
        "citation": "A. Author: Bars, 2026.",
    }
    return Dataset(**(values | changes))


def a_split(store: Store, dataset: Dataset, name: SplitName, rows: int) -> Split:
    random = np.random.default_rng(len(name))
    images = random.integers(0, 256, (rows, *dataset.image_shape), dtype=np.uint8)
    labels = (np.arange(rows) % len(dataset.classes)).astype(np.uint8)
    return written(store.root / "made" / name, dataset, name, images, labels)


def written(folder: Path, dataset: Dataset, name: SplitName, images: np.ndarray, labels: np.ndarray) -> Split:
    """Write rows into `folder` as a split."""
    folder.mkdir(parents=True, exist_ok=True)
    archives = {f"{name}-images": "ab" * 32}
    split = Split(FolderEntry(folder), name, len(labels), dataset.image_shape, len(dataset.classes), name * 8, archives)
    with parquet.Writer(split.file, dataset.image_shape, dataset.classes) as writer:
        for start in range(0, len(labels), parquet.ROW_GROUP):
            rows = slice(start, start + parquet.ROW_GROUP)
            writer.write(images[rows], labels[rows])
        writer.close({"image_shape": dataset.image_shape, "rows": len(labels)})
    return split


def a_model(store: Store, epochs: int, held_out: bool = True) -> TrainedModel:
    folder = store.root / "made" / "model"
    folder.mkdir(parents=True, exist_ok=True)
    history = [
        Epoch(n, 0.001, 1 / n, 1 - 0.5 / n, 1.1 / n if held_out else None, 1 - 0.6 / n if held_out else None, 0.1)
        for n in range(1, epochs + 1)
    ]
    model = TrainedModel(
        FolderEntry(folder), "we" * 32, 1234, 108, 12 if held_out else 0, epochs, epochs, 0.123456, 0.987654321
    )
    model.history.write_text("".join(json.dumps(to_json(epoch)) + "\n" for epoch in history), encoding="utf-8")
    return model


def an_evaluation(
    store: Store, dataset: Dataset, test: Split, name: str = "evaluation", wrong_in_five: int = 1
) -> Evaluation:
    """Return a score with every fifth row wrong, beginning at `wrong_in_five`."""
    count = len(dataset.classes)
    labels = parquet.labels(test.file)
    next_class = (labels.astype(int) + 1) % count
    predicted = np.where(np.arange(test.rows) % 5 == wrong_in_five, next_class, labels).astype(np.uint8)
    probability = np.full((test.rows, count), 0.1 / max(count - 1, 1), np.float32)
    probability[np.arange(test.rows), predicted] = 0.9
    return scored(store.root / "made" / name, dataset, test, probability)


def scored(folder: Path, dataset: Dataset, test: Split, probability: np.ndarray) -> Evaluation:
    """Write what a model answers into `folder`; return its score, of which only the intervals and losses are made up.

    Args:
        probability: of each class (rows, classes).
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels, predicted = parquet.labels(test.file), probability.argmax(axis=1).astype(np.uint8)
    np.savez(folder / "predictions.npz", predicted=predicted, probability=probability.astype(np.float32))
    count = len(dataset.classes)
    confusion = np.zeros((count, count), int)
    np.add.at(confusion, (labels, predicted), 1)
    recall = confusion.diagonal() / np.maximum(confusion.sum(axis=1), 1)
    wrong = np.flatnonzero(predicted != labels)[:25]
    correct = int((predicted == labels).sum())
    return Evaluation(
        FolderEntry(folder),
        "we" * 32,
        test.digest,
        test.rows,
        correct,
        correct / test.rows,
        0.7123456,
        0.8765432,
        0.345678,
        tuple(
            ClassScore(n, name, int(confusion[n].sum()), 0.8, float(recall[n]), 0.85)
            for n, name in enumerate(dataset.classes)
        ),
        tuple(tuple(row) for row in confusion.tolist()),
        tuple(Mistake(int(r), int(labels[r]), int(predicted[r]), float(probability[r].max())) for r in wrong),
    )


def some_checks(failing: bool) -> tuple[Check, ...]:
    return (
        Check("train", "rows", "row_count", "", "120", "120", "critical", True),
        Check("test", "repeats", "unique", "digest", "at most 1.00%", "3.33%", "warning", False, (1, 7)),
        Check(
            "train", "labels name a class", "between", "label", "0 to 2", "0 to 37", "critical", not failing, (4, 11)
        ),
    )


def a_run(
    store: Store,
    dataset: Dataset,
    rows: tuple[int, int] = (120, 62),
    epochs: int = 5,
    failing: bool = False,
    held_out: bool = True,
) -> RunRecord:
    train, test = a_split(store, dataset, "train", rows[0]), a_split(store, dataset, "test", rows[1])
    counts: dict[str, tuple[int, ...]] = {
        split.name: tuple(np.bincount(parquet.labels(split.file)).tolist()) for split in (train, test)
    }
    evaluation = an_evaluation(store, dataset, test)
    archive = Archive(
        FolderEntry(store.root / "made"), "train-images", "train.gz", 123456, "ab" * 32, "https://example.org/train.gz"
    )
    return RunRecord(
        id="20260502-090013-3f2a",
        dataset=dataset.name,
        started="2026-05-02T09:00:13+00:00",
        asked_by="command line",
        profile="default",
        config=TrainingConfig.model_validate({"epochs": epochs}).model_dump(mode="json"),
        steps=(
            Step("decode", "a" * 32, "120 images", 0.123456, True, "nothing changed", "train"),
            Step("train", "b" * 32, "5 epochs", 75.4321, False, "learning_rate 0.001 → 0.003"),
        ),
        archives=(archive,),
        train=train,
        test=test,
        validation=Validation(FolderEntry(store.root), not failing, "va" * 32, some_checks(failing), counts),
        model=a_model(store, epochs, held_out),
        evaluation=evaluation,
        champion_evaluation=an_evaluation(store, dataset, test, "champion", wrong_in_five=2),
        decision=Decision(
            "promoted",
            "promoted v2: net +3 of 62 test rows against v1",
            2,
            2,
            1,
            (Rule("test accuracy", "at least 50.00%", "79.03%", True),),
        ),
        facts=past_runs.facts(dataset),
    )


STAGES: dict[str, tuple[str, ...]] = {
    "start": (
        "archives",
        "steps",
        "train",
        "test",
        "validation",
        "model",
        "evaluation",
        "champion_evaluation",
        "decision",
    ),
    "fetch": ("train", "test", "validation", "model", "evaluation", "champion_evaluation", "decision"),
    "decode": ("test", "validation", "model", "evaluation", "champion_evaluation", "decision"),
    "validate": ("model", "evaluation", "champion_evaluation", "decision"),
    "train": ("evaluation", "champion_evaluation", "decision"),
    "evaluate": ("champion_evaluation", "decision"),
    "decide": (),
}


def cut_at(run: RunRecord, stage: str, failure: Failure | None) -> RunRecord:
    """Return `run` as if it had ended in `stage`."""
    empty = {name: () if name in ("archives", "steps") else None for name in STAGES[stage]}
    return dataclasses.replace(run, failure=failure, **empty)  # type: ignore[arg-type]


def hostile_run(store: Store, text: str) -> tuple[Dataset, RunRecord]:
    """Return a run that has `text` wherever a record can hold one."""
    dataset = dataclasses.replace(
        a_dataset(store.root), title=text, licence=text, homepage=text, citation=text, classes=(text, "b" + text, "c")
    )
    run = a_run(store, dataset, epochs=1, failing=True)
    assert run.validation
    assert run.decision
    return dataset, dataclasses.replace(
        run,
        started=text,
        asked_by=text,
        profile=text,
        config={**run.config, text: text},
        steps=tuple(dataclasses.replace(s, subject=text, summary=text, reason=text) for s in run.steps),
        archives=tuple(dataclasses.replace(a, file_name=text, source=text) for a in run.archives),
        validation=dataclasses.replace(
            run.validation,
            checks=tuple(dataclasses.replace(c, name=text, limit=text, observed=text) for c in run.validation.checks),
        ),
        decision=dataclasses.replace(run.decision, sentence=text, rules=(Rule(text, text, text, False),)),
    )
