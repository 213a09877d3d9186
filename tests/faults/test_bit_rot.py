"""Bit rot: in every kind of file that the store keeps, no flipped bit is taken for what was written.

One real run fills a store. In a copy of it each kind of file gets 100 single flipped bits, one at a time: the check
of the store names the file as damage, and whoever reads it from the store refuses it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.run import Job
from storage.errors import DamagedEntry, FormatError
from storage.files import read_json
from storage.formats import arrays, idx, parquet
from storage.formats.history import read_history
from storage.ledger import Ledger
from storage.records import (
    SPLITS,
    Archive,
    Audit,
    Behaviour,
    Confirmation,
    Evaluation,
    Normalization,
    Quarantine,
    Report,
    Split,
    Study,
    TrainedModel,
    Validation,
)
from storage.registry import Registry
from storage.store import ENTRY, FOLDERS, Store, load
from storage.verify import verify
from tasks.checking.dividing import BadRows
from tasks.checking.measuring import Measured
from tasks.checking.repeats import Bucket, Repeats
from tasks.checking.surveys import PartSurvey, SplitSurvey
from tasks.model import checkpoint
from tasks.model.network import load_architecture
from tasks.quarantine import quarantine
from tasks.train import Training
from tasks.tune import begin
from tasks.tuning.optuna_study import Search
from tasks.tuning.space import default
from tasks.validate import validate
from tests.conftest import repeated, write_tiny
from tests.support.runs import whole_run
from tests.support.split_in_parts import in_parts

FLIPS = 100
ENTRIES: dict[str, tuple[type[Any], list[str]]] = {
    "fetch": (Archive, ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]),
    "decode": (Split, ["train.parquet"]),
    "audit": (Audit, ["suspects.parquet", "near_duplicates.parquet"]),
    "quarantine": (Quarantine, ["train.parquet", "quarantine.parquet"]),
    "validate": (Validation, ["summary.parquet", "means.npz"]),
    "normalize": (Normalization, ["normalization.npz", "held_out.npz"]),
    "train": (
        TrainedModel,
        ["weights.npz", "architecture.json", "normalization.npz", "history.jsonl", "model.keras"],
    ),
    "evaluate": (Evaluation, ["predictions.npz"]),
    "confirm": (Confirmation, ["probability.npz"]),
    "probe": (Behaviour, ["examples.npz"]),
    "publish": (Report, ["report.html", "report.json"]),
    "tune": (Study, ["space.toml"]),
}
"""The record and the files of each step's entry; all have an `entry.json` as well."""
OF_PARTS: dict[tuple[str, str], tuple[type[Any], list[str]]] = {
    ("quarantine", "train part reasons"): (BadRows, ["bad.npz"]),
    ("quarantine", "train part"): (Split, ["train.parquet", "quarantine.parquet"]),
    ("quarantine", ""): (Quarantine, ["parts.jsonl", "quarantine.parquet"]),
    ("validate", "train part survey"): (PartSurvey, ["images.parquet", "rows.npz", "sums.npz"]),
    ("validate", "train survey"): (SplitSurvey, ["parts.jsonl", "sums.npz"]),
    ("validate", "bucket"): (Bucket, ["repeats.parquet"]),
    ("validate", "repeats"): (Repeats, ["parts.jsonl"]),
    ("validate", "train part"): (Measured, ["summary.parquet", "findings.json", "tallies.npz"]),
    ("validate", ""): (Validation, ["parts.jsonl", "means.npz"]),
}
"""The same for the checks of splits in parts, by step and subject."""
FILES_OF_PARTS = [(*place, name) for place, (_, names) in OF_PARTS.items() for name in [*names, ENTRY]]
FILES = [(step, name) for step, (_, names) in ENTRIES.items() for name in [*names, ENTRY]]
RECORDS: dict[str, Callable[[Store], object]] = {
    "registry/versions": lambda store: Registry(store, "tiny").versions(),
    "ledger/runs": lambda store: Ledger(store, "tiny").read("runs"),
    "ledger/arrivals": lambda store: Ledger(store, "tiny").last("arrivals"),
    "ledger/studies": lambda store: Ledger(store, "tiny").last("studies"),
    "ledger/decisions": lambda store: Ledger(store, "tiny").last("decisions"),
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A store with all of one run in it."""
    folder = tmp_path_factory.mktemp("bit-rot")
    store = Store(folder / "store")
    store.prepare()
    rules = '[quarantine]\nchecks = ["duplicate"]\n[behaviour]\nshift = { pixels = 1, changed = 1.0 }\n'
    job = whole_run(store, write_tiny(folder, arrays=repeated(), manifest=rules).manifest, audit=True)
    Ledger(store, "tiny").append("arrivals", "mark", {"archives": 4})
    record = job.record
    training = Training(job.dataset, record.train, record.normalization, job.config)
    study = begin.fn(store, training, Search(default(())))
    Ledger(store, "tiny").append("studies", study.record.entry.key, {"state": "begun"})
    return job


@dataclass(frozen=True)
class Copy:
    """One file of a copy of the store that holds no more than it takes to check it."""

    store: Store
    file: Path

    def flips(self) -> Iterator[None]:
        """Yield once for each of `FLIPS` random bits, the same each time, with that bit the other way round."""
        whole = self.file.read_bytes()
        random = np.random.default_rng(len(self.file.name))
        with self.file.open("r+b", buffering=0) as stream:
            for bit in random.integers(0, len(whole) * 8, FLIPS).tolist():
                os.pwrite(stream.fileno(), bytes([whole[bit // 8] ^ 1 << bit % 8]), bit // 8)
                yield
                os.pwrite(stream.fileno(), whole[bit // 8 : bit // 8 + 1], bit // 8)
        assert self.file.read_bytes() == whole


def copied(job: Job, folder: Path, *parts: Path) -> Store:
    """Return a store with `parts` of the run's store, writable."""
    store = Store(folder / "copy")
    for part in parts:
        shutil.copytree(part, store.root / part.relative_to(job.store.root))
    for path in store.root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return store


def entry_with(job: Job, step: str, name: str) -> Path:
    """Return the folder of an entry of `step` that has the file `name`."""
    marked = f'"step": "{step}"'
    folders = (path.parent for path in job.store.entries("tiny", step).glob(f"*/{name}"))
    return next(folder for folder in folders if marked in (folder / ENTRY).read_text())


def test_the_run_left_no_file_that_is_not_flipped_here(job: Job):
    files = {
        (FOLDERS[step], path.name)
        for step in ENTRIES
        for path in job.store.entries("tiny", step).glob("*/*")
        if not path.name.startswith("t10k") and path.name != "test.parquet"
    }
    assert files == {(FOLDERS[step], name) for step, name in FILES}
    others = {path.parent.name for path in job.store.dataset("tiny").rglob("*.json")} - {f.name for f in _folders(job)}
    assert others == {"versions", "registry", "runs", "decisions", "arrivals", "studies"}


def _folders(job: Job) -> list[Path]:
    return [path.parent for path in job.store.root.rglob(ENTRY)]


@pytest.mark.parametrize(("step", "name"), FILES)
def test_no_flipped_bit_of_an_entry_goes_unnoticed(job: Job, tmp_path: Path, step: str, name: str):
    entry = entry_with(job, step, name)
    store = copied(job, tmp_path, entry)
    folder = store.root / entry.relative_to(job.store.root)
    kind = ENTRIES[step][0]
    load(folder, kind)
    assert not verify(store, "tiny").damage
    for _ in Copy(store, folder / name).flips():
        with pytest.raises(DamagedEntry, match=name):
            load(folder, kind)
        assert [Path(finding.where) for finding in verify(store, "tiny").damage] == [folder]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the checks of splits in parts."""
    folder = tmp_path_factory.mktemp("bit-rot-parts")
    store, values = Store(folder / "store"), repeated()
    store.prepare()
    dataset = write_tiny(folder, arrays=values, manifest='[quarantine]\nchecks = ["duplicate"]\nmax_share = 0.5\n')
    train, test = (
        in_parts(store, dataset, name, images, labels, (len(labels) // 2, len(labels) - len(labels) // 2))
        for name in SPLITS
        for images, labels in [(values[f"{name}-images"], values[f"{name}-labels"])]
    )
    left = quarantine.fn(store, dataset, train, test).record
    validate.fn(store, dataset, left.rest(train), left.rest(test))
    return store


def entries_of(store: Store, step: str) -> dict[str, Path]:
    """Return the folder of one entry of `step` for each subject."""
    described = ((path.parent, read_json(path)) for path in store.entries("tiny", step).glob(f"*/{ENTRY}"))
    return {entry["subject"]: folder for folder, entry in described if entry["step"] == step}


def test_the_checks_of_parts_left_no_file_that_is_not_flipped_here(checked: Store):
    found = {
        (step, subject, path.name)
        for step in ("quarantine", "validate")
        for subject, folder in entries_of(checked, step).items()
        for path in folder.iterdir()
        if not subject.startswith("test")
    }
    assert found == set(FILES_OF_PARTS)


@pytest.mark.parametrize(("step", "subject", "name"), FILES_OF_PARTS)
def test_no_flipped_bit_of_checks_of_parts_goes_unnoticed(
    checked: Store, tmp_path: Path, step: str, subject: str, name: str
):
    entry = entries_of(checked, step)[subject]
    folder = tmp_path / "copy" / entry.relative_to(checked.root)
    shutil.copytree(entry, folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    kind = OF_PARTS[step, subject][0]
    load(folder, kind)
    for _ in islice(Copy(Store(tmp_path / "copy"), folder / name).flips(), 20):
        with pytest.raises(DamagedEntry, match=name):
            load(folder, kind)
        # Other entries that it lists are not in the copy.
        assert folder in {Path(finding.where) for finding in verify(Store(tmp_path / "copy"), "tiny").damage}


@pytest.mark.parametrize("place", RECORDS)
def test_no_flipped_bit_of_registry_or_ledger_goes_unnoticed(job: Job, tmp_path: Path, place: str):
    store = copied(job, tmp_path, *(job.store.dataset("tiny") / part for part in ("registry", "ledger")))
    path = store.dataset("tiny") / place
    file = path if path.is_file() else next(path.glob("*.json"))
    assert RECORDS[place](store)
    # The models are not in the copy, and that is all there is to find.
    known = set(verify(store, "tiny").damage)
    assert all("entry at" in finding.problem for finding in known)
    for _ in Copy(store, file).flips():
        with pytest.raises(DamagedEntry, match=file.name):
            RECORDS[place](store)
        assert file in {Path(finding.where) for finding in set(verify(store, "tiny").damage) - known}


def test_no_flipped_bit_of_the_hint_makes_another_champion_and_each_is_noticed(job: Job, tmp_path: Path):
    store = copied(job, tmp_path, *(job.store.dataset("tiny") / part for part in ("registry", "ledger")))
    file, known = store.dataset("tiny") / "registry" / "champion.json", set(verify(store, "tiny").damage)
    for _ in Copy(store, file).flips():
        assert Registry(store, "tiny").champion() == Registry(job.store, "tiny").champion()
        (finding,) = set(verify(store, "tiny").damage) - known
        assert (Path(finding.where), finding.remedy.startswith("remove it")) == (file, True)


def test_no_flipped_bit_of_a_checkpoint_is_trained_on_with(job: Job, tmp_path: Path):
    """Not used, or no other than it was: the ZIP around the numbers has fields that mean nothing to anyone."""
    model, most = job.record.model, job.config.epochs
    assert model
    architecture = load_architecture(model.architecture)
    weights = arrays.read(model.weights, {n: (np.float32, s) for n, s in architecture.shapes.items()})
    path = tmp_path / "checkpoint.npz"
    epochs = read_history(model.history)[:2]
    saved = checkpoint.Checkpoint(epochs, weights, {"momentum": {n: w * 2 for n, w in weights.items()}}, {})
    checkpoint.save(path, saved, most)
    parts, used = {"weights": architecture.shapes, "momentum": architecture.trained_shapes}, 0
    for _ in Copy(job.store, path).flips():
        loaded = checkpoint.load(path, parts, most)
        if loaded:
            used += 1
            assert loaded.epochs == epochs
            assert arrays.digest(loaded.weights) == arrays.digest(weights)
            assert arrays.digest(loaded.slots["momentum"]) == arrays.digest(saved.slots["momentum"])
    assert used < FLIPS / 5


def _idx(path: Path) -> tuple[str, ...]:
    return (arrays.digest({"": idx.read(path)}),)


def _parquet(path: Path) -> tuple[str, ...]:
    images, labels = parquet.read(path)
    return arrays.digest({"images": images, "labels": labels}), arrays.digest({"": parquet.labels(path)})


@pytest.mark.parametrize(
    ("step", "name", "read"),
    [
        ("fetch", "train-images-idx3-ubyte.gz", _idx),
        ("fetch", "train-labels-idx1-ubyte.gz", _idx),
        ("decode", "train.parquet", _parquet),
    ],
)
def test_even_without_the_store_s_digests_a_flipped_bit_never_gives_other_data(
    job: Job, tmp_path: Path, step: str, name: str, read: Callable[[Path], tuple[str, ...]]
):
    path = Path(shutil.copy(entry_with(job, step, name) / name, tmp_path))
    path.chmod(0o644)
    good, refused = read(path), 0
    for _ in Copy(job.store, path).flips():
        try:
            data = read(path)
        except (DamagedEntry, FormatError):
            refused += 1
        else:
            assert data == good
    assert refused > FLIPS * 0.6
