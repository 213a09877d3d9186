"""The network: made from a few numbers, kept as plain arrays, exported whole."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.errors import DamagedEntry
from tasks.model import forward, network
from tasks.model.network import Architecture
from tasks.model.scaling import Statistics, apply

SMALL = Architecture(63, (8, 5), "relu", 3)
DEEP = Architecture(63, (6,), "relu", 3, (4, 5), (9, 7), True)


def weights_of(architecture: Architecture) -> dict[str, np.ndarray]:
    """Weights as after a training: normalizations that change what they get."""
    weights, random = network.initial_weights(architecture, 4, "fit"), np.random.default_rng(3)
    normal = {n: random.normal(1, 0.3, a.shape).astype(np.float32) for n, a in weights.items() if n.startswith("norm")}
    return weights | {n: np.abs(array) if n.endswith("variance") else array for n, array in normal.items()}


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        (Architecture(784, (50, 50), "tanh", 10), 42_310),
        (Architecture(4, (), "tanh", 3), 15),
        (SMALL, 575),
        # 9 × 7 → 4 × 3 → 2 × 1 of 5 channels; each normalization has a scale and a shift for a bias.
        (DEEP, (9 * 4 + 8) + (9 * 4 * 5 + 10) + (10 * 6 + 12) + (6 + 1) * 3),
    ],
)
def test_weights_have_the_shapes_and_number_that_the_architecture_says(architecture: Architecture, parameters: int):
    weights = network.initial_weights(architecture, 1)
    assert {name: array.shape for name, array in weights.items()} == architecture.shapes
    assert list(weights) == list(architecture.shapes)
    assert sum(weights[name].size for name in architecture.trained_shapes) == architecture.parameters == parameters


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


@pytest.mark.parametrize(
    ("kind", "theirs"), [("glorot", "glorot_uniform"), ("he", "he_uniform"), ("lecun", "lecun_uniform")]
)
def test_initial_weights_are_spread_as_those_of_keras(kind: str, theirs: str):
    network.tensorflow()
    import keras

    architecture = Architecture(64, (500,), "relu", 200, (20, 40), (8, 8))
    weights = network.initial_weights(architecture, 1, kind)
    for name in ("conv_2.kernel", "hidden_1.kernel", "classes.kernel"):
        other = getattr(keras.initializers, theirs.title().replace("_", ""))(seed=1)(weights[name].shape).numpy()
        assert weights[name].std() == pytest.approx(other.std(), rel=0.02)
        assert np.abs(weights[name]).max() == pytest.approx(np.abs(other).max(), rel=0.01)


@pytest.mark.parametrize(
    ("activation", "kind"),
    [("tanh", "glorot"), ("sigmoid", "glorot"), ("relu", "he"), ("gelu", "he"), ("selu", "lecun")],
)
def test_initial_weights_fit_the_activation_and_the_classes_have_none(activation: str, kind: str):
    architecture = Architecture(20, (9, 5), activation, 4)
    fitting, those = (network.initial_weights(architecture, 1, name) for name in ("fit", kind))
    for name in ("hidden_1.kernel", "hidden_2.kernel"):
        np.testing.assert_array_equal(fitting[name], those[name])
    np.testing.assert_array_equal(fitting["classes.kernel"], network.initial_weights(architecture, 1)["classes.kernel"])


def test_keras_has_the_arrays_in_the_order_of_their_names():
    model = network.build(DEEP, network.initial_weights(DEEP, 1), dropout=0.2)
    variables = [*model.trainable_weights, *model.non_trainable_weights]
    assert [variable.path.removeprefix("idxflow/").replace("/", ".") for variable in variables] == list(DEEP.shapes)
    assert [tuple(variable.shape) for variable in variables] == list(DEEP.shapes.values())
    assert len(network.random_states(model)) == 2


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


@pytest.mark.parametrize("activation", network.ACTIVATIONS)
@pytest.mark.parametrize(
    "architecture",
    [
        DEEP,
        replace(DEEP, batch_norm=False),
        replace(DEEP, hidden=(), conv=(3,)),
        Architecture(20, (9, 5), "tanh", 4, batch_norm=True),
    ],
    ids=["both", "convolutions", "no hidden layer", "normalized"],
)
def test_numpy_gives_what_keras_gives_for_convolutions_and_normalization(architecture: Architecture, activation: str):
    architecture = replace(architecture, activation=activation)
    weights = weights_of(architecture)
    rows = np.random.default_rng(0).normal(scale=2, size=(300, architecture.inputs)).astype(np.float32)
    logits = forward.logits(architecture, weights, rows)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, network.build(architecture, weights)(rows).numpy(), rtol=2e-5, atol=5e-5)


def test_numpy_takes_convolutions_in_blocks_that_fit_in_memory(monkeypatch: pytest.MonkeyPatch):
    rows = np.random.default_rng(0).normal(size=(50, 63)).astype(np.float32)
    whole = forward.logits(DEEP, weights_of(DEEP), rows)
    sizes: list[int] = []
    convolved = forward.convolved
    monkeypatch.setattr(forward, "convolved", lambda x, kernel: sizes.append(len(x)) or convolved(x, kernel))
    monkeypatch.setattr(forward, "_BLOCK_BYTES", 7 * 9 * 63 * 4)
    np.testing.assert_allclose(forward.logits(DEEP, weights_of(DEEP), rows), whole, rtol=1e-5, atol=1e-5)
    assert (max(sizes), sum(sizes)) == (7, 2 * len(rows))


def test_networks_of_dense_layers_are_described_as_before_and_others_by_what_they_have(tmp_path: Path):
    path = tmp_path / "architecture.json"
    network.save_architecture(path, SMALL)
    assert {name: v for name, v in json.loads(path.read_text()).items() if name != "sha256"} == GOOD
    network.save_architecture(path, DEEP)
    assert network.load_architecture(path) == DEEP


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
        json.dumps(GOOD | {"conv": [4]}),
        json.dumps(GOOD | {"conv": [4], "image_shape": [9, 8]}),
        json.dumps(GOOD | {"conv": [4, 4, 4], "image_shape": [9, 7]}),
        json.dumps(GOOD | {"conv": [True], "image_shape": [9, 7]}),
        json.dumps(GOOD | {"conv": [4], "image_shape": [63]}),
        json.dumps(GOOD | {"image_shape": [9, 7]}),
        json.dumps(GOOD | {"batch_norm": 1}),
    ],
)
def test_a_description_of_no_such_network_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "architecture.json"
    path.write_text(text)
    with pytest.raises(DamagedEntry, match=r"architecture\.json: expected"):
        network.load_architecture(path)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("architecture", [SMALL, DEEP], ids=["dense", "deep"])
def test_the_export_takes_raw_pixels_and_is_the_same_bytes_each_time(tmp_path: Path, architecture: Architecture):
    weights = weights_of(architecture)
    statistics = Statistics(np.linspace(-1, 1, 63), 0.6)
    for name in ("a.keras", "b.keras"):
        network.export(tmp_path / name, architecture, weights, statistics, (9, 7))
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()

    import keras

    images = np.random.default_rng(0).integers(0, 256, (20, 9, 7), dtype=np.uint8)
    theirs = keras.saving.load_model(tmp_path / "a.keras").predict(images, verbose=0)
    ours = keras.ops.softmax(network.build(architecture, weights)(apply(images, statistics))).numpy()
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
