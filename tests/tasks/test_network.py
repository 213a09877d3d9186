"""The network: made from a few numbers, kept as plain arrays, exported whole."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from storage.errors import DamagedEntry
from tasks.model import forward, network
from tasks.model.network import Architecture
from tasks.model.scaling import Statistics, apply

SMALL = Architecture(63, (8, 5), "relu", 3)


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        (Architecture(784, (50, 50), "tanh", 10), 42_310),
        (Architecture(4, (), "tanh", 3), 15),
        (SMALL, 575),
    ],
)
def test_weights_have_the_shapes_and_number_that_the_architecture_says(architecture: Architecture, parameters: int):
    weights = network.initial_weights(architecture, 1)
    assert {name: array.shape for name, array in weights.items()} == architecture.shapes
    assert sum(array.size for array in weights.values()) == architecture.parameters == parameters


def test_initial_weights_are_glorot_uniform_and_follow_the_seed():
    architecture = Architecture(400, (400, 400), "tanh", 10)
    weights = network.initial_weights(architecture, 1)
    limit = np.sqrt(6 / 800)
    kernel = weights["hidden_1.kernel"]
    assert kernel.min() == pytest.approx(-limit, rel=1e-3)
    assert kernel.max() == pytest.approx(limit, rel=1e-3)
    assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.01)
    assert not weights["hidden_1.bias"].any()
    assert abs(np.corrcoef(kernel.ravel(), weights["hidden_2.kernel"].ravel())[0, 1]) < 0.02
    assert network.weights_digest(network.initial_weights(architecture, 1)) == network.weights_digest(weights)
    assert network.weights_digest(network.initial_weights(architecture, 2)) != network.weights_digest(weights)


@pytest.mark.parametrize("activation", network.ACTIVATIONS)
def test_what_is_saved_is_the_same_network_again(tmp_path: Path, activation: str):
    architecture = Architecture(6, (5,), activation, 3)
    weights = network.initial_weights(architecture, 4)
    rows = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    expected = network.build(architecture, weights)(rows).numpy()
    network.save_weights(tmp_path / "weights.npz", weights)
    network.save_architecture(tmp_path / "architecture.json", architecture)
    loaded_architecture = network.load_architecture(tmp_path / "architecture.json")
    assert loaded_architecture == architecture
    loaded = network.load_weights(tmp_path / "weights.npz", loaded_architecture)
    assert network.weights_digest(loaded) == network.weights_digest(weights)
    np.testing.assert_array_equal(network.build(loaded_architecture, loaded)(rows).numpy(), expected)


@pytest.mark.parametrize("activation", network.ACTIVATIONS)
def test_numpy_gives_what_keras_gives(activation: str):
    architecture = Architecture(20, (9, 5), activation, 4)
    weights = {name: array * 3 for name, array in network.initial_weights(architecture, 4).items()}
    rows = np.random.default_rng(0).normal(scale=3, size=(500, 20)).astype(np.float32)
    logits = forward.logits(architecture, weights, rows)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, network.build(architecture, weights)(rows).numpy(), rtol=2e-5, atol=2e-5)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    weights = network.initial_weights(SMALL, 1)
    weights["hidden_2.bias"][1] = np.nan
    network.save_weights(tmp_path / "weights.npz", weights)
    with pytest.raises(DamagedEntry, match=r"finite weights; hidden_2\.bias has others"):
        network.load_weights(tmp_path / "weights.npz", SMALL)


def test_weights_of_another_architecture_are_refused(tmp_path: Path):
    network.save_weights(tmp_path / "weights.npz", network.initial_weights(SMALL, 1))
    with pytest.raises(DamagedEntry, match="expected the arrays"):
        network.load_weights(tmp_path / "weights.npz", Architecture(63, (8,), "relu", 3))
    with pytest.raises(DamagedEntry, match=r"shape \(63, 9\); found float32 and shape \(63, 8\)"):
        network.load_weights(tmp_path / "weights.npz", Architecture(63, (9, 5), "relu", 3))


GOOD = {"inputs": 63, "hidden": [8, 5], "activation": "relu", "classes": 3}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        json.dumps(GOOD | {"layers": 3}),
        json.dumps(GOOD | {"hidden": 5}),
        json.dumps(GOOD | {"hidden": [0]}),
        json.dumps(GOOD | {"inputs": True}),
        json.dumps(GOOD | {"classes": 1 << 40}),
        json.dumps(GOOD | {"activation": "lambda"}),
        json.dumps({"inputs": 63}),
    ],
)
def test_a_description_of_no_such_network_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "architecture.json"
    path.write_text(text)
    with pytest.raises(DamagedEntry, match=r"architecture\.json: expected"):
        network.load_architecture(path)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_export_takes_raw_pixels_and_is_the_same_bytes_each_time(tmp_path: Path):
    weights = network.initial_weights(SMALL, 1)
    statistics = Statistics(np.linspace(-1, 1, 63), 0.6)
    for name in ("a.keras", "b.keras"):
        network.export(tmp_path / name, SMALL, weights, statistics, (9, 7))
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()

    import keras

    images = np.random.default_rng(0).integers(0, 256, (20, 9, 7), dtype=np.uint8)
    theirs = keras.saving.load_model(tmp_path / "a.keras").predict(images, verbose=0)
    ours = keras.ops.softmax(network.build(SMALL, weights)(apply(images, statistics))).numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-6)


def test_what_an_export_has_per_pixel_are_arrays_and_the_very_normalization(tmp_path: Path):
    shape = (512, 512)
    large = Architecture(512 * 512, (), "tanh", 2)
    statistics = Statistics(np.random.default_rng(0).uniform(-1, 1, large.inputs), 0.0472)
    path = tmp_path / "large.keras"
    network.export(path, large, network.initial_weights(large, 1), statistics, shape)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("config.json").file_size < 10_000
    # A scale, an offset and two weights for each pixel.
    assert path.stat().st_size < 1.1 * 4 * 4 * large.inputs

    import keras

    images = np.random.default_rng(1).integers(0, 256, (3, *shape), dtype=np.uint8)
    normalize = keras.saving.load_model(path).get_layer("normalize")
    assert not normalize.trainable
    assert np.array_equal(normalize(images.reshape(3, -1).astype(np.float32)), apply(images, statistics))


def test_loading_tensorflow_is_quiet_but_hides_no_other_message():
    code = """
import os
from tasks.model import network
from tasks.ui.banners import without_banners
with without_banners():
    os.write(2, b"I0000 chat\\nF0000 a fatal message\\n")
network.tensorflow().constant(1.0)
"""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert process.stderr == "F0000 a fatal message\n"
    assert process.stdout == ""
