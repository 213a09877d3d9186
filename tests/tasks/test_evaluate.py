"""Evaluate: every test row is scored, by a network rebuilt from arrays, with numbers that can be checked by hand."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.datasets import catalog
from storage.datasets.training import training_config
from storage.errors import ConfigError, DamagedEntry, DataRefused
from storage.formats import arrays, parquet
from storage.records import Evaluation, FolderEntry, TrainedModel
from storage.store import Store
from tasks.evaluate import evaluate
from tasks.model import network
from tasks.model.classifier import predict, softmax
from tasks.scoring.scores import by_class, cross_entropy, worst_mistakes
from tests.conftest import TinyFactory, bars
from tests.support.models import split, trained

ROOT = Path(__file__).resolve().parents[2]


def predictions(evaluation: Evaluation, classes: int) -> tuple[np.ndarray, np.ndarray]:
    values = arrays.read(
        evaluation.file,
        {
            "predicted": (np.uint8, (evaluation.rows,)),
            "probability": (np.float32, (evaluation.rows, classes)),
        },
    )
    return values["predicted"], values["probability"]


def test_every_row_is_scored_also_beyond_one_block(store: Store, tiny: TinyFactory):
    dataset = tiny(test=10_001)
    model, test = trained(store, dataset, epochs=1).record, split(store, dataset, "test")
    result = evaluate.fn(store, dataset, model, test)
    evaluation = result.record
    predicted, probability = predictions(evaluation, 3)
    labels = parquet.labels(test.file)
    assert evaluation.rows == len(predicted) == 10_001
    assert evaluation.correct == (predicted == labels).sum() == sum(evaluation.confusion[n][n] for n in range(3))
    assert evaluation.accuracy == evaluation.correct / 10_001
    assert evaluation.loss == pytest.approx(-np.log(probability[np.arange(10_001), labels]).mean(), rel=1e-4)
    assert (predicted == probability.argmax(axis=1)).all()
    assert sum(map(sum, evaluation.confusion)) == sum(score.rows for score in evaluation.per_class) == 10_001
    assert [score.name for score in evaluation.per_class] == ["bar 0", "bar 1", "bar 2"]
    assert result.step.summary.startswith(f"{evaluation.correct:,} of 10,001 right, ")
    assert {path.name for path in evaluation.entry.folder.iterdir()} == {"entry.json", "predictions.npz"}


def test_predict_gives_what_was_scored(store: Store, tiny: TinyFactory):
    dataset = tiny()
    model = trained(store, dataset).record
    evaluation = evaluate.fn(store, dataset, model, split(store, dataset, "test")).record
    probability = predict(model, bars(120, 30, 3, (9, 7))["test-images"])
    assert (probability.dtype, probability.shape) == (np.float32, (30, 3))
    np.testing.assert_allclose(probability, predictions(evaluation, 3)[1], atol=1e-6)
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-6)
    assert predict(model, np.empty((0, 9, 7), np.uint8)).shape == (0, 3)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((5, 9, 8), np.uint8),
        np.zeros((9, 7), np.uint8),
        np.zeros((5, 9, 7), np.float32),
    ],
    ids=["size", "dimensions", "type"],
)
def test_images_that_the_model_was_not_trained_on_are_refused(store: Store, tiny: TinyFactory, images: np.ndarray):
    model = trained(store, tiny(), epochs=1).record
    with pytest.raises(ConfigError, match="expected images of 63 pixels as uint8"):
        predict(model, images)


def test_the_export_and_the_rebuilt_network_agree(store: Store, tiny: TinyFactory):
    model = trained(store, tiny()).record
    images = bars(120, 30, 3, (9, 7))["test-images"]
    network.tensorflow()
    import keras

    theirs = keras.saving.load_model(model.export)(images.astype(np.float32)).numpy()
    np.testing.assert_allclose(theirs, predict(model, images), atol=1e-6)


def test_a_class_that_is_never_predicted_or_never_there_scores_nothing(store: Store, tiny: TinyFactory):
    labels = {"train-labels": np.zeros(120, np.uint8), "test-labels": (np.arange(30) % 2).astype(np.uint8)}
    dataset = tiny(arrays=labels)
    model = trained(store, dataset).record
    evaluation = evaluate.fn(store, dataset, model, split(store, dataset, "test")).record
    assert evaluation.confusion == ((15, 0, 0), (15, 0, 0), (0, 0, 0))
    scores = [(s.rows, s.precision, s.recall, s.f1) for s in evaluation.per_class]
    assert scores == [(15, 0.5, 1.0, pytest.approx(2 / 3)), (15, 0.0, 0.0, 0.0), (0, 0.0, 0.0, 0.0)]


def test_class_scores_by_hand():
    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    per_class, confusion = by_class(("a", "b", "c"), labels, predicted)
    assert confusion == ((2, 1, 0), (0, 1, 1), (0, 0, 1))
    assert [s.precision for s in per_class] == [1.0, 0.5, 0.5]
    assert [s.recall for s in per_class] == [pytest.approx(2 / 3), 0.5, 1.0]
    assert [s.f1 for s in per_class] == [pytest.approx(0.8), 0.5, pytest.approx(2 / 3)]


def test_class_scores_are_those_of_scikit_learn():
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    chance = np.random.default_rng(1)
    # Of the last two classes, one is never predicted and one never there.
    labels, predicted = chance.integers(0, 11, 5_000), chance.choice([*range(10), 11], 5_000)
    classes = range(12)
    per_class, confusion = by_class(tuple(map(str, classes)), labels, predicted)
    assert np.array_equal(confusion, confusion_matrix(labels, predicted, labels=classes))
    scores = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    assert [(s.precision, s.recall, s.f1, s.rows) for s in per_class] == [
        *zip(*map(np.ndarray.tolist, scores), strict=True)
    ]


def test_loss_and_probabilities_stay_finite_for_any_logits():
    logits = np.array([[1e4, -1e4], [-3e38, 3e38], [0, 0]], np.float32)
    assert softmax(logits).tolist() == [[1, 0], [0, 1], [0.5, 0.5]]
    assert cross_entropy(logits[[0, 2]], np.array([1, 0])) == pytest.approx((2e4 + math.log(2)) / 2)


def test_the_surest_mistakes_come_first_and_rows_break_ties():
    labels, predicted = np.zeros(60, int), np.ones(60, int)
    sure = np.full(60, 0.6, np.float32)
    sure[[7, 3]] = 0.9
    labels[0] = 1
    mistakes = worst_mistakes(labels, predicted, np.stack([1 - sure, sure], axis=1))
    assert [mistake.row for mistake in mistakes] == [3, 7, *[n for n in range(1, 30) if n not in (3, 7)]][:25]
    assert mistakes[0].probability == pytest.approx(0.9)
    assert (mistakes[0].label, mistakes[0].predicted, len(mistakes)) == (0, 1, 25)


def test_it_is_reused_for_the_same_weights_whoever_asks(store: Store, tiny: TinyFactory):
    dataset = tiny()
    model, test = trained(store, dataset).record, split(store, dataset, "test")
    first = evaluate.fn(store, dataset, model, test)
    again = evaluate.fn(store, dataset, store.get("tiny", "train", model.entry.key, TrainedModel), test, "champion")
    assert (again.step.reused, again.record) == (True, first.record)
    retrained = evaluate.fn(store, dataset, trained(store, dataset, learning_rate=0.06).record, test)
    assert (retrained.step.reused, retrained.step.reason) == (False, "new weights")


def test_a_model_for_other_classes_is_refused(store: Store, tiny: TinyFactory):
    model = trained(store, tiny(), epochs=1).record
    four = tiny(classes=4, name="four")
    with pytest.raises(ConfigError, match="four: expected a model for 63 pixels and 4 classes; found .* 3 classes"):
        evaluate.fn(store, four, model, split(store, four, "test"))
    # As it is advised.
    assert evaluate.fn(store, four, trained(store, four, epochs=1).record, split(store, four, "test")).record.rows == 30


def test_a_test_label_that_is_no_class_is_refused(store: Store, tiny: TinyFactory):
    dataset = tiny(arrays={"test-labels": np.full(30, 3, np.uint8)})
    with pytest.raises(DataRefused, match="labels from 0 to 2; row 0 of the test split is 3"):
        evaluate.fn(store, dataset, trained(store, dataset, epochs=1).record, split(store, dataset, "test"))
    # As it is advised: the classes are corrected.
    four = tiny(classes=4, arrays={"test-labels": np.full(30, 3, np.uint8)})
    model = trained(store, four, epochs=1).record
    assert evaluate.fn(store, four, model, split(store, four, "test")).record.per_class[3].rows == 30


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("weights.npz", "expected the weights .* found others"),
        ("architecture.json", "expected the description of a network"),
        ("normalization.npz", "expected arrays in NumPy's npz format"),
    ],
)
def test_a_changed_file_of_the_model_is_refused(
    store: Store, tiny: TinyFactory, tmp_path: Path, file: str, message: str
):
    dataset = tiny()
    model = trained(store, dataset, epochs=1).record
    changed = replace(model, entry=FolderEntry(shutil.copytree(model.entry.folder, tmp_path / "changed")))
    (changed.entry.folder / file).chmod(0o644)
    if file == "weights.npz":
        network.save_weights(changed.weights, network.initial_weights(network.load_architecture(model.architecture), 9))
    else:
        (changed.entry.folder / file).write_text("{}")
    with pytest.raises(DamagedEntry, match=message):
        evaluate.fn(store, dataset, changed, split(store, dataset, "test"))
    (changed.entry.folder / file).unlink()
    with pytest.raises(DamagedEntry, match=file):
        evaluate.fn(store, dataset, changed, split(store, dataset, "test"))


@pytest.mark.remedies("tasks.evaluate:_digest")
@pytest.mark.parametrize("file", ["architecture.json", "normalization.npz"])
def test_a_model_whose_file_is_gone_can_be_trained_again(store: Store, tiny: TinyFactory, file: str):
    dataset = tiny()
    model, test = trained(store, dataset, epochs=1).record, split(store, dataset, "test")
    (model.entry.folder / file).unlink()
    remedy = f"remove {model.entry.folder}, then run again"
    with pytest.raises(DamagedEntry, match=f"{file}: expected a file of a trained model; .*; {remedy}"):
        evaluate.fn(store, dataset, model, test)
    shutil.rmtree(model.entry.folder)
    assert evaluate.fn(store, dataset, trained(store, dataset, epochs=1).record, test).record.rows == 30


def test_finding_results_again_imports_no_heavy_library(store: Store, tiny: TinyFactory):
    dataset = tiny()
    model = trained(store, dataset).record
    evaluation = evaluate.fn(store, dataset, model, split(store, dataset, "test")).record
    code = f"""
import sys
from pathlib import Path
from storage.datasets import catalog
from storage.store import Store
from tasks.evaluate import evaluate
from tests.support.models import split, trained
store, dataset = Store(Path({str(store.root)!r})), catalog.read(Path({str(dataset.manifest)!r}))
model = trained(store, dataset)
scored = evaluate.fn(store, dataset, model.record, split(store, dataset, "test"))
print(model.step.reused, scored.step.reused, scored.record.accuracy)
print(*{{name.split(".")[0] for name in sys.modules}} & {{"tensorflow", "keras", "sklearn", "scipy"}})
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout == f"True True {evaluation.accuracy}\n\n"


def test_the_tutorial_s_result_on_the_real_mnist(store: Store, mnist_dir: Path):
    """Published: 98.81% and 96.27%. Five seeds of ours gave 98.95-99.06% and 96.03-96.31%."""
    dataset = catalog.find("mnist")
    result = trained(store, dataset, training_config(dataset, "tutorial"), mnist_dir)
    evaluation = evaluate.fn(store, dataset, result.record, split(store, dataset, "test", mnist_dir)).record
    assert 0.986 <= result.record.train_accuracy <= 0.993
    assert 0.957 <= evaluation.accuracy <= 0.969
    assert evaluation.rows == 10_000


def test_the_embedded_digits_are_learnt_with_their_own_defaults(store: Store):
    from tasks.sources import embedded

    dataset = catalog.find("digits")
    embedded.write(dataset, store.inbox("digits"))
    result = trained(store, dataset, training_config(dataset), store.inbox("digits"))
    evaluation = evaluate.fn(store, dataset, result.record, split(store, dataset, "test", store.inbox("digits"))).record
    assert evaluation.accuracy >= 0.95
    assert min(score.recall for score in evaluation.per_class) >= dataset.floors.class_recall
