"""Exports: they answer as the model does when used without idxflow, or they are not there."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tomllib
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter

from storage.errors import ConfigError, DamagedEntry, ExportFailed
from storage.files import sha256_of
from storage.store import Store
from tasks.model import forward, network, scaling
from tasks.model.classifier import softmax
from tasks.model.scaling import Statistics
from tasks.serving import export as exports
from tasks.serving import litert, onnx_graph
from tasks.serving.export import CHECKED_ROWS, PACKAGES, TOLERANCE, export, export_version, probe_images
from tasks.serving.predict import Model, load_champion
from tests.support.blobs import SHAPE, blobs, blobs_dataset, store_with_champion
from tests.support.commands import idxflow
from tests.support.namespaces import forked_in_namespace, mount_point
from tests.support.runs import whole_run
from tests.support.servers import clean_environment

ROOT = Path(__file__).resolve().parents[2]
IMAGES = blobs()["test-images"]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a champion of `tiny`, only read by these tests."""
    return store_with_champion(tmp_path_factory.mktemp("ready")).root


@pytest.fixture(scope="module")
def model(ready: Path) -> Model:
    return load_champion("tiny", ready)


def used_with_keras(folder: Path, images: np.ndarray) -> np.ndarray:
    network.tensorflow()
    import keras

    return keras.saving.load_model(folder / "model.keras").predict(images, verbose=0)


def used_with_tensorflow(folder: Path, images: np.ndarray) -> np.ndarray:
    tf = network.tensorflow()
    loaded = tf.saved_model.load(folder)
    (answer,) = loaded.signatures["serving_default"](pixels=tf.constant(images, tf.float32)).values()
    return answer.numpy()


def used_with_onnxruntime(folder: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (answer,) = session.run(["probabilities"], {"pixels": images.astype(np.float32)})
    return answer


def used_with_litert(folder: Path, images: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(str(folder / "model.tflite"))
    (pixels,), (probabilities,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (pixels["name"], probabilities["name"]) == ("pixels", "probabilities")
    interpreter.resize_tensor_input(pixels["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(pixels["index"], images.astype(np.float32))
    interpreter.invoke()
    return interpreter.get_tensor(probabilities["index"])


KINDS = {
    "keras": used_with_keras,
    "savedmodel": used_with_tensorflow,
    "onnx": used_with_onnxruntime,
    "litert": used_with_litert,
}


@pytest.mark.parametrize(("kind", "use"), KINDS.items())
def test_an_export_takes_raw_pixels_and_answers_as_the_model(model: Model, tmp_path: Path, kind: str, use):
    folder = tmp_path / "new" / "export"
    result = export(model, kind, folder)
    for images in (IMAGES, IMAGES[:1]):
        np.testing.assert_allclose(use(folder, images), model.predict(images).probabilities, atol=TOLERANCE)
    assert (result.folder, result.version, result.rows) == (folder, 1, CHECKED_ROWS)
    assert 0 <= result.difference <= TOLERANCE
    described = json.loads((folder / "model.json").read_text())
    assert described["classes"] == ["bar 0", "bar 1", "bar 2"]
    assert described["input"]["shape"] == [None, *SHAPE]
    assert described["input"]["range"] == [0, 255]
    assert described["checked"] == {"images": CHECKED_ROWS, "largest_difference": result.difference}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"model.json", "README.md", *described["files"]}
    assert all(sha256_of(folder / name) == digest for name, digest in described["files"].items())
    assert [path.name for path in folder.parent.iterdir()] == ["export"]
    assert folder.stat().st_mode & 0o777 == 0o755


# A SavedModel has a random number in its fingerprint.
@pytest.mark.parametrize("kind", ["keras", "onnx", "litert"])
def test_equal_models_give_equal_files(model: Model, tmp_path: Path, kind: str):
    first, second = (export(model, kind, tmp_path / name).folder for name in ("first", "second"))
    assert all((second / path.name).read_bytes() == path.read_bytes() for path in first.iterdir())


def test_litert_computes_every_activation_as_keras_does(tmp_path: Path):
    network.tensorflow()
    import keras

    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, activation) for activation in network.ACTIVATIONS]
    scaled = [keras.Input(SHAPE, name="pixels"), keras.layers.Rescaling(2 / 255, -1), keras.layers.Flatten()]
    chained = keras.Sequential([*scaled, *layers, keras.layers.Dense(3, "softmax")])
    exports.save(chained, tmp_path / "saved")
    litert.write(tmp_path / "model.tflite", tmp_path / "saved")
    answer = used_with_litert(tmp_path, IMAGES)
    assert np.ptp(answer, axis=0).max() > 1000 * TOLERANCE
    np.testing.assert_allclose(answer, chained.predict(IMAGES, verbose=0), atol=TOLERANCE)


@pytest.mark.remedies("tasks.serving.litert:write")
def test_a_network_that_litert_cannot_compute_is_refused(model: Model, tmp_path: Path):
    network.tensorflow()
    import keras

    pixels = keras.Input(SHAPE, name="pixels")
    unusual = keras.Model(pixels, keras.ops.erfinv(keras.layers.Flatten()(pixels)))
    exports.save(unusual, tmp_path / "saved")
    with pytest.raises(ExportFailed, match=r"operators that LiteRT has; found Erfinv; choose another --format"):
        litert.write(tmp_path / "model.tflite", tmp_path / "saved")
    assert export(model, "savedmodel", tmp_path / "export").difference <= TOLERANCE


@pytest.mark.parametrize(
    ("hidden", "more"), [((), {}), ((5,), {}), ((6, 4, 3), {}), ((5,), {"conv": (4,), "batch_norm": True})]
)
@pytest.mark.parametrize("activation", network.ACTIVATIONS)
def test_onnx_of_every_network_gives_its_probabilities_in_the_usual_runtime(
    tmp_path: Path, activation: str, hidden: tuple[int, ...], more: dict
):
    more = more | {"image_shape": SHAPE} if more else more
    architecture = network.Architecture(SHAPE[0] * SHAPE[1], hidden, activation, 3, **more)
    random = np.random.default_rng(0)
    # Such that values are on both sides of 0, where activations differ.
    weights = {
        name: random.normal(0, 2 / (math.prod(shape[:-1]) if shape[1:] else shape[0]) ** 0.5, shape).astype(np.float32)
        for name, shape in architecture.shapes.items()
    }
    weights |= {n: np.abs(array) + 0.5 for n, array in weights.items() if n.endswith("variance")}
    statistics = Statistics(IMAGES.reshape(len(IMAGES), -1).mean(axis=0) / 127.5 - 1, 0.3)
    onnx_graph.write(tmp_path / "model.onnx", architecture, weights, statistics, SHAPE)
    expected = softmax(forward.logits(architecture, weights, scaling.apply(IMAGES, statistics)))
    assert np.ptp(expected, axis=0).max() > 0.01
    np.testing.assert_allclose(used_with_onnxruntime(tmp_path, IMAGES), expected, atol=TOLERANCE)
    np.testing.assert_allclose(onnx_graph.run(tmp_path / "model.onnx", IMAGES.astype("f4")), expected, atol=TOLERANCE)
    again = tmp_path / "again.onnx"
    onnx_graph.write(again, architecture, weights, statistics, SHAPE)
    assert again.read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_the_rows_that_are_compared_reach_every_class_and_are_always_the_same(model: Model):
    rows = probe_images(model)
    assert (rows.dtype, rows.shape) == (np.uint8, (CHECKED_ROWS, *SHAPE))
    np.testing.assert_array_equal(rows, probe_images(model))
    assert rows[0].max() == 0
    assert rows[1].min() == 255
    assert len(np.unique(rows[2:], axis=0)) == CHECKED_ROWS - 2
    assert len(set(model.predict(rows).label)) > 1


def test_a_network_of_all_kinds_of_layers_is_trained_judged_confirmed_and_exported_in_each_format(tmp_path: Path):
    blobs_dataset(tmp_path)
    store, layers = (
        Store(tmp_path / "store"),
        {"conv": [3, 4], "batch_norm": True, "dropout": 0.1, "activation": "relu"},
    )
    run = whole_run(store, tmp_path / "tiny.toml", **layers, epochs=30).record
    assert run.decision.outcome == "promoted"
    assert run.confirmation.difference <= 1e-6
    assert run.evaluation.accuracy > 0.9
    report = json.loads((store.entries("tiny", "publish") / run.id / "report.json").read_text())
    assert report["training"]["architecture"] == "conv 3, conv 4, dense 8; relu; batch normalization; dropout 0.1"
    assert report["training"]["parameters"] == (9 * 3 + 6) + (9 * 3 * 4 + 8) + (2 * 2 * 4 * 8 + 16) + (8 + 1) * 3
    for kind, use in KINDS.items():
        export(load_champion("tiny", store), kind, tmp_path / kind)
        answers = load_champion("tiny", store).predict(IMAGES).probabilities
        np.testing.assert_allclose(use(tmp_path / kind, IMAGES), answers, atol=TOLERANCE)
    exported = (tmp_path / "keras" / "model.keras").read_bytes()
    assert exported == run.model.export.read_bytes()


@pytest.mark.remedies("tasks.serving.export:_difference")
@pytest.mark.parametrize("wrong", [lambda p: p + 2e-5, lambda p: p * np.nan, lambda p: p[:, :2]])
def test_an_export_that_answers_differently_is_not_there(model: Model, tmp_path: Path, monkeypatch, wrong):
    def writer(model: Model, folder: Path):
        right = exports._keras(model, folder)
        return lambda pixels: wrong(right(pixels))

    monkeypatch.setitem(exports._WRITERS, "keras", writer)
    with pytest.raises(ExportFailed, match="nothing was written"):
        export(model, "keras", tmp_path / "export")
    assert list(tmp_path.iterdir()) == []
    # Another form is computed by another library.
    assert export(model, "onnx", tmp_path / "export").difference <= TOLERANCE


@pytest.mark.remedies("tasks.serving.export:reopened")
def test_a_keras_file_with_other_layers_is_not_loaded(model: Model, tmp_path: Path):
    network.tensorflow()
    import keras

    path = tmp_path / "model.keras"
    with network.without_copy_warning():
        keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x)]).save(path)
    with pytest.raises(DamagedEntry, match=r"expected a Keras model as idxflow writes it; .*Lambda"):
        exports.reopened(path)
    path.write_bytes(b"PK")
    with pytest.raises(DamagedEntry, match="expected a Keras model .*; export it again"):
        exports.reopened(path)
    exports.reopened(export(model, "keras", tmp_path / "again").folder / "model.keras")


def test_what_is_there_is_never_replaced(model: Model, tmp_path: Path):
    (tmp_path / "export").mkdir()
    with pytest.raises(ConfigError, match=r"expected a new name for --out; .*export already exists \(a"):
        export(model, "keras", tmp_path / "export")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"expected a folder that can be created at .*file/export"):
        export(model, "keras", tmp_path / "file" / "export")


FULL = """
import subprocess, sys
from pathlib import Path
from storage.errors import ConfigError
from tasks.serving.export import export
from tasks.serving.predict import load_champion

store, mount = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", mount], check=True)
for kind in ("savedmodel", "litert"):
    try:
        export(load_champion("tiny", store), kind, Path(mount, "export"))
    except ConfigError as error:
        print(error, *subprocess.run(["ls", "-A", mount], capture_output=True, text=True).stdout.split(), sep="\\n")
"""


def test_a_full_disk_is_said_where_tensorflow_writes_and_nothing_is_left_there(ready: Path, tmp_path: Path):
    mount = mount_point(tmp_path)
    process = forked_in_namespace(FULL, str(ready), str(mount))
    expected = f"expected to write the export at {mount}/export; No space left on device; free space there, or choose"
    assert process.stdout.splitlines() == [f"{expected} another --out"] * 2, process.stderr


def test_an_unknown_format_is_said(ready: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="one of keras, savedmodel, onnx, litert; found 'pickle'"):
        export_version(Store(ready), "tiny", "champion", "pickle", tmp_path / "x")


@pytest.mark.parametrize("found", ["", "0.9"])
@pytest.mark.parametrize("kind", PACKAGES)
def test_without_its_package_or_with_an_old_one_a_format_is_refused_with_what_to_install(
    ready: Path, tmp_path: Path, monkeypatch, kind: str, found: str
):
    def version(name: str) -> str:
        if not found:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ConfigError, match=rf"found {found or 'none'};.* -m pip install '{re.escape(PACKAGES[kind])}'"):
        export_version(Store(ready), "tiny", "champion", kind, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_the_extra_and_what_ci_installs_are_what_the_formats_need():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["optional-dependencies"]["export"] == list(PACKAGES.values())
    assert set(PACKAGES.values()) <= set(project["dependency-groups"]["export"])
    assert {"include-group": "export"} in project["dependency-groups"]["dev"]


def test_an_onnx_export_loads_no_tensorflow(ready: Path, tmp_path: Path):
    code = (
        "import sys; from flows.commands.export import export\n"
        f"assert export('tiny', format_='onnx', store={str(ready)!r}) == 0\n"
        "print(sorted({'tensorflow', 'keras', 'prefect'} & set(sys.modules)))\n"
    )
    environment = clean_environment(tmp_path, PYTHONPATH=str(ROOT))
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert process.stdout.splitlines()[-1] == "[]"
    assert sorted(path.name for path in (tmp_path / "tiny-v1-onnx").iterdir()) == [
        "README.md",
        "model.json",
        "model.onnx",
    ]


def test_as_a_user_types_it(ready: Path, tmp_path: Path):
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(ready))

    export_tiny = partial(idxflow, "export", "tiny", env=environment, cwd=tmp_path)
    first = export_tiny()
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(f"v1 as keras in {tmp_path / 'tiny-v1-keras'}: probabilities of 32 images within ")
    again = export_tiny("--json")
    assert (again.returncode, json.loads(again.stdout)["error"]["kind"]) == (2, "ConfigError")
    second = export_tiny("--version", "1", "--format", "savedmodel", "--out", "served", "--json")
    assert json.loads(second.stdout)["folder"] == str(tmp_path / "served"), second.stderr
    assert second.stderr == ""
