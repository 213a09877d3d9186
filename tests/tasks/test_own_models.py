"""A user's own Keras model: trained by the same loop, repeated bit for bit, and used from its entry alone."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import pipeline, retrain
from flows.dataset_in_store import DatasetInStore
from flows.reproducing.again import reproduce
from flows.run import Request, prepare
from flows.trainings import Curve, diagnosed, learning_curve
from flows.tuning.request import StudyRequest
from flows.tuning.study import carry_out
from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.datasets.own_models import MAX_SOURCE_BYTES, source_of
from storage.datasets.training import TrainingConfig, training_config
from storage.errors import ConfigError, DamagedEntry
from storage.files import read_json, write_json
from storage.formats.history import read_history
from storage.records import Done, TrainedModel, from_json, to_json
from storage.store import Store, read_entry
from storage.workers.here import Here
from tasks import train as training
from tasks.evaluate import evaluate
from tasks.model import classifier, network, own_code, own_network
from tasks.model.fitting import Fitting
from tasks.model.scaling import Statistics
from tasks.model.training_rows import InMemory
from tasks.normalize import normalize
from tasks.serving.export import export, export_version
from tasks.serving.predict import load_champion
from tasks.ui.progress import Progress, listening
from tests.conftest import TinyFactory, write_tiny
from tests.support import commands
from tests.support.models import random_rows, split, trained
from tests.support.runs import Unconfirmed

SOURCE = """
import keras
from sizes import UNITS

layers = keras.layers


def build(input_shape, classes):
    return keras.Sequential([
        keras.Input(input_shape),
        layers.Conv2D(3, 3, kernel_regularizer="l2"),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.Flatten(),
        layers.Dropout(0.3),
        layers.Dense(UNITS, activation="relu", kernel_constraint="max_norm"),
        layers.Dense(classes, activation="softmax"),
    ])


def logits(input_shape, classes):
    return keras.Sequential([layers.Flatten(), layers.Dense(4, activation="tanh"), layers.Dense(classes)])


def softmax(input_shape, classes):
    pixels = keras.Input(input_shape)
    inside = logits(input_shape, classes)
    return keras.Model(pixels, layers.Softmax()(inside(pixels)))
"""
ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = {"model": "my_models:build", "epochs": 3}


@pytest.fixture
def own(tiny: TinyFactory) -> Dataset:
    """A small data set with a model of its own beside the manifest, and a module that the model imports."""
    return with_model(tiny(manifest=MANIFEST))


MANIFEST = '[training]\nmodel = "my_models:build"\nepochs = 3\nlearning_rate = 0.05\nbatch_size = 16\n'


def with_model(dataset: Dataset, source: str = SOURCE) -> Dataset:
    folder = dataset.manifest.parent
    (folder / "my_models.py").write_text(source, encoding="utf-8")
    (folder / "sizes.py").write_text("UNITS = 5\n", encoding="utf-8")
    return dataset


def request_of(dataset: Dataset, store: Store, **more: Any) -> Request:
    return Request(dataset_file=str(dataset.manifest), store=str(store.root), **more)


def made(source: str, folder: Path, function: str = "build") -> own_network.OwnNetwork:
    (folder / "other.py").write_text(f"import keras\nlayers = keras.layers\n{source}\n", encoding="utf-8")
    return own_code.made(source_of(f"other:{function}", folder / "x.toml"), (9, 7), 3, 1)


def test_two_processes_train_the_same_and_leave_nothing_behind(tmp_path: Path, own: Dataset):
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first = trained(Store(tmp_path / "a"), own, **PARAMETERS).record
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    code = f"""
from pathlib import Path
from storage.datasets import catalog
from storage.store import Store, read_entry
from tests.support.models import trained
trained(Store(Path({str(tmp_path / "b")!r})), catalog.read(Path({str(own.manifest)!r})), **{PARAMETERS!r})
"""
    subprocess.run([*commands.python(), "-c", code], check=True)
    (entry,) = Store(tmp_path / "b").newest_entries("tiny", "train")
    assert entry["record"]["weights_digest"] == first.weights_digest
    folder = Store(tmp_path / "b").entries("tiny", "train")
    for name in ("architecture.json", "weights.npz", "model.keras"):
        assert next(folder.glob(f"*/{name}")).read_bytes() == (first.entry.folder / name).read_bytes()
    other = trained(Store(tmp_path / "a"), own, **PARAMETERS, seed=2).record
    assert other.weights_digest != first.weights_digest


def test_its_record_says_what_has_made_it(store: Store, own: Dataset):
    done = trained(store, own, **PARAMETERS)
    words = ("Conv2D 3", "BatchNormalization", "Activation", "Flatten", "Dropout 0.3", "Dense 5", "Dense 3")
    assert done.record.own
    assert (done.record.own.name, done.record.own.layers) == ("my_models:build", words)
    assert done.step.summary.startswith("3 epochs of my_models:build, ")
    assert done.record.parameters == 30 + 6 + 7 * 5 * 3 * 5 + 5 + 18
    assert [*read_history(done.record.history)[-1].gradients] == ["conv2d", "dense", "dense_1"]
    assert from_json(TrainedModel, to_json(done.record), done.record.entry) == done.record
    weights = network.load_weights(done.record.weights, own_network.load(done.record.architecture))
    assert np.linalg.norm(weights["dense.kernel"], axis=0).max() <= 2 + 1e-6
    assert weights["batch_normalization.moving_mean"].any()


def test_a_change_of_the_source_or_of_what_it_imports_trains_again(store: Store, own: Dataset):
    folder = own.manifest.parent

    def again() -> Done[TrainedModel]:
        return trained(store, own, **{**PARAMETERS, "epochs": 1})

    again()
    os.utime(folder / "my_models.py", (1, 1))
    assert again().step.reused
    (folder / "unrelated.py").write_text("x = 1\n")
    assert again().step.reused
    (folder / "sizes.py").write_text("UNITS = 6\n")
    changed = again()
    assert not changed.step.reused
    assert changed.step.reason.startswith("source_of_model ")
    (folder / "my_models.py").write_text(SOURCE.replace("0.3", "0.4"))
    assert not again().step.reused
    other = trained(store, own, **{**PARAMETERS, "epochs": 1, "model": "my_models:logits"})
    assert "model my_models:build → my_models:logits" in other.step.reason


def test_logits_and_a_softmax_at_the_end_are_trained_alike(tmp_path: Path, own: Dataset):
    found = {}
    for function in ("logits", "softmax"):
        model = trained(Store(tmp_path / function), own, **PARAMETERS | {"model": f"my_models:{function}"}).record
        found[function] = model
    one, two = found["logits"], found["softmax"]
    assert one.train_loss == two.train_loss
    values = [[*network.load_weights(m.weights, own_network.load(m.architecture)).values()] for m in (one, two)]
    for ours, theirs in zip(*values, strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Killed(Exception):
    pass


@pytest.mark.parametrize("more", [{}, {"optimizer": "adam", "patience": 3, "label_smoothing": 0.1, "memory": "4032B"}])
def test_a_broken_training_goes_on_and_ends_as_an_unbroken_one(
    tmp_path: Path, own: Dataset, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
):
    parameters = {**PARAMETERS, **more, "epochs": 4}
    whole = trained(Store(tmp_path / "whole"), own, **parameters).record
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)

    def kill(progress: Progress) -> None:
        if progress.done == 2:
            raise Killed

    with pytest.raises(Killed), listening(kill):
        trained(Store(tmp_path / "broken"), own, **parameters)
    resumed = trained(Store(tmp_path / "broken"), own, **parameters).record
    assert (resumed.resumed_after, resumed.weights_digest) == (2, whole.weights_digest)
    assert replace(resumed, entry=whole.entry, resumed_after=0) == whole


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Dataset, dict[str, Any], str]:
    """A store with the champion of a run whose source is gone since; its outcome, and the digest of the source."""
    folder = tmp_path_factory.mktemp("ran")
    tests = "[behaviour]\nbrightness = { percent = 5, changed = 1.0 }\n"
    store, dataset = Store(folder / "store"), with_model(write_tiny(folder, manifest=MANIFEST + tests))
    store.prepare()
    digest = source_of("my_models:build", dataset.manifest).digest
    outcome = ran_again(dataset, store)
    assert ran_again(dataset, store)["state"] == "unchanged"
    for name in ("my_models.py", "sizes.py"):
        (folder / name).unlink()
    return store, dataset, outcome, digest


def ran_again(dataset: Dataset, store: Store) -> dict[str, Any]:
    state = retrain.carry_out(request_of(dataset, store), pipeline.to_decision, caller=pipeline.Directly())
    outcome: dict[str, Any] = state.data.to_json()
    return outcome


@pytest.mark.remedies("flows.reproducing.again:_check_own_source")
def test_it_is_made_again_from_the_same_source_only(tmp_path: Path, ran: tuple[Store, Dataset, dict[str, Any], str]):
    data, own = DatasetInStore(ran[0], "tiny"), with_model(write_tiny(tmp_path, manifest=MANIFEST), "build = None\n")
    message = "expected the source of my_models:build that run .* has trained, .*; found .*; put that back, or name the"
    with pytest.raises(ConfigError, match=message):
        reproduce(data, "champion", str(own.manifest))
    (tmp_path / "my_models.py").unlink()
    with pytest.raises(ConfigError, match="expected the file my_models.py in .*; found none; write it there"):
        reproduce(data, "champion", str(own.manifest))
    with_model(own)
    assert reproduce(data, "champion", str(own.manifest)).comparison.reproduced


def test_a_run_gates_it_and_the_report_says_what_it_is(ran: tuple[Store, Dataset, dict[str, Any], str]):
    store, _, outcome, digest = ran
    assert outcome["state"] == "promoted"
    assert "of my_models:build" in outcome["steps"]["train"]["summary"]
    (report,) = store.entries("tiny", "publish").glob("*/report.json")
    values = json.loads(report.read_text())
    assert values["behaviour"]["images"] == 30
    section = values["training"]
    assert section["architecture"].startswith("my_models:build: Conv2D 3, BatchNormalization, ")
    assert section["architecture"] in report.with_name("report.html").read_text()
    assert section["own"]["source"] == digest
    names = [setting["name"] for setting in section["configuration"]]
    assert "model" in names
    assert "hidden" not in names


@pytest.mark.remedies("tasks.serving.export:export")
def test_without_its_source_it_is_evaluated_used_and_exported(
    tmp_path: Path, ran: tuple[Store, Dataset, dict[str, Any], str]
):
    store, dataset, _, digest = ran
    model = load_champion("tiny", store)
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 7), np.uint8)
    probabilities = model.predict(images).probabilities
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert evaluate.fn(store, dataset, model.record, split(store, dataset, "test")).step.reused
    for kind in ("keras", "savedmodel", "litert"):
        card = (export(model, kind, tmp_path / kind).folder / "README.md").read_text()
        assert f"SHA-256 of its source: {digest}" in card
        assert r"The function my\_models:build has made the network" in card
    with pytest.raises(ConfigError, match="found one that my_models:build has made; choose keras, savedmodel or"):
        export_version(store, "tiny", "champion", "onnx", tmp_path / "onnx")
    import keras

    used = keras.saving.load_model(tmp_path / "keras" / "model.keras").predict(images, verbose=0)
    np.testing.assert_allclose(used, probabilities, atol=1e-5)
    assert (tmp_path / "keras" / "model.keras").read_bytes() == model.record.export.read_bytes()


@pytest.mark.remedies("tasks.model.own_network:load")
def test_a_description_that_names_code_is_refused(tmp_path: Path, ran: tuple[Store, Dataset, dict[str, Any], str]):
    record = load_champion("tiny", ran[0]).record
    path, values = tmp_path / "architecture.json", read_json(record.architecture)
    layers = values["description"]["config"]["layers"]
    outside = {"config": layers[1]["config"] | {"name": "../outside"}}
    words = [{"class_name": "Lambda"}, {"class_name": "StringLookup"}, {"module": "os", "class_name": "system"}]
    for changed in (*words, {"registered_name": "a>b"}, outside):
        text = json.dumps(values).replace(json.dumps(layers[1]), json.dumps(layers[1] | changed))
        write_json(path, json.loads(text))
        with pytest.raises(DamagedEntry, match=r"description of a network; found another \((keras.layers|os)\."):
            own_network.load(path)
    write_json(path, {**values, "classes": 0})
    with pytest.raises(DamagedEntry, match="it has the sizes"):
        own_network.load(path)
    write_json(path, values)
    assert own_network.load(path) == classifier.Classifier(record).architecture


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("my_models", "expected model to be FILE:FUNCTION, such as my_models:build"),
        ("my_models:", "expected model to be FILE:FUNCTION"),
        ("../my_models:build", "expected model to be FILE:FUNCTION"),
        ("my.models:build", "expected model to be FILE:FUNCTION"),
        ("my_models:build()", "expected model to be FILE:FUNCTION"),
    ],
)
def test_another_form_of_the_name_is_refused(own: Dataset, model: str, problem: str):
    with pytest.raises(ConfigError, match=problem):
        training_config(own, overrides={"model": model})
    text = own.manifest.read_text().replace("my_models:build", model)
    own.manifest.write_text(text)
    with pytest.raises(ConfigError, match=problem.replace("model to", "training.model to")):
        catalog.read(own.manifest)


def test_parameters_of_a_network_do_not_go_with_it(own: Dataset):
    usual = {"hidden": [9], "activation": "relu", "conv": [4], "batch_norm": True, "dropout": 0.1}
    for name, value in {**usual, "initialization": "he"}.items():
        with pytest.raises(ConfigError, match=f"expected model without {name}, because the function makes the whole"):
            training_config(own, overrides={name: value})
    assert training_config(own, overrides={**usual, "model": None}).model is None
    with pytest.raises(ConfigError, match="expected model without hidden"):
        training_config(own, "fast", {"hidden": [9]})
    assert training_config(own, "tutorial").model is None


def refused(request: Request, problem: str, **training: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        prepare(replace(request, training=training), "a test")
    assert caught.value.failure.exit_code == 2


@pytest.mark.remedies(
    "storage.datasets.own_models:_check_name",
    "storage.datasets.own_models:_folder_of",
    "storage.datasets.own_models:_check_function",
)
def test_a_file_or_function_that_is_not_there_is_refused_before_anything_is_fetched(
    tmp_path: Path, store: Store, own: Dataset, monkeypatch: pytest.MonkeyPatch
):
    request = request_of(own, store)
    for name in ("os:system", "tasks:build", "keras:Sequential"):
        refused(request, f'"{name}": expected a file of your own, .* give the file another name', model=name)
    none = "expected the file others.py in .* or on Python's path .*; found none; write it there"
    refused(request, none, model="others:build")
    none = "expected the function make in .*my_models.py; found build, logits, softmax; write it"
    refused(request, none, model="my_models:make")
    prepare(request, "a test")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("my_models.py", "sizes.py"):
        (own.manifest.parent / name).rename(elsewhere / name)
    refused(request, "found none")
    monkeypatch.syspath_prepend(str(elsewhere))
    prepare(request, "a test")
    refused(replace(request, dataset="digits", dataset_file=None), "the file x.py on Python's path", model="x:build")
    assert not [*store.root.glob("tiny/*")]


@pytest.mark.remedies(
    "storage.datasets.own_models:_check_name",
    "storage.datasets.own_models:_text",
    "storage.datasets.own_models:_text:2",
    "storage.datasets.own_models:_imported",
)
def test_a_source_that_is_not_python_is_refused_before_anything_is_fetched(store: Store, own: Dataset):
    folder, request = own.manifest.parent, request_of(own, store)
    file, helper = folder / "my_models.py", folder / "sizes.py"
    both = "def build(a):\n    global a\n"
    for text, found in (("def build(:", "line 1: invalid syntax"), (both, "line 2: name 'a' is parameter and global")):
        file.write_text(text)
        refused(request, f"my_models.py: expected Python source; found {found}; correct it")
    file.write_bytes(b"# caf\xe9\n")
    refused(request, "my_models.py: expected Python source in UTF-8; found .* save it in UTF-8")
    file.write_bytes(b"#" * (MAX_SOURCE_BYTES + 1))
    refused(request, "found more than 1,048,576 bytes")
    file.unlink()
    file.mkdir()
    refused(request, "my_models.py: expected a file of Python source; found a folder .*; write one there")
    file.rmdir()
    file.write_text(SOURCE)
    helper.write_text("UNITS =")
    refused(request, "sizes.py: expected Python source; found line 1: invalid syntax")
    helper.write_text("import storage\nUNITS = 5\n")
    (folder / "storage.py").write_text("")
    refused(request, "found storage.py; give the file another name")
    (folder / "storage.py").unlink()
    prepare(request, "a test")


def returns(*last: str) -> str:
    return f"return keras.Sequential([keras.Input(input_shape), layers.Flatten(), {', '.join(last)}])"


@pytest.mark.remedies("tasks.model.own_code:_unusable")
@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (
            "return None",
            "expected a Keras model from the function build; found None; return the model",
        ),
        ("return 5", "found a value of type int; return the model"),
        ("raise ValueError('no')", r"found ValueError: no in .*other\.py, line 4; correct the function"),
        ("import missing", r"found ModuleNotFoundError: No module named 'missing' in .*other\.py, line 4; import"),
        ("raise SystemExit(1)", "found SystemExit: 1 in "),
        ("pass\nreturn", "found SyntaxError: 'return' outside function"),
        (returns("layers.Dense(2)"), r"an output of shape \(None, 3\) .*; found one of \(None, 2\)"),
        (
            "return keras.Sequential([keras.Input((9, 7)), layers.Flatten(), layers.Dense(3)])",
            "found one of .None, 9, 7",
        ),
        (returns("layers.Dense(3, trainable=False)"), "expected weights to train .*; found none; add"),
        (returns("layers.Dense(3, dtype='float16')"), "of type float32 .*; found float16; leave dtype"),
        (returns("layers.Dense(3, 'sigmoid')"), "a softmax at the end .*; found the activation sigmoid"),
        (returns("layers.Lambda(lambda x: x)", "layers.Dense(3)"), r"with keras\.layers\.Lambda; use such"),
        (returns("Mine()", "layers.Dense(3)") + "\nclass Mine(layers.Layer):\n    pass", r"with other\.Mine; use"),
    ],
)
def test_a_function_that_makes_no_usable_model_is_refused(tmp_path: Path, body: str, problem: str):
    with pytest.raises(ConfigError, match=problem):
        made(f"def build(input_shape, classes):\n    {body}", tmp_path)
    assert made(f"def build(input_shape, classes):\n    {returns('layers.Dense(classes)')}", tmp_path)


def test_a_fault_in_the_function_stops_the_run_before_anything_is_fetched(store: Store, own: Dataset):
    (own.manifest.parent / "my_models.py").write_text("def build(input_shape, classes):\n    return classes\n")
    state = retrain.carry_out(request_of(own, store), pipeline.to_decision, caller=pipeline.Directly())
    outcome = state.data.outcome.to_json()
    assert outcome["error"]["exit_code"] == 2
    assert "found a value of type int; return the model" in outcome["sentence"]
    assert [*outcome["steps"]] == ["publish"]


UNTRAINABLE = "layers.Conv2D(2, 3), layers.Resizing(5, 5, interpolation='area'), layers.Flatten(), layers.Dense(3)"


@pytest.mark.remedies("tasks.model.own_training:blamed")
def test_a_layer_that_cannot_be_trained_is_refused_before_anything_is_fetched(store: Store, own: Dataset):
    file = own.manifest.parent / "my_models.py"
    head = "import keras\nlayers = keras.layers\ndef build(input_shape, classes):\n    "
    file.write_text(head + f"return keras.Sequential([{UNTRAINABLE}])")
    state = retrain.carry_out(request_of(own, store), pipeline.to_decision, caller=pipeline.Directly())
    outcome = state.data.outcome.to_json()
    assert outcome["error"]["exit_code"] == 2
    words = r"expected layers that TensorFlow can train, .* found LookupError: .*ResizeArea; replace the layer"
    assert re.search(words, outcome["sentence"])
    assert [*outcome["steps"]] == ["publish"]
    # As on a worker that has other devices than the machine of the run.
    with pytest.raises(ConfigError, match=words):
        trained(store, own, **PARAMETERS)
    file.write_text(head + f"return keras.Sequential([{UNTRAINABLE.replace('area', 'bilinear')}])")
    assert trained(store, own, **PARAMETERS).record.own


def test_a_layer_that_chooses_at_random_what_it_compiles_chooses_the_same_again(tmp_path: Path):
    mixing = "layers.AugMix(num_chains=1, chain_depth=1, all_ops=False)"
    body = f"return keras.Sequential([keras.Input(input_shape), {mixing}, layers.Flatten(), layers.Dense(3)])"
    own = made(f"def build(input_shape, classes):\n    {body}", tmp_path)
    found = []
    for state in (1, 2):
        # What the process did before.
        random.seed(state)
        fitting = Fitting(
            own, TrainingConfig(batch_size=8), Statistics(np.zeros(63), 1.0), InMemory(*random_rows(8, 63), 8, 1), 8
        )
        fitting.epoch(1)
        found.append(fitting.weights["dense.kernel"].tobytes())
    assert found[0] == found[1]


def test_what_is_imported_is_what_was_read_and_is_not_imported_by_others(tmp_path: Path, capfd: pytest.CaptureFixture):
    dataset = with_model(write_tiny(tmp_path), "print('made')\n" + SOURCE)
    source = source_of("my_models:build", dataset.manifest)
    (tmp_path / "my_models.py").unlink()
    (tmp_path / "sizes.py").write_text("UNITS = 50\n")
    own = own_code.made(source, (9, 7), 3, 1)
    assert own.trained_shapes["dense_1.kernel"] == (5, 3)
    with pytest.raises(ModuleNotFoundError):
        import sizes  # noqa: F401
    printed = capfd.readouterr()
    assert (printed.out, "made" in printed.err) == ("", True)


def test_another_machine_needs_no_file(store: Store, own: Dataset):
    rows = split(store, own, "train")
    config = TrainingConfig(**PARAMETERS)
    item = training.planned(store, training.Training(own, rows, normalize.fn(store, own, rows, config).record, config))
    there = pickle.loads(pickle.dumps(item))
    for name in ("my_models.py", "sizes.py"):
        (own.manifest.parent / name).unlink()
    assert training.made(there).record.own.name == "my_models:build"


def test_the_example_of_the_documentation_is_trained(tmp_path: Path, store: Store):
    page = (ROOT / "docs/how-to/networks.md").read_text(encoding="utf-8")
    python, manifest = (re.search(f"```{kind}\n(.*?)```", page, re.DOTALL)[1] for kind in ("python", "toml"))
    dataset = with_model(write_tiny(tmp_path, manifest=manifest), python)
    config = training_config(dataset, overrides={"epochs": 2})
    assert (config.model, config.optimizer) == ("my_models:build", "adam")
    model = trained(store, dataset, config).record
    assert [*model.own.layers][:3] == ["Conv2D 16", "Conv2D 16", "BatchNormalization"]
    assert model.train_accuracy > 1 / 3


def test_layers_that_are_shared_nested_or_frozen_are_trained(tmp_path: Path):
    own = made(
        """
def build(input_shape, classes):
    inner = keras.Sequential([layers.Conv2D(2, 3, trainable=False), layers.Flatten(), layers.Dense(4)], name="inner")
    shared = layers.Dense(4, use_bias=False)
    pixels = keras.Input(input_shape)
    rows = inner(pixels) + inner(pixels)
    rows = shared(shared(rows))
    unused = layers.Dense(1)(rows)
    return keras.Model(pixels, layers.Dense(classes)(rows))
""",
        tmp_path,
    )
    assert own.trained_shapes["dense.kernel"] == (35 * 2, 4)
    assert [*own.kept_shapes] == ["conv2d.kernel", "conv2d.bias"]
    statistics = Statistics(np.zeros(63), 1.0)
    rows = InMemory(*random_rows(20, 63), 20, 1)
    fitting = Fitting(own, TrainingConfig(batch_size=8), statistics, rows, 20)
    fitting.epoch(1)
    assert [*fitting.gradients] == ["dense", "dense_1", "dense_3"]
    np.testing.assert_array_equal(fitting.weights["conv2d.kernel"], own.start["conv2d.kernel"])
    assert (fitting.weights["dense.kernel"] != own.start["dense.kernel"]).any()
    own_network.export(tmp_path / "model.keras", own, fitting.weights, statistics)


class Editing(pipeline.Directly):
    """Carries out steps; while rows are being normalized, a person edits a file of the model."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def call(self, step: Any, *arguments: Any) -> Any:
        if step is normalize:
            self._file.write_text("UNITS = 7\n")
        return super().call(step, *arguments)


@pytest.mark.remedies("flows.tuning.request:_searched")
def test_a_study_searches_everything_but_the_network(tmp_path: Path, store: Store, own: Dataset):
    request = StudyRequest(request_of(own, store), trials=2, sampler="random", pruner="none")
    _, _, search = request.resolve()
    assert {"learning_rate", "optimizer", "batch_size"} <= set(search.space)
    assert set(search.space).isdisjoint({"model", "hidden", "activation", "dropout"})
    space = tmp_path / "space.toml"
    space.write_text("[hidden]\nchoices = [[5], [6]]\n[batch_size]\nchoices = [8, 16]\n")
    with pytest.raises(
        ConfigError, match="expected no parameters of a network, because my_models:build makes it; found"
    ):
        replace(request, space=str(space)).resolve()
    space.write_text("[batch_size]\nchoices = [8, 16]\n")
    request = replace(request, space=str(space), run=request_of(own, store, training={"epochs": 1}))
    digest = source_of("my_models:build", own.manifest).digest
    course = carry_out(request, Editing(own.manifest.with_name("sizes.py")), "a test", lambda *_: None)
    assert course.counts == {"complete": 2, "pruned": 0, "failed": 0}
    # What was read first is what the study is of, and what its trials have trained.
    made_from = [entry["made_from"]["parameters"] for entry in store.newest_entries("tiny", "train")]
    made_from.append(read_entry(course.study.entry.folder)["made_from"]["parameters"])
    assert [each["source_of_model"] for each in made_from] == [digest] * 3
    assert {entry["record"]["own"]["name"] for entry in store.newest_entries("tiny", "train")} == {"my_models:build"}


@pytest.mark.remedies("flows.trainings:_source")
def test_the_rules_advise_nothing_about_the_network_and_a_learning_curve_needs_its_source(
    store: Store, own: Dataset, monkeypatch: pytest.MonkeyPatch
):
    request = request_of(own, store, training={"learning_rate": 1e-6, "epochs": 5, "optimizer": "adam"})
    job = prepare(request, "a test")
    pipeline.to_decision(job, Unconfirmed())
    job.append_to_ledger()
    found = diagnosed(DatasetInStore.open("tiny", str(store.root)), None)
    assert found.is_judged
    assert [each.name for each in found.findings][:1] == ["not learning"]
    assert {name for each in found.findings for name in each.settings}.isdisjoint({"hidden", "activation"})
    data = DatasetInStore.open("tiny", str(store.root))

    def curve() -> Curve:
        return learning_curve(data, found, 1, Here(), print)

    with pytest.raises(ConfigError, match=r"expected the file my_models\.py in .*; found none; write it there"):
        curve()
    monkeypatch.chdir(own.manifest.parent)
    points = curve().points
    assert [point.reused for point in points] == [False] * 4 + [True]
    Path("sizes.py").write_text("UNITS = 6\n")
    with pytest.raises(ConfigError, match=r"expected the source of my_models:build that run .*; found another, or "):
        curve()
    Path("sizes.py").write_text("UNITS = 5\n")
    assert all(point.reused for point in curve().points)
