"""How well rows are shuffled that do not fit in memory, and whether accuracy suffers from it.

python -m benchmarks.shuffling --mnist ~/archives

Trains the tutorial's network on MNIST, over several seeds, on the archive as published and on one sorted by class:
all rows in memory; in shards, a sixteenth of the rows at once; by part, as many at once, in blocks of which sixteen
fill a window (512 MiB hold 21 row groups of such images); and, to see what a poor shuffle does, in windows of
consecutive rows, shuffled only within. A tenth of the rows is held out, as by default.

Prints the accuracy on the test split and how mixed the batches are: the mean over all batches of chi-square of their
class counts, divided by its degrees of freedom. A fair draw gives 1, and a little more as the classes differ in size.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.subjects import FILES, MNIST_VARIABLE
from storage.datasets import catalog
from storage.datasets.training import TrainingConfig
from storage.formats import idx, parquet
from storage.records import FolderEntry, Split
from tasks.model import forward, holdout, network, training_rows
from tasks.model.fitting import Fitting
from tasks.model.scaling import apply
from tasks.model.training_rows import InParts, InShards, Parts, Rows, Shards
from tasks.normalize import statistics

SHARE = 16
"""Of the rows, a sixteenth is in memory at once."""
CLASSES = 10


class Consecutive(Shards):
    """Shards of rows that follow each other in the split: what one gets without dealing them out."""

    def assigned(self) -> np.ndarray:
        """Return the shard of each row, as in `Shards`."""
        return np.arange(self.rows, dtype=np.int32) // np.int32(self.size)


WAYS: dict[str, type[Shards | Parts] | None] = {
    "all, in memory": None,
    "shards": Shards,
    "by part": Parts,
    "consecutive windows": Consecutive,
}


@dataclass(frozen=True)
class Whole:
    """The held-out rows of a split that is its own only part."""

    held: np.ndarray

    @property
    def rows(self) -> int:
        return int(self.held.sum())

    def rows_of(self, _number: int, /) -> int:
        return self.rows

    def of(self, _number: int, /) -> np.ndarray:
        return self.held


@dataclass(frozen=True)
class Outcome:
    """What one training reached."""

    accuracy: float
    mixed: float
    """Mean chi-square of a batch over its degrees of freedom."""


def main() -> None:
    """Train each way, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", default=os.environ.get(MNIST_VARIABLE), help="folder of the four archives")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    asked = parser.parse_args()
    if not asked.mnist:
        parser.error(f"expected the folder of the four archives: --mnist or {MNIST_VARIABLE}")
    data = {role: idx.read(Path(asked.mnist).expanduser() / file) for role, file in FILES.items()}
    print(f"{'order of the archive':22}{'rows at once':24}{'test accuracy':>24}{'chi-square / dof':>18}")
    for order, permutation in _orders(data["train-labels"]).items():
        with tempfile.TemporaryDirectory(prefix="idxflow-shuffling-") as folder:
            split = _written(Path(folder), data["train-images"][permutation], data["train-labels"][permutation])
            for name, kind in WAYS.items():
                found = [_trained(split, kind, seed, asked.epochs, data) for seed in range(1, asked.seeds + 1)]
                accuracies = [100 * outcome.accuracy for outcome in found]
                print(
                    f"{order:22}{name:24}{np.mean(accuracies):>10.2f}% ({min(accuracies):.2f}–{max(accuracies):.2f})"
                    f"{np.mean([outcome.mixed for outcome in found]):>18.3f}",
                    flush=True,
                )


def _orders(labels: np.ndarray) -> dict[str, np.ndarray]:
    return {"as published": np.arange(len(labels)), "sorted by class": np.argsort(labels, kind="stable")}


def _written(folder: Path, images: np.ndarray, labels: np.ndarray) -> Split:
    split = Split(FolderEntry(folder), "train", len(labels), (28, 28), CLASSES, "", {})
    with parquet.Writer(split.file, split.image_shape, tuple(map(str, range(CLASSES)))) as writer:
        for start in range(0, len(labels), parquet.ROW_GROUP):
            block = slice(start, start + parquet.ROW_GROUP)
            writer.write(images[block], labels[block])
        writer.close({"image_shape": split.image_shape, "rows": split.rows})
    return split


def _trained(
    split: Split, kind: type[Shards | Parts] | None, seed: int, epochs: int, data: dict[str, np.ndarray]
) -> Outcome:
    config = TrainingConfig(epochs=epochs, learning_rate=0.01, seed=seed)
    held = holdout.choose(catalog.find("mnist"), split, config)
    fitted = split.rows - int(held.sum())
    with _opened(split, config, kind, held) as there:
        found = statistics(split, held)
        architecture = network.Architecture(784, config.hidden, config.activation, CLASSES)
        fitting = Fitting(architecture, config, found, there, fitted)
        for epoch in range(1, epochs + 1):
            fitting.epoch(epoch)
        mixed = _mixed(there, config.batch_size)
    answers = forward.logits(architecture, fitting.weights, apply(data["test-images"], found)).argmax(axis=1)
    return Outcome(float((answers == data["test-labels"]).mean()), mixed)


@contextmanager
def _opened(
    split: Split, config: TrainingConfig, kind: type[Shards | Parts] | None, held: np.ndarray
) -> Iterator[Rows]:
    if kind is None:
        with training_rows.opened("mnist", split, config, held, split.entry.folder) as there:
            yield there
        return
    fitted = split.rows - int(held.sum())
    size = split.rows // SHARE // config.batch_size * config.batch_size
    if issubclass(kind, Parts):
        yield InParts(kind((split,), size, fitted, config.seed, size // SHARE), Whole(held))
        return
    with tempfile.TemporaryFile(dir=split.entry.folder) as file:
        yield InShards(split, held, kind(fitted, size, config.seed), file)


def _mixed(there: Rows, batch: int) -> float:
    return float(np.mean([_chi_square(labels) for labels in _batches(there, batch) if len(labels) == batch]))


def _batches(there: Rows, batch: int) -> Iterator[np.ndarray]:
    for window in there.windows(1):
        labels = window.labels.numpy()[window.order]
        yield from (labels[start : start + batch] for start in range(0, len(labels), batch))


def _chi_square(labels: np.ndarray) -> float:
    expected = len(labels) / CLASSES
    counts = np.bincount(labels, minlength=CLASSES)
    return float(((counts - expected) ** 2 / expected).sum() / (CLASSES - 1))


if __name__ == "__main__":
    main()
