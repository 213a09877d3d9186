"""Using a model: it answers as it was judged, only when whole, and says what it cannot take."""

from __future__ import annotations

import dataclasses
import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.errors import ConfigError, DamagedEntry
from storage.formats import arrays, idx
from storage.store import Store, store_address
from tasks.serving import image_files
from tasks.serving.classify_files import PredictOptions, classify
from tasks.serving.export import export
from tasks.serving.predict import find_version, load_champion, look_inverted
from tasks.sources import embedded
from tests.conftest import TinyFactory, write_tiny
from tests.support.blobs import SHAPE, blobs, blobs_dataset, registered


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return blobs_dataset(tmp_path)


def test_a_model_answers_as_it_was_judged(store: Store, dataset: Dataset):
    version = registered(store, dataset)
    judged = arrays.read(
        store.entries("tiny", "evaluate") / version.evaluation / "predictions.npz",
        {"predicted": (np.uint8, (30,)), "probability": (np.float32, (30, 3))},
    )
    images = blobs()["test-images"]
    predictions = load_champion("tiny", store.root).predict(images)
    np.testing.assert_array_equal(predictions.label, judged["predicted"])
    np.testing.assert_array_equal(predictions.probabilities, judged["probability"])
    np.testing.assert_array_equal(predictions.probability, judged["probability"].max(axis=1))
    assert predictions.name == tuple(f"bar {n}" for n in judged["predicted"])
    assert (predictions.label.dtype, predictions.probability.dtype, predictions.version, len(predictions)) == (
        np.uint8,
        np.float32,
        1,
        30,
    )
    assert (predictions.label == blobs()["test-labels"]).mean() > 0.9
    single = load_champion("tiny", store).predict(images[3])
    assert (single.label.shape, single.probabilities.shape) == ((1,), (1, 3))
    assert single.label[0] == predictions.label[3]


def test_two_lines_are_enough_with_the_store_in_the_environment(store: Store, dataset: Dataset, monkeypatch):
    registered(store, dataset)
    monkeypatch.setenv("IDXFLOW_STORE", str(store.root))
    assert load_champion("tiny").predict(np.zeros(SHAPE, np.uint8)).version == 1


def test_the_store_is_where_it_was_asked_for(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("IDXFLOW_STORE", raising=False)
    assert store_address() == str(Path(__file__).resolve().parents[2] / "store")
    monkeypatch.setenv("IDXFLOW_STORE", str(tmp_path / "a"))
    assert store_address("") == store_address(None) == str(tmp_path / "a")
    assert store_address(tmp_path / "b") == str(tmp_path / "b")


@pytest.mark.remedies("tasks.serving.predict:find_version:2")
def test_any_version_can_be_asked(store: Store, dataset: Dataset):
    first, second = registered(store, dataset), registered(store, dataset, promote=False, seed=2)
    assert load_champion("tiny", store).version == first
    for name in (2, "2", "v2", second):
        assert load_champion("tiny", store, name).version == second
    with pytest.raises(ConfigError, match="expected a version of tiny; found v3; give one of v1 to v2"):
        load_champion("tiny", store, 3)
    assert load_champion("tiny", store, 2).version == second
    for wrong in ("newest", "-1", "1.0", "²"):
        with pytest.raises(ConfigError, match="expected a version as `champion` or a number"):
            load_champion("tiny", store, wrong)


def test_without_a_champion_it_is_said_what_to_run(store: Store, dataset: Dataset):
    with pytest.raises(ConfigError, match="none yet; run `idxflow run --dataset-file FILE --store .*` first"):
        load_champion("tiny", store)
    registered(store, dataset, promote=False)
    with pytest.raises(ConfigError, match="expected a champion of tiny"):
        load_champion("tiny", store)
    for name in ("", "../tiny", "a/b", "."):
        with pytest.raises(ConfigError):
            find_version(store, name)


@pytest.mark.parametrize("file", ["weights.npz", "architecture.json", "normalization.npz", "model.keras"])
def test_a_damaged_file_is_never_used(store: Store, dataset: Dataset, file: str):
    version = registered(store, dataset, epochs=1)
    path = store.entries("tiny", "train") / version.model / file
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    with pytest.raises(DamagedEntry, match=f"v1 of tiny is damaged: .*{file}"):
        load_champion("tiny", store)


@pytest.mark.parametrize(
    "change",
    [{"weights_digest": "0" * 64}, {"image_shape": (8, 9)}, {"classes": ("a", "b")}],
    ids=["weights", "size", "classes"],
)
def test_a_version_that_is_not_about_its_model_is_refused(store: Store, dataset: Dataset, change: dict):
    version = dataclasses.replace(registered(store, dataset, epochs=1), **change)
    with pytest.raises(DamagedEntry, match="v1 of tiny: expected weights"):
        load_champion("tiny", store, version)


def test_only_images_as_trained_on_are_taken(store: Store, dataset: Dataset):
    registered(store, dataset, epochs=1)
    model = load_champion("tiny", store)
    for wrong in (
        np.zeros((2, 8, 10), np.uint8),
        np.zeros((2, 80), np.uint8),
        np.zeros(SHAPE, np.float32),
        np.zeros((1, *SHAPE, 1), np.uint8),
    ):
        with pytest.raises(ConfigError, match=r"expected images as uint8 of shape \(n, 10, 8\)"):
            model.predict(wrong)
    assert len(model.predict(np.empty((0, *SHAPE), np.uint8))) == 0


def test_inverted_images_are_noticed_and_others_are_not(store: Store, dataset: Dataset):
    registered(store, dataset, epochs=1, held_out="tail")
    model, images = load_champion("tiny", store), blobs()["test-images"]
    np.testing.assert_allclose(model.mean_image, blobs()["train-images"][: model.record.fitted_rows].mean(axis=0))
    assert not model.looks_inverted(images).any()
    assert model.looks_inverted(255 - images).all()
    assert not model.looks_inverted(np.full((2, *SHAPE), 255, np.uint8)).any()


def test_where_the_mean_image_is_mid_grey_nothing_is_said(store: Store, tiny: TinyFactory):
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (120, *SHAPE), dtype=np.uint8)
    registered(store, tiny(shape=SHAPE, arrays=blobs() | {"train-images": noise}), epochs=1)
    model = load_champion("tiny", store)
    assert not model.looks_inverted(np.concatenate([blobs()["test-images"], 255 - blobs()["test-images"]])).any()


@pytest.mark.parametrize(("low", "high"), [(0, 16), (0, 255), (70, 80)])
def test_inverted_images_are_noticed_whatever_the_range_is(store: Store, tmp_path: Path, low: int, high: int):
    """And `--invert`, `--scale`, the warning of other pixels and an export go by that range."""
    arrays_by_role = {role: _ranged(array, low, high) if "images" in role else array for role, array in blobs().items()}
    dataset = write_tiny(tmp_path, shape=SHAPE, arrays=arrays_by_role)
    registered(store, dataset, epochs=1)
    model, images = load_champion("tiny", store), arrays_by_role["test-images"]
    assert model.record.pixel_range == (low, high)
    assert model.pixel_range == (low, high)
    assert not model.looks_inverted(images).any()
    assert model.looks_inverted((low + high - images.astype(int)).astype(np.uint8)).all()
    np.save(tmp_path / "x.npy", images)
    options, messages = image_files.ImageOptions(SHAPE, model.pixel_range, invert=True), []
    (turned,) = image_files.read(tmp_path / "x.npy", options, messages.append)
    np.testing.assert_array_equal(turned, low + high - images.astype(int))
    np.save(tmp_path / "full.npy", _ranged(blobs()["test-images"], 0, 255))
    options = image_files.ImageOptions(SHAPE, model.pixel_range, scale=True)
    (scaled,) = image_files.read(tmp_path / "full.npy", options, messages.append)
    np.testing.assert_allclose(scaled, images, atol=1)
    assert messages == []
    list(image_files.read(tmp_path / "full.npy", image_files.ImageOptions(SHAPE, model.pixel_range), messages.append))
    assert len(messages) == ((low, high) != (0, 255))
    assert all(f"from {low} to {high}: its" in remark and "--scale" in remark for remark in messages)
    for scale in (False, True):
        options = PredictOptions("tiny", (tmp_path / "full.npy",), scale=scale, store=str(store.root))
        remarks: list[str] = []
        assert classify(options, remarks.append).remarks == remarks
        assert any("--scale" in remark for remark in remarks) == (bool(messages) and not scale)
    exported = export(model, "onnx", tmp_path / "export")
    assert json.loads((exported.folder / "model.json").read_text())["input"]["range"] == [low, high]


def test_all_inverted_test_images_of_real_data_are_noticed_and_none_as_they_are(mnist_dir: Path):
    """The numbers of the README."""
    mnist = {role: idx.read(mnist_dir / file) for role, file in catalog.DEFAULT_FILES.items() if "images" in role}
    for arrays_by_role, white, rows in ((embedded.digits(), 16, 360), (mnist, 255, 10_000)):
        mean, images = arrays_by_role["train-images"].mean(axis=0), arrays_by_role["test-images"]
        assert look_inverted(white - images, mean, (0, white)).sum() == rows == len(images)
        assert look_inverted(images, mean, (0, white)).sum() == 0


def test_a_model_of_an_earlier_version_has_the_usual_range(store: Store, dataset: Dataset):
    registered(store, dataset, epochs=1)
    model = load_champion("tiny", store)
    model.record = dataclasses.replace(model.record, pixel_range=None)
    assert model.pixel_range == (0, 255)


def _ranged(images: np.ndarray, low: int, high: int) -> np.ndarray:
    images = images.copy()
    # Of every range, both ends are there.
    images[0, 0, :2] = 0, 255
    return np.rint(low + images * ((high - low) / 255)).astype(np.uint8)


def test_the_earlier_place_still_works_and_names_the_new_one():
    sys.modules.pop("tasks.predict", None)
    with pytest.warns(DeprecationWarning, match=r"import load_champion from tasks\.serving\.predict"):
        earlier = import_module("tasks.predict")
    assert earlier.load_champion is load_champion
