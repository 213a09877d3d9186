"""`idxflow drift`: new images of every kind against a real champion, its answer, exit codes, page, and remedies."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.commands.cli import run_command
from storage.prediction_log import Answers, LogOptions, PredictionLog
from storage.store import Store
from tasks.drifting import reading
from tasks.serving.image_files import ImageOptions
from tests.conftest import bars, write_tiny
from tests.support.archives import write_archives
from tests.support.runs import whole_run

SHAPE = (9, 7)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny`, and a store with its champion."""
    folder = tmp_path_factory.mktemp("ready")
    store = Store(folder / "store")
    store.prepare()
    whole_run(store, write_tiny(folder, train=600, test=150).manifest, epochs=8, published=False)
    return folder


@pytest.fixture
def home(ready: Path, tmp_path: Path, monkeypatch) -> Path:
    """An empty folder to be in, with the store in the environment."""
    monkeypatch.setenv("IDXFLOW_STORE", str(ready / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


Ask = Callable[..., dict]


@pytest.fixture
def ask(home: Path, ready: Path, capsys) -> Ask:
    """Ask for the drift of images, and return the JSON answer, with the exit code and what was said added."""

    def call(*words: str, manifest: Path = ready / "tiny.toml") -> dict:
        code = run_command(["drift", "tiny", *words, "--dataset-file", str(manifest), "--json"])
        printed = capsys.readouterr()
        return {**json.loads(printed.out), "code": code, "said": printed.err}

    return call


def new(rows: int = 150, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    arrays = bars(rows, 1, 3, SHAPE, seed)
    return arrays["train-images"], arrays["train-labels"]


def saved(name: str, array: np.ndarray) -> str:
    Path(name).write_bytes(idx_bytes(array))
    return name


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def pictures(folder: str, images: np.ndarray, labels: np.ndarray | None = None) -> str:
    for number, image in enumerate(images):
        place = Path(folder, f"bar {labels[number]}" if labels is not None else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:03}.png")
    return folder


def test_images_like_those_of_the_training_are_within_the_limits(ask: Ask):
    answer = ask(saved("new.idx", new()[0]))
    assert (answer["code"], answer["drifted"], answer["images"], answer["version"]) == (0, False, 150, 1)
    assert answer["sentence"] == (
        "within the limits: 150 images like those that v1 of tiny was trained on, with none of 18 tests beyond its "
        "limit"
    )
    assert (answer["page"], list(Path().glob("*.html"))) == (None, [])


def test_the_log_of_predictions_is_a_source(ask: Ask, home: Path, ready: Path):
    few = ask("log")
    assert few["code"] == 3
    assert "expected at least 100 images to compare" in few["error"]["sentence"]
    assert "of which `idxflow serve --log-images` keeps the images" in few["error"]["sentence"]
    log, images = PredictionLog(Store(ready / "store"), LogOptions(images=True)), new()[0]
    ids = [str(row) for row in range(len(images))]
    answers = np.zeros(len(images), np.uint8), np.ones(len(images), np.float32)
    log.add("tiny", Answers(ids, datetime.now(UTC), images, *answers, 1))
    log.flush()
    expected, answer = ask(saved("new.idx", images)), ask("log")
    assert answer["from"] == "log"
    assert {**answer, "from": ""} == {**expected, "from": ""}


def test_every_kind_of_source_gives_the_same_answer(ask: Ask, home: Path):
    images, labels = new()
    file = ask(saved("new.idx", images), "--labels", saved("labels.idx", labels))
    write_archives(home / "idx", {"train-images": images, "train-labels": labels})
    np.savez("new.npz", images=images)
    kinds = [ask(pictures("by-class", images, labels)), ask(str(home / "idx"))]
    assert all(kind["tests"][0]["name"] for kind in kinds)
    # A folder for each class is read class by class: the classifier divides the images in another way.
    for kind in kinds:
        assert effects(kind) == pytest.approx(effects(file))
    flat, packed = ask(pictures("flat", images)), ask("new.npz")
    assert effects(flat) == effects(packed)
    assert effects(flat).keys() == effects(file).keys() - {("labels", "Cohen's w")}
    assert (flat["most"][0]["file"], packed["most"][0]["file"]) == (f"{flat['most'][0]['row']:03}.png", None)


def test_a_remark_on_many_pictures_is_said_once(home: Path):
    folder = pictures("scans", new(4)[0])
    Image.new("RGB", SHAPE[::-1], "red").save(Path(folder, "004.png"))
    said: list[str] = []
    options = ImageOptions(SHAPE, (0, 16))
    for _ in reading.new_images(Path(folder), None, options, reading.Naming(("a", "b", "c")), said.append).blocks:
        pass
    ranges, colour = said
    assert ranges.startswith("scans/000.png has pixels from ")
    assert ranges.endswith("--scale maps 0-255 to that range; the same holds for 4 more pictures")
    assert colour.startswith("scans/004.png is a colour image")
    assert "more picture" not in colour


def effects(answer: dict) -> dict[tuple[str, str], float]:
    return {(test["name"], test["measure"]): test["effect"] for test in answer["tests"] if test["measure"] != "AUC"}


def test_drift_has_an_exit_code_of_its_own_and_a_page_with_what_differs_most(home: Path, ready: Path, capsys):
    images, _ = new()
    images[:60] = 255 - images[:60]
    words = ["drift", "tiny", saved("new.idx", images), "--dataset-file", str(ready / "tiny.toml")]
    assert run_command(words) == 6
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].startswith("drifted: 150 images unlike those that v1 of tiny was trained on, with ")
    assert printed[-1] == f"pictures {home / 'tiny-drift.html'}"
    assert sum(line.startswith(("within  ", "beyond  ")) for line in printed[:-2]) == 18
    # The names are a column.
    assert all(line[25:27] == "  " and line[27] != " " for line in printed[:-2])
    assert all(not line.endswith("p 0") for line in printed[:-2])
    page = (home / "tiny-drift.html").read_text()
    assert page.count('role="img"') == 20 + 20 + 2
    assert "http" not in page.replace("http-equiv", "")
    # Once more over its own file, and to another place.
    assert run_command([*words, "--json"]) == 6
    most = json.loads(capsys.readouterr().out)["most"]
    assert {one["row"] for one in most} <= set(range(60))
    assert run_command([*words, "--out", "other.html"]) == 6


def test_labels_are_those_of_the_label_files(home: Path):
    images, _ = new(3)
    saved("new.idx", images)
    saved("labels.idx", np.array([9, 5, 7], np.uint8))
    naming = reading.Naming(("nine", "five", "seven"), (9, 5, 7))
    found = reading.new_images(Path("new.idx"), Path("labels.idx"), ImageOptions(SHAPE), naming, print)
    assert [labels.tolist() for _, labels in found.blocks] == [[0, 1, 2]]
    pictures("by-value", images, np.array([9, 5, 7]))
    for value in (9, 5, 7):
        Path("by-value", f"bar {value}").rename(Path("by-value", str(value)))
    found = reading.new_images(Path("by-value"), None, ImageOptions(SHAPE), naming, print)
    assert sorted(label for _, labels in found.blocks for label in labels) == [0, 1, 2]


def test_labels_that_are_no_classes_are_left_out(ask: Ask):
    images, labels = new()
    folder = pictures("by-day", images, labels)
    Path(folder, "bar 1").rename(Path(folder, "monday"))
    answer = ask(folder)
    assert "has the label 'monday', which is no class of the champion: the labels are not compared" in answer["said"]
    assert "labels" not in {test["name"] for test in answer["tests"]}


def test_the_limits_are_those_of_the_manifest(ask: Ask, ready: Path, home: Path):
    images, _ = new()
    images = np.clip(images.astype(int) + 25, 0, 255).astype(np.uint8)
    assert ask(saved("brighter.idx", images))["code"] == 6
    most = ("measure_distance", "measure_stability", "mean_image", "told_apart", "confidence", "predicted_shares")
    limits = "".join(f"{name} = 1.0\n" for name in most).replace("stability = 1.0", "stability = 100.0")
    manifest = home / "tiny.toml"
    manifest.write_text((ready / "tiny.toml").read_text() + f"[drift]\n{limits.replace('image = 1.0', 'image = 9.0')}")
    assert ask("brighter.idx", manifest=manifest)["code"] == 0


@pytest.mark.remedies("tasks.drifting.reading:check_enough")
def test_too_few_images_are_refused_until_the_manifest_allows_them(ask: Ask, ready: Path, home: Path):
    few = ask(saved("few.idx", new(40)[0]))
    assert few["code"] == 3
    assert few["error"]["sentence"] == (
        "few.idx: expected at least 100 images to compare, as `min_images` of [drift] says; found 40; give more, or "
        "lower it in the manifest"
    )
    manifest = home / "tiny.toml"
    manifest.write_text((ready / "tiny.toml").read_text() + "[drift]\nmin_images = 40\n")
    assert ask("few.idx", manifest=manifest)["code"] == 0


@pytest.mark.remedies(
    "tasks.drifting.reading:new_images",
    "tasks.drifting.reading:new_images:2",
    "tasks.drifting.reading:_labelled",
    "tasks.drifting.reading:_labelled:2",
    "tasks.drifting.reading:_classes",
)
def test_wrong_paths_and_labels_are_named_and_correcting_them_helps(ask: Ask):
    images, labels = new()
    saved("new.idx", images)
    assert ask("nwe.idx")["error"]["sentence"].endswith("found nothing (did you mean new.idx?); correct the path")
    folder = pictures("flat", images)
    beside = ask(folder, "--labels", saved("labels.idx", labels))
    assert beside["error"]["sentence"].endswith("leave --labels out")
    assert ask(folder)["code"] == 0
    wrong = {
        "images.idx": (images, "expected labels, one a row; found 3 dimensions; give the file of labels"),
        "short.idx": (labels[:-1], "expected as many labels as new.idx has images, 150; found 149; give the file"),
        "other.idx": (labels + 1, "expected labels that are classes of the champion, such as 0; found 3 in row 2; "),
    }
    for name, (array, said) in wrong.items():
        refused = ask("new.idx", "--labels", saved(name, array))
        assert refused["code"] == 3
        assert said in refused["error"]["sentence"]
    assert ask("new.idx", "--labels", "labels.idx")["code"] == 0


@pytest.mark.remedies("tasks.drifting.reading:_recognized")
def test_what_needs_options_of_dataset_add_can_be_added_and_then_compared(ask: Ask, capsys):
    images, labels = new()
    rows = np.column_stack([labels, images.reshape(len(images), -1)])
    header = ",".join(["day", *(f"pixel{n}" for n in range(63))])
    np.savetxt("new.csv", rows, "%d", ",", header=header, comments="")
    refused = ask("new.csv")
    assert refused["code"] == 3
    assert refused["error"]["sentence"].endswith(
        "(an option of `idxflow dataset add`, which makes IDX files of it: give their folder)"
    )
    added = ["dataset", "add", "new", "new.csv", "--label-column", "day", "--size", "9x7"]
    added += ["--test-fraction", "0.2", "--as", "added"]
    assert run_command(added) == 0, capsys.readouterr().err
    capsys.readouterr()
    compared = ask("added")
    assert compared["code"] == 0, compared


@pytest.mark.remedies("flows.drift:limits_of", "flows.drift:limits_of:2")
def test_the_manifest_has_to_be_known_and_that_of_the_data_set(home: Path, ready: Path, capsys):
    saved("new.idx", new()[0])
    words = ["drift", "tiny", "new.idx", "--json"]
    assert run_command(words) == 2
    assert "give it: --dataset-file FILE" in capsys.readouterr().out
    (home / "other.toml").write_text((ready / "tiny.toml").read_text().replace('"tiny"', '"other"'))
    assert run_command([*words, "--dataset-file", "other.toml"]) == 2
    assert "expected the manifest of tiny; found that of other; give the other one" in capsys.readouterr().out
    assert run_command([*words, "--dataset-file", str(ready / "tiny.toml")]) == 0


@pytest.mark.remedies("tasks.drifting.champion:trained_on")
def test_a_champion_whose_training_data_is_gone_needs_a_run(tmp_path: Path, monkeypatch, capsys):
    store = Store(tmp_path / "store")
    store.prepare()
    manifest = write_tiny(tmp_path).manifest
    job = whole_run(store, manifest, published=False)
    monkeypatch.chdir(tmp_path)
    saved("new.idx", new()[0])
    words = ["drift", "tiny", "new.idx", "--dataset-file", str(manifest), "--store", str(store.root), "--json"]
    for file in (*job.record.train.entry.path("").glob("*"),):
        file.unlink()
    assert run_command(words) == 2
    assert "run the data set again, so that the next champion has it" in capsys.readouterr().out
    whole_run(store, manifest, published=False)
    assert run_command(words) in (0, 6)
