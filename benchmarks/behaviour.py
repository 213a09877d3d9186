"""How many answers small changes of test images change, for the models of a data set in a store.

python -m benchmarks.behaviour STORE DATASET [--images 2000]

Prints the tables of docs/how-to/behaviour.md: for each kind of change and its size, the largest share of answers that
one way of changing changes, as the step `probe` counts them. A column is a version of the data set: train some first,
such as `idxflow run mnist --profile fast --store STORE`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from storage.datasets.manifest import Behaviour
from storage.records import RunRecord, TestName, TrainedModel
from storage.registry import Registry
from storage.store import Store
from tasks.gate.behaviour import described
from tasks.model.classifier import Classifier
from tasks.probe import background
from tasks.probing import answers, changes
from tasks.report import past_runs
from tasks.report.lineage import command

SIZES: dict[TestName, tuple[str, Sequence[float]]] = {
    "shift": ("pixels", (1, 2, 3)),
    "rotate": ("degrees", (5, 10, 15)),
    "noise": ("deviation", (1, 8, 16, 32)),
    "brightness": ("percent", (10, 20, 30)),
}


def settings(name: TestName, key: str, size: float, images: int) -> Behaviour:
    """Return a manifest's table with one test, whose limit does not matter."""
    return Behaviour.model_validate({"images": images, name: {key: size, "changed": 1.0}})


def shares(run: RunRecord, model: TrainedModel, images: int) -> list[tuple[str, float]]:
    """Return what each test changes, in words, and the share of answers that its worst way changes."""
    if run.test is None:
        raise SystemExit(f"run {run.id} has no test split in the store")
    classifier, fill = Classifier(model), background(model, run.test.image_shape)
    found = []
    for name, (key, sizes) in SIZES.items():
        for size in sizes:
            asked = settings(name, key, size, images)
            (test,) = answers.tested(classifier, asked, list(changes.ways(asked, fill)), run.test).tests
            found.append((described(test), test.worst.share))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("--images", type=int, default=2_000, help="test images that are changed, at most")
    asked = parser.parse_args()
    registry = Registry(Store(asked.store), asked.dataset)
    columns = {}
    for version in sorted(registry.versions(), key=lambda version: version.number):
        run = past_runs.find(registry, version.run)
        if run and run.model:
            print(f"v{version.number}: {version.test_accuracy:.2%} right, {command(run)}", flush=True)
            columns[f"v{version.number}"] = shares(run, run.model, asked.images)
    print("\n| Changed by |", " | ".join(columns), "|")
    print("|:--|" + "--:|" * len(columns))
    for cells in zip(*columns.values(), strict=True):
        print(f"| {cells[0][0]} | {' | '.join(f'{share:.2%}' for _, share in cells)} |")


if __name__ == "__main__":
    main()
