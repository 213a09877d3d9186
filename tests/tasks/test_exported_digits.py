"""A real model in each format: its answers on all test images, and its model card."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from flows.commands.cli import run_command
from storage.datasets import catalog
from storage.records import Evaluation
from storage.registry import Registry
from storage.store import Store
from tasks.report.model_card import model_card
from tasks.serving.export import FORMATS, TOLERANCE, export
from tasks.serving.predict import Model, load_champion
from tasks.sources import embedded
from tests.support.runs import run_without_prefect
from tests.support.servers import clean_environment

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

DIGITS = catalog.find("digits")
IMAGES = embedded.digits()["test-images"]
SECTIONS = [
    *("Model details", "How to use it", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data"),
    *("Training", "Quantitative analyses", "Ethical considerations", "Caveats and recommendations", "Licence"),
    "What exactly this is",
]
# Its code line that says where the user's own images go.
IMAGES_OF_THE_CARD = "images = np.zeros((5, 8, 8), np.float32)"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    store = Store(tmp_path_factory.mktemp("digits") / "store")
    assert run_without_prefect(store)["state"] == "promoted"
    return load_champion("digits", store)


@pytest.fixture(scope="module")
def exported(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    return {kind: export(model, kind, folder / kind).folder for kind in FORMATS}


def code_of(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert IMAGES_OF_THE_CARD in code
    return code


@pytest.mark.parametrize("rows", [360, 1])
@pytest.mark.parametrize("kind", ["keras", "onnx", "litert"])
def test_the_code_of_the_card_gives_the_probabilities_of_the_model_on_all_test_images(
    model: Model, exported: Mapping[str, Path], monkeypatch, capsys, kind: str, rows: int
):
    monkeypatch.chdir(exported[kind])
    code = code_of(Path("README.md").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"given": IMAGES[:rows].astype(np.float32)}
    exec(code.replace(IMAGES_OF_THE_CARD, "images = given"), names)
    expected = model.predict(IMAGES[:rows])
    np.testing.assert_allclose(names["probabilities"], expected.probabilities, atol=TOLERANCE)
    assert capsys.readouterr().out == f"{list(expected.name)}\n"


def test_a_saved_model_needs_nothing_of_idxflow(model: Model, exported: Mapping[str, Path], tmp_path: Path):
    np.save(tmp_path / "images.npy", IMAGES.astype(np.float32))
    code = code_of((exported["savedmodel"] / "README.md").read_text(encoding="utf-8"))
    code = code.replace(IMAGES_OF_THE_CARD, f"images = np.load({str(tmp_path / 'images.npy')!r})")
    code += f"np.save({str(tmp_path / 'answer.npy')!r}, probabilities)\n"
    environment = clean_environment(tmp_path, TF_CPP_MIN_LOG_LEVEL="3", PYTHONPATH="")
    started = [sys.executable, "-c", code]
    subprocess.run(started, cwd=exported["savedmodel"], env=environment, check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), model.predict(IMAGES).probabilities, atol=TOLERANCE)


def test_the_card_says_what_the_model_is(model: Model, exported: Mapping[str, Path]):
    card = (exported["onnx"] / "README.md").read_text(encoding="utf-8")
    _, header, text = card.split("---\n", 2)
    (index,) = yaml.safe_load(header)["model-index"]
    assert index["results"][0]["metrics"][0] == {"type": "accuracy", "value": model.version.test_accuracy}
    for said in (
        f"# {DIGITS.title}: version 1 of digits",
        f"Licence of the data: {DIGITS.licence}",
        DIGITS.homepage,
        DIGITS.citation,
        DIGITS.archive("test-images").payload_sha256,
        model.version.weights_digest,
        "| hidden | 8 |",
        "idxflow run digits --profile default --set",
        "1,437 images for training and 360 images for testing",
        "- Licence of the model: none yet, see [Licence](#licence)",
        f"| Test | 360 | {round(model.version.test_accuracy * 360)} | {model.version.test_accuracy:.2%} | ",
    ):
        assert said in text
    assert {line.split(" | ")[0] for line in text.splitlines() if re.match(r"\| \d \| 3\d \| ", line)} == {
        f"| {name}" for name in DIGITS.classes
    }
    assert str(model.store.root) not in card


@pytest.mark.parametrize("kind", ["keras", "litert"])
def test_the_hub_reads_the_metadata_of_the_card_of_an_export(model: Model, exported: Mapping[str, Path], kind: str):
    from huggingface_hub import ModelCard

    card = ModelCard.load(exported[kind] / "README.md")
    check_metadata(card, model)
    assert card.data.library_name == {"keras": "keras", "litert": None}[kind]
    assert card.data.license is None


@pytest.mark.parametrize(
    ("licence", "word", "name"),
    [
        ("Apache 2.0", "apache-2.0", None),
        ("CC BY-SA 4.0", "cc-by-sa-4.0", None),
        ("House Rules", "other", "house-rules"),
    ],
)
def test_a_card_by_itself_has_the_same_and_the_licence_that_was_chosen(
    model: Model, capsys: pytest.CaptureFixture[str], licence: str, word: str, name: str | None
):
    from huggingface_hub import ModelCard

    store = str(model.store.root)
    assert run_command(["share", "card", "digits", "--licence", licence, "--store", store]) == 0
    text = capsys.readouterr().out
    card = ModelCard(text)
    check_metadata(card, model)
    assert (card.data.license, card.data.to_dict().get("license_name")) == (word, name)
    assert f"- Licence of the model: {licence}" in text
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert "idxflow export digits --version 1" in text
    assert "| ink: least ink | " in text
    assert store not in text


@pytest.mark.remedies("tasks.serving.card:card")
@pytest.mark.parametrize("licence", ["MIT\n---\nx: y", "MIT\x1b[31m", "\udcff"])
def test_a_licence_with_control_characters_is_refused(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str], licence: str
):
    out = tmp_path / "card.md"
    words = ["share", "card", "digits", "--store", str(model.store.root), "--out", str(out), "--licence"]
    assert run_command([*words, licence]) == 2
    assert f"such as Apache-2.0; found {licence!a}; correct it" in capsys.readouterr().err
    assert not out.exists()
    if licence == "\udcff":
        assert run_command([*words, "Apache-2.0"]) == 0


def check_metadata(card: ModelCard, model: Model) -> None:
    """What the Hub's own reader makes of the results: one for each measure, those of classes as means."""
    results = {result.metric_type: result for result in card.data.eval_results}
    assert [*results] == ["accuracy", "precision", "recall", "f1"]
    evaluation = model.store.get("digits", "evaluate", model.version.evaluation, Evaluation)
    assert results["accuracy"].metric_value == evaluation.accuracy
    mean = np.mean([score.recall for score in evaluation.per_class])
    assert results["recall"].metric_value == pytest.approx(mean)
    assert {(one.task_type, one.dataset_type, one.dataset_split) for one in results.values()} == {
        ("image-classification", "digits", "test")
    }
    assert card.data.model_name == "digits v1"
    assert (card.data.pipeline_tag, card.data.datasets) == ("image-classification", ["digits"])


def test_a_card_of_a_version_goes_to_a_file_and_never_over_another_one(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["share", "card", "digits", "--version", "1", "--store", str(model.store.root), "--out"]
    assert run_command([*words, str(tmp_path / "card.md")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'card.md'}\n"
    assert run_command([*words[:-1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["card"] == (tmp_path / "card.md").read_text(encoding="utf-8")
    (tmp_path / "notes.md").write_text("mine")
    assert run_command([*words, str(tmp_path / "notes.md")]) == 2
    assert "expected --out to be a new file, or one that holds MD" in capsys.readouterr().err
    assert (tmp_path / "notes.md").read_text() == "mine"


def test_a_card_is_made_from_what_is_left_and_its_texts_cannot_break_it(model: Model):
    registry = Registry(model.store, "digits")
    hostile = ("<b>", "a|b", "`", "---", "[x](http://x)", "5", "6", "7", "8", "9")
    version = registry.register(
        model=model.version.model,
        evaluation="0" * 64,
        weights_digest=model.version.weights_digest,
        test_digest=model.version.test_digest,
        test_accuracy=0.5,
        train_accuracy=0.5,
        classes=hostile,
        image_shape=(8, 8),
        run="not in the ledger",
    )
    described = {
        "dataset": "digits",
        "version": 2,
        "format": "keras",
        "classes": list(hostile),
        "input": {"shape": [None, 8, 8], "range": [0, 16]},
        "test_accuracy": 0.5,
        "checked": {"images": 32, "largest_difference": 0.0},
        "files": {},
    }
    card = model_card(registry, version, described)
    assert "it classified 50.00% of its test images correctly. The details are no longer in the store." in card
    assert r"&lt;b&gt;, a\|b, \`, ---, \[x\]\(http\://x\), 5" in card
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "keras"
