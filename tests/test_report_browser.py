"""The report in a real browser, offline: nothing missing, nothing wider than the window, light and dark."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from storage import catalog, parquet
from storage.catalog import Dataset
from storage.records import (
    Check,
    ClassScore,
    Decision,
    Epoch,
    Evaluation,
    Failure,
    Mistake,
    Rule,
    RunRecord,
    Split,
    SplitName,
    Step,
    TrainedModel,
    Validation,
    to_json,
)
from storage.store import Store
from tasks.config import training_config
from tasks.embedded import digits
from tasks.publish import publish

pytestmark = pytest.mark.browser

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
LONG = "a name that goes on and on-" + "without-any-space" * 12


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium")
    if not path:
        pytest.skip("needs a browser: no chromium on PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reports of several kinds of run, by name."""
    store = Store(tmp_path_factory.mktemp("reports"))
    dataset = catalog.find("digits")
    complete = real_digits(store, dataset)
    names = tuple(f"{n} {LONG}" for n in range(10))
    long_names = dataclasses.replace(
        dataset, title=LONG, classes=names, citation=LONG, homepage=f"https://x.org/{LONG}"
    )
    many = synthetic(store, classes=62, shape=(64, 64))
    reports = {
        "complete": (dataset, complete),
        "refused": (dataset, refused(complete)),
        "long-names": (long_names, dataclasses.replace(complete, failure=Failure(LONG, LONG, 1), asked_by=LONG)),
        "many-classes": many,
        "nothing": (dataset, RunRecord("x", "digits", "", "command line", "default", {})),
    }
    return {
        name: publish.fn(store, dataset, dataclasses.replace(run, id=name)).record.html
        for name, (dataset, run) in reports.items()
    }


def real_digits(store: Store, dataset: Dataset) -> RunRecord:
    """Return a complete run over the embedded digits, judged by their nearest class centroid."""
    arrays = digits()
    train = written(store, dataset, "train", arrays["train-images"], arrays["train-labels"])
    test = written(store, dataset, "test", arrays["test-images"], arrays["test-labels"])
    means = np.stack([arrays["train-images"][arrays["train-labels"] == n].mean(axis=0).ravel() for n in range(10)])
    distance = ((arrays["test-images"].reshape(-1, 1, 64) - means) ** 2).sum(axis=2)
    near = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / 100)
    evaluation = evaluated(store, dataset, test, arrays["test-labels"], near / near.sum(axis=1, keepdims=True))
    return assembled(store, dataset, train, test, evaluation)


def synthetic(store: Store, classes: int, shape: tuple[int, int]) -> tuple[Dataset, RunRecord]:
    dataset = dataclasses.replace(
        catalog.find("digits"), classes=tuple(f"c{n}" for n in range(classes)), image_shape=shape
    )
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (400, *shape), dtype=np.uint8)
    labels = (np.arange(400) % classes).astype(np.uint8)
    train, test = (written(store, dataset, name, images, labels) for name in ("train", "test"))
    evaluation = evaluated(store, dataset, test, labels, random.dirichlet(np.ones(classes), 400))
    return dataset, assembled(store, dataset, train, test, evaluation)


def written(store: Store, dataset: Dataset, name: SplitName, images: np.ndarray, labels: np.ndarray) -> Split:
    folder = store.root / f"{len(dataset.classes)}" / name
    folder.mkdir(parents=True)
    split = Split(folder, name, len(labels), dataset.image_shape, len(dataset.classes), "5" * 64, {})
    with parquet.Writer(split.file, dataset.image_shape, dataset.classes) as writer:
        writer.write(images, labels)
        writer.close({"image_shape": dataset.image_shape})
    return split


def evaluated(store: Store, dataset: Dataset, test: Split, labels: np.ndarray, probability: np.ndarray) -> Evaluation:
    folder = store.root / f"{len(dataset.classes)}" / "evaluation"
    folder.mkdir()
    predicted, count = probability.argmax(axis=1).astype(np.uint8), len(dataset.classes)
    np.savez(folder / "predictions.npz", predicted=predicted, probability=probability.astype(np.float32))
    confusion = np.zeros((count, count), int)
    np.add.at(confusion, (labels, predicted), 1)
    recall = confusion.diagonal() / np.maximum(confusion.sum(axis=1), 1)
    wrong = np.flatnonzero(predicted != labels)[:25]
    correct = int((predicted == labels).sum())
    return Evaluation(
        folder,
        "7" * 64,
        test.digest,
        len(labels),
        correct,
        correct / len(labels),
        0.87,
        0.93,
        0.3456,
        tuple(
            ClassScore(n, name, int(confusion[n].sum()), 0.9, float(recall[n]), 0.9)
            for n, name in enumerate(dataset.classes)
        ),
        tuple(tuple(row) for row in confusion.tolist()),
        tuple(Mistake(int(r), int(labels[r]), int(predicted[r]), float(probability[r].max())) for r in wrong),
    )


def assembled(store: Store, dataset: Dataset, train: Split, test: Split, evaluation: Evaluation) -> RunRecord:
    folder = store.root / f"{len(dataset.classes)}" / "model"
    folder.mkdir()
    model = TrainedModel(folder, "7" * 64, 6460, 1293, 144, 30, 21, 0.05, 0.99)
    epochs = [Epoch(n, 0.01, 2 / n, 1 - 0.5 / n, 2.2 / n + n / 900, 1 - 0.6 / n, 0.1) for n in range(1, 31)]
    model.history.write_text("".join(json.dumps(to_json(epoch)) + "\n" for epoch in epochs), encoding="utf-8")
    check = Check(
        "test",
        "images that repeat an earlier one",
        "e",
        "digest",
        "at most 1.00%",
        "1.39%",
        "warning",
        False,
        tuple(range(0, 100, 7)),
    )
    holds = dataclasses.replace(check, name="every label names a class", severity="critical", passed=True, rows=())
    rule = Rule("more test rows right than champion v3", "more than 326 of 360", "324 of 360", False)
    decision = Decision("kept", "kept champion v3: candidate v4, net -2 of 360 test rows", 4, 3, 3, (rule,))
    return RunRecord(
        "x",
        "digits",
        "2026-05-02T09:00:13+00:00",
        "deployment retrain/digits",
        "default",
        training_config(dataset).model_dump(mode="json"),
        (
            Step("decode train", "d" * 32, "1,437 images of 8×8", 0.04, True, "nothing changed"),
            Step("train", "e" * 32, "30 epochs, best 21", 4.2, False, "learning_rate 0.001 → 0.01"),
        ),
        (),
        train,
        test,
        Validation(folder, True, "8" * 64, (check, holds), {}),
        None,
        model,
        evaluation,
        dataclasses.replace(evaluation, accuracy=0.906),
        decision,
    )


def refused(run: RunRecord) -> RunRecord:
    bad = Check("train", "every label names a class", "e", "label", "0 to 9", "0 to 37", "critical", False, (4, 11, 77))
    return dataclasses.replace(
        run,
        model=None,
        evaluation=None,
        champion_evaluation=None,
        decision=None,
        validation=Validation(Path(), False, "8" * 64, (bad,), {}),
        failure=Failure("ValidationFailed", "digits: expected labels from 0 to 9; row 4 is 37; correct the archive", 3),
    )


OVERFLOWING = """
() => [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('.skip')
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 120))
"""
CONTRAST = """
() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const over = colours => {
    canvas.clearRect(0, 0, 1, 1);
    for (const c of colours) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = rgb => { const [r, g, b] = rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92
    : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const bad = [];
  for (const e of document.querySelectorAll('main *, header *, footer *')) {
    if (e.closest('svg') || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const behind = [];
    for (let p = e; p; p = p.parentElement) behind.unshift(getComputedStyle(p).backgroundColor);
    const [a, b] = [light(over(behind)), light(over([...behind, getComputedStyle(e).color]))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) bad.push([ratio.toFixed(2), e.outerHTML.slice(0, 120)]);
  }
  return bad;
}
"""


WINDOWS = [
    *itertools.product(["complete", "refused"], [375, 768, 1280], ["light", "dark"]),
    *itertools.product(["long-names", "many-classes", "nothing"], [375], ["light"]),
    *itertools.product(["long-names", "many-classes", "nothing"], [1280], ["dark"]),
]


@pytest.mark.parametrize(("name", "width", "scheme"), WINDOWS)
def test_report_in_a_browser(
    browser: Any, pages: dict[str, Path], tmp_path: Path, name: str, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    problems: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(pages[name].as_uri())
    page.screenshot(path=tmp_path / f"{name}-{width}-{scheme}.png", full_page=True)
    assert problems == []
    assert [url for url in requests if not url.startswith("data:")] == [pages[name].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(CONTRAST) == []
    assert page.locator("h1").count() == 1
    assert page.locator("h2").count() >= (1 if name == "nothing" else 4)
    context.close()


def test_pictures_are_drawn(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["complete"].as_uri())
    sprite = page.locator(".s-examples .sprite").first
    assert sprite.bounding_box()["width"] == 64
    levels = np.asarray(Image.open(io.BytesIO(sprite.screenshot())).convert("L"))
    assert levels.max() - levels.min() > 200, "the sheet of examples is not shown"
    assert page.locator("figure svg").count() == 4
    page.close()


def test_keyboard_reaches_the_result_first(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["complete"].as_uri())
    page.keyboard.press("Tab")
    focused = page.evaluate("[document.activeElement.textContent, document.activeElement.getBoundingClientRect().left]")
    assert focused[0] == "Skip to the result"
    assert focused[1] >= 0
    page.close()


def test_print_shows_everything_on_white(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(pages["complete"].as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.evaluate(CONTRAST) == []
    page.close()
