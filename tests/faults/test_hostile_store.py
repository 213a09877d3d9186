"""A store that was tampered with, met by the next run: noticed, said, mended, or refused; and none of it is run."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.errors import DamagedEntry
from storage.files import read_json, sealed
from storage.formats import arrays, parquet
from storage.records import TrainedModel
from storage.registry import Registry
from storage.store import ENTRY, Store, load
from storage.verify import verify
from tasks.model import fitting, scaling
from tasks.model.classifier import predict
from tests.support.runs import run_with_prefect, run_without_prefect
from tests.support.tampering import Marker, reseal

pytestmark = pytest.mark.flow

STEPS = {"2-splits": "decode train", "4-normalization": "normalize", "5-models": "train", "6-evaluations": "evaluate"}


def file(store: Store, part: str, name: str) -> Path:
    return next((store.dataset("tiny") / part).glob(f"*/{name}"))


def change(path: Path, edit: Callable[[bytes], bytes]) -> None:
    path.write_bytes(edit(path.read_bytes()))


def exchanged(path: Path, other_path: Path) -> None:
    first, second = path.read_bytes(), other_path.read_bytes()
    path.write_bytes(second)
    other_path.write_bytes(first)


def rewritten(path: Path, shift: int = 0, groups: int = 1) -> None:
    """Write a split anew, a good one: with its labels shifted, or with all of its rows more than once."""
    images, labels = parquet.read(path)
    metadata = {**parquet.metadata(path), "rows": len(images) * groups}
    with parquet.Writer(path, images.shape[1:], ("bar 0", "bar 1", "bar 2")) as writer:
        for _ in range(groups):
            writer.write(images, np.roll(labels, shift))
        writer.close(metadata)


def hostile_keras(path: Path, marker: Path) -> None:
    """A model file whose layer is code: Keras runs such a file unless it is told that it is unsafe to."""
    code = f"__import__('os').mkdir({str(marker)!r})"
    config = {
        "class_name": "Lambda",
        "module": "keras.layers",
        "config": {"function": {"class_name": "eval", "config": code}},
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("../../outside", code)
        archive.writestr("model.weights.h5", pickle.dumps(Marker(marker)))


TAMPERED: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "a split with a flipped bit": (
        "2-splits",
        "train.parquet",
        lambda path: change(path, lambda d: d[:900] + bytes([d[900] ^ 4]) + d[901:]),
    ),
    "a split that is cut": ("2-splits", "train.parquet", lambda path: os.truncate(path, 1_000)),
    "a split that is gone": ("2-splits", "train.parquet", lambda path: path.unlink()),
    "another run's split": ("2-splits", "train.parquet", lambda path: rewritten(path, shift=1)),
    "a split with a row group more": ("2-splits", "train.parquet", lambda path: rewritten(path, groups=2)),
    "the test split for training": (
        "2-splits",
        "train.parquet",
        lambda path: shutil.copyfile(next(path.parent.parent.glob("*/test.parquet")), path),
    ),
    "statistics that are not finite": (
        "4-normalization",
        "normalization.npz",
        lambda path: scaling.write(path, scaling.Statistics(np.full(63, np.nan), -1.0)),
    ),
    "weights with a pickle in them": (
        "5-models",
        "weights.npz",
        lambda path: np.savez(path, w=np.array([Marker(path.parent.parent.parent.parent / "ran")], dtype=object)),
    ),
    "weights that are a bomb": (
        "5-models",
        "weights.npz",
        lambda path: np.savez_compressed(path, **{"hidden_1.kernel": np.zeros((63, 80_000), np.float32)}),
    ),
    "an export that runs code": (
        "5-models",
        "model.keras",
        lambda path: hostile_keras(path, path.parent.parent.parent.parent / "ran"),
    ),
    "another network's description": (
        "5-models",
        "architecture.json",
        lambda path: change(path, lambda data: data.replace(b"tanh", b"relu")),
    ),
    "answers that are cut": ("6-evaluations", "predictions.npz", lambda path: os.truncate(path, 50)),
    "a description that is cut": ("5-models", "weights.npz", lambda path: os.truncate(path.parent / ENTRY, 300)),
    "a description with a key more": (
        "2-splits",
        "train.parquet",
        lambda path: change(path.parent / ENTRY, lambda data: data.replace(b"{", b'{"more": 1,', 1)),
    ),
    "a description of a gigabyte": ("5-models", "weights.npz", lambda path: os.truncate(path.parent / ENTRY, 1 << 30)),
    "a description that leads outside": (
        "2-splits",
        "train.parquet",
        lambda path: change(path.parent / ENTRY, lambda data: data.replace(b'"train.parquet"', b'"../../../x"')),
    ),
    "a description nested without end": (
        "6-evaluations",
        "predictions.npz",
        lambda path: (path.parent / ENTRY).write_bytes(b'{"a":' * 50_000),
    ),
    "a file more": ("5-models", "weights.npz", lambda path: (path.parent / "conftest.py").write_text("1/0")),
    "a link to elsewhere": (
        "5-models",
        "weights.npz",
        lambda path: (
            shutil.move(path, path.parent.parent.parent / "w"),
            path.symlink_to(path.parent.parent.parent / "w"),
        ),
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_tampered_with_is_noticed_reported_and_made_again(
    first: Path, copy: Store, caplog: pytest.LogCaptureFixture, what: str
):
    part, name, tamper = TAMPERED[what]
    tamper(file(copy, part, name))
    assert verify(copy).damage
    outcome = run_without_prefect(copy, dataset_file=str(first / "tiny.toml"))
    assert (outcome["state"], outcome["champion"]) == ("unchanged", 1)
    again = {name: step["reason"] for name, step in outcome["steps"].items() if not step["reused"]}
    assert list(again) == [STEPS[part]]
    assert again[STEPS[part]].startswith("damaged: ")
    assert len(again[STEPS[part]]) < 1_000
    assert "making it again" in caplog.text
    assert not verify(copy).damage
    assert not (copy.root / "ran").exists()
    assert file(copy, part, name).read_bytes() == file(Store(first / "store"), part, name).read_bytes()


def test_train_and_test_exchanged_are_both_decoded_again(first: Path, copy: Store):
    exchanged(file(copy, "2-splits", "train.parquet"), file(copy, "2-splits", "test.parquet"))
    outcome = run_with_prefect(first / "tiny.toml", copy.root)
    assert {name for name, step in outcome["steps"].items() if not step["reused"]} == {"decode train", "decode test"}
    assert outcome["state"] == "unchanged"


SEALED: dict[str, tuple[str, str, Callable[[Path], object], str]] = {
    "labels as text": (
        "2-splits",
        "train.parquet",
        lambda path: change(path, lambda data: data.replace(b"label", b"babel")),
        "expected the",
    ),
    "statistics that are not finite": (
        "4-normalization",
        "normalization.npz",
        lambda path: scaling.write(path, scaling.Statistics(np.full(63, np.nan), 1.0)),
        "expected finite means",
    ),
    "a negative standard deviation": (
        "4-normalization",
        "normalization.npz",
        lambda path: scaling.write(path, scaling.Statistics(np.zeros(63), -1.0)),
        "standard deviation above 0",
    ),
}


@pytest.mark.parametrize("what", SEALED)
def test_what_was_sealed_again_is_refused_by_every_reader(first: Path, copy: Store, what: str):
    part, name, tamper, message = SEALED[what]
    path = file(copy, part, name)
    tamper(path)
    reseal(path.parent)
    outcome = run_without_prefect(copy, dataset_file=str(first / "tiny.toml"), learning_rate=0.2)
    assert (outcome["state"], outcome["error"]["kind"], outcome["error"]["exit_code"]) == ("failed", "DamagedEntry", 1)
    assert message in outcome["sentence"]
    assert Registry(copy, "tiny").champion().number == 1


def test_a_model_of_another_architecture_or_weights_never_answers(copy: Store):
    folder = file(copy, "5-models", "weights.npz").parent
    good = load(folder, TrainedModel)
    images = np.zeros((1, 9, 7), np.uint8)
    assert predict(good, images).shape == (1, 3)
    values = read_json(good.architecture)
    for changed in ({"hidden": [9]}, {"hidden": []}, {"classes": 4}, {"inputs": 62}, {"activation": "eval"}):
        good.architecture.write_bytes(sealed(values | changed))
        reseal(folder)
        with pytest.raises(DamagedEntry, match="expected"):
            predict(load(folder, TrainedModel), images)
    good.architecture.write_bytes(sealed(values))
    shapes = {name: (np.float32, array.shape) for name, array in np.load(good.weights).items()}
    weights = {name: array + 1 for name, array in arrays.read(good.weights, shapes).items()}
    arrays.write(good.weights, weights)
    reseal(folder)
    with pytest.raises(DamagedEntry, match="expected the weights"):
        predict(load(folder, TrainedModel), images)


def test_too_little_memory_while_training_fails_the_run_in_a_sentence(
    first: Path, copy: Store, monkeypatch: pytest.MonkeyPatch
):
    def out_of_memory(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(fitting.Fitting, "epoch", out_of_memory)
    outcome = run_with_prefect(first / "tiny.toml", copy.root, seed=3)
    assert outcome["error"]["exit_code"] == 1
    assert "expected memory" in outcome["sentence"]
    assert outcome["champion"] is None
    assert Registry(copy, "tiny").champion().number == 1


def test_no_result_that_prefect_keeps_is_a_pickle_or_is_believed(first: Path, copy: Store, results: Path):
    """It keeps none on disk as it is set up; whatever there is, now or later, must not be run."""
    for path in [path for path in results.rglob("*") if path.is_file()]:
        assert json.loads(path.read_bytes())["metadata"]["serializer"]["type"] == "json"
        cached = json.loads(path.read_bytes())
        cached["metadata"]["serializer"]["type"] = "pickle"
        cached["result"] = base64.b64encode(pickle.dumps(Marker(copy.root / "ran"))).decode()
        path.write_text(json.dumps(cached))
    outcome = run_with_prefect(first / "tiny.toml", copy.root)
    assert outcome["state"] == "unchanged"
    assert not (copy.root / "ran").exists()
