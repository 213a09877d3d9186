"""How many wrong labels `--audit` finds, and how many of those it finds are wrong.

    python -m benchmarks.audit                                   # digits, and MNIST where IDXFLOW_MNIST_DIR has it
    python -m benchmarks.audit --seeds 3

Two questions, both to the audit as a run carries it out:

- Of labels that are changed on purpose, one in a hundred, to another class at random: how many are among as many of
  the most suspicious rows, how many are flagged, and how many of the flagged were changed? The labels that were wrong
  before count as right here, so the last figure is too low.
- Of the 15 labels of MNIST's test split that a majority of five people did not confirm: where are they? They were
  published by C. G. Northcutt, A. Athalye, J. Mueller: Pervasive Label Errors in Test Sets Destabilize Machine Learning
  Benchmarks, NeurIPS 2021, arXiv:2103.14749. The people were shown only what an earlier audit had found, so nobody
  knows how many more there are. For this, both splits are one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.formats import idx, parquet
from storage.records import FolderEntry, Split
from tasks.audit import audit_into
from tasks.auditing.cross_validation import recipe
from tasks.auditing.tables import Suspects

CONFIRMED = (947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729)
"""Rows of MNIST's test split, from `mturk/mnist_mturk.json` of the repository cleanlab/label-errors."""
SHARE = 0.01
"""Of the labels to change."""

Rows = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Print both answers."""
    parser = argparse.ArgumentParser(description="Measure how many wrong labels --audit finds.")
    parser.add_argument("--seeds", type=int, default=3, help="how often to change labels")
    seeds = parser.parse_args().seeds
    for dataset, train, test in _data():
        for seed in range(1, seeds + 1):
            print(_changed(dataset, train, test, seed), flush=True)
        if dataset.name == "mnist":
            print(_confirmed(dataset, train, test), flush=True)


def _data() -> Iterator[tuple[Dataset, Rows, Rows]]:
    """Yield each data set with the images and labels of its splits."""
    from sklearn.datasets import load_digits

    digits, dataset = load_digits(), catalog.find("digits")
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    rows = dataset.rows["train"]
    yield dataset, (images[:rows], labels[:rows]), (images[rows:], labels[rows:])
    folder = os.environ.get("IDXFLOW_MNIST_DIR")
    if folder:
        dataset = catalog.find("mnist")
        train, test = (
            (
                _read(Path(folder, dataset.archive(f"{name}-images").file)),
                _read(Path(folder, dataset.archive(f"{name}-labels").file)),
            )
            for name in ("train", "test")
        )
        yield dataset, train, test


def _read(file: Path) -> np.ndarray:
    with idx.Reader(file, file.name) as reader:
        return np.concatenate([*reader.blocks(parquet.ROW_GROUP)])


def _changed(dataset: Dataset, train: Rows, test: Rows, seed: int) -> str:
    """Change labels, and return how many the audit finds."""
    images, labels = train
    random = np.random.default_rng(seed)
    count = round(SHARE * len(labels))
    rows = random.choice(len(labels), count, replace=False)
    labels = labels.copy()
    labels[rows] = (labels[rows] + random.integers(1, len(dataset.classes), count)) % len(dataset.classes)
    suspects, seconds = _suspects(dataset, (images, labels), test)
    found = np.isin(suspects.row, rows)
    flagged, most = found[suspects.flagged], min(count, 100)
    return (
        f"{dataset.name}, seed {seed}: {count:,} labels of {len(labels):,} changed; {found[:count].mean():.1%} of the "
        f"{count:,} most suspicious rows are changed ones, {found[:most].mean():.0%} of the first {most}; "
        f"{len(flagged):,} flagged: {flagged.sum() / count:.1%} of the changed ones, {flagged.mean():.1%} of them "
        f"changed; {seconds:.1f} s of processor time"
    )


def _confirmed(dataset: Dataset, train: Rows, test: Rows) -> str:
    """Return where the published errors are among the suspects of the test split."""
    first = len(train[1])
    both = np.concatenate([train[0], test[0]]), np.concatenate([train[1], test[1]])
    suspects, seconds = _suspects(dataset, both, (test[0][:1], test[1][:1]))
    of_test = suspects.row >= first
    rows, flagged = suspects.row[of_test] - first, suspects.flagged[of_test]
    known = np.isin(rows, CONFIRMED)
    within = ", ".join(f"{known[:most].sum()} among the first {most}" for most in (15, 25, 50, 100))
    return (
        f"{dataset.name}, both splits, its {len(CONFIRMED)} published errors in the test split: {within} of "
        f"{len(rows)} suspects of the test split; {flagged.sum()} of these flagged, {known[flagged].sum()} of them "
        f"published; of the whole data {len(suspects):,} suspects, {suspects.flagged.sum():,} flagged; "
        f"{seconds:.1f} s of processor time"
    )


def _suspects(dataset: Dataset, train: Rows, test: Rows) -> tuple[Suspects, float]:
    """Audit rows as a run does; return the suspects, and the processor time in seconds."""
    with tempfile.TemporaryDirectory() as place:
        splits = _split(Path(place), dataset, "train", train), _split(Path(place), dataset, "test", test)
        folder = Path(place, "audit")
        folder.mkdir()
        config = recipe(splits[0].rows, "512MiB")
        started = time.process_time()
        record = audit_into(folder, dataset, splits, config)
        seconds = time.process_time() - started
        return Suspects.read(record.suspects), seconds


def _split(folder: Path, dataset: Dataset, name: str, rows: Rows) -> Split:
    images, labels = rows
    split = Split(FolderEntry(folder), name, len(labels), dataset.image_shape, len(dataset.classes), "", {})  # type: ignore[arg-type]
    with parquet.Writer(split.file, dataset.image_shape, dataset.classes) as writer:
        for start in range(0, len(labels), parquet.ROW_GROUP):
            writer.write(images[start : start + parquet.ROW_GROUP], labels[start : start + parquet.ROW_GROUP])
        writer.close({"image_shape": dataset.image_shape, "rows": len(labels)})
    return split


if __name__ == "__main__":
    main()
