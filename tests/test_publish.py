"""The report of every kind of run: complete, cut short, hostile, tiny and large."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

from storage import errors, parquet
from storage.catalog import Dataset
from storage.errors import IdxflowError
from storage.ledger import Ledger
from storage.records import (
    Archive,
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
from tasks import artifacts, gate, rendering, report
from tasks.config import TrainingConfig
from tasks.publish import compose, publish
from tasks.rendering import html, markdown, metrics

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "rect", "use", "image"}
CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
HOSTILE = (
    "<script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "https://evil.example/ www.evil.example",
    "</style></title><b>",
    "`code` **bold** | cell\n\n# heading\n- item",
    "{{ 7 * 7 }} {% raw %}",
    "👩‍🔬 é 中文 \u202egnp.exe \x00\x1b[31m",
    "x" * 5000,
)


# --- what is reported ---------------------------------------------------------------------------------------------


def a_dataset(folder: Path, classes: int = 3, shape: tuple[int, int] = (9, 7), **changes: Any) -> Dataset:
    values: dict[str, Any] = {
        "name": "tiny",
        "title": "Tiny bars",
        "classes": tuple(f"bar {n}" for n in range(classes)),
        "image_shape": shape,
        "archives": (),
        "manifest": folder / "tiny.toml",
        "licence": "CC0",
        "homepage": "https://example.org/bars?a=1&b=2",
        "citation": "A. Author: Bars, 2026.",
    }
    return Dataset(**(values | changes))


def a_split(store: Store, dataset: Dataset, name: SplitName, rows: int) -> Split:
    folder = store.root / "made" / name
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(len(name))
    images = random.integers(0, 256, (rows, *dataset.image_shape), dtype=np.uint8)
    split = Split(
        folder, name, rows, dataset.image_shape, len(dataset.classes), name * 8, {f"{name}-images": "ab" * 32}
    )
    with parquet.Writer(split.file, dataset.image_shape, dataset.classes) as writer:
        writer.write(images, (np.arange(rows) % len(dataset.classes)).astype(np.uint8))
        writer.close({"image_shape": dataset.image_shape, "rows": rows})
    return split


def a_model(store: Store, epochs: int, held_out: bool = True) -> TrainedModel:
    folder = store.root / "made" / "model"
    folder.mkdir(parents=True, exist_ok=True)
    history = [
        Epoch(n, 0.001, 1 / n, 1 - 0.5 / n, 1.1 / n if held_out else None, 1 - 0.6 / n if held_out else None, 0.1)
        for n in range(1, epochs + 1)
    ]
    model = TrainedModel(folder, "we" * 32, 1234, 108, 12 if held_out else 0, epochs, epochs, 0.123456, 0.987654321)
    model.history.write_text("".join(json.dumps(to_json(epoch)) + "\n" for epoch in history), encoding="utf-8")
    return model


def an_evaluation(store: Store, dataset: Dataset, test: Split) -> Evaluation:
    folder = store.root / "made" / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    count = len(dataset.classes)
    labels = parquet.labels(test.file)
    next_class = (labels.astype(int) + 1) % count
    predicted = np.where(np.arange(test.rows) % 5 == 1, next_class, labels).astype(np.uint8)
    probability = np.full((test.rows, count), 0.1 / max(count - 1, 1), np.float32)
    probability[np.arange(test.rows), predicted] = 0.9
    np.savez(folder / "predictions.npz", predicted=predicted, probability=probability)
    confusion = np.zeros((count, count), int)
    np.add.at(confusion, (labels, predicted), 1)
    wrong = np.flatnonzero(predicted != labels)[:25]
    correct = int((predicted == labels).sum())
    scores = (
        ClassScore(n, dataset.classes[n], int(confusion[n].sum()), 0.8, 0.9 - n / 1000, 0.85) for n in range(count)
    )
    return Evaluation(
        folder,
        "we" * 32,
        test.digest,
        test.rows,
        correct,
        correct / test.rows,
        0.7123456,
        0.8765432,
        0.345678,
        tuple(scores),
        tuple(tuple(row) for row in confusion.tolist()),
        tuple(Mistake(int(row), int(labels[row]), int(predicted[row]), 0.9) for row in wrong),
    )


def some_checks(failing: bool) -> tuple[Check, ...]:
    return (
        Check("train", "rows", "row_count", "", "120", "120", "critical", True),
        Check("test", "repeats", "unique", "digest", "at most 1.00%", "3.33%", "warning", False, (1, 7)),
        Check(
            "train", "labels name a class", "between", "label", "0 to 2", "0 to 37", "critical", not failing, (4, 11)
        ),
    )


def a_run(
    store: Store,
    dataset: Dataset,
    rows: tuple[int, int] = (120, 62),
    epochs: int = 5,
    failing: bool = False,
    held_out: bool = True,
) -> RunRecord:
    train, test = a_split(store, dataset, "train", rows[0]), a_split(store, dataset, "test", rows[1])
    counts: dict[str, tuple[int, ...]] = {
        split.name: tuple(np.bincount(parquet.labels(split.file)).tolist()) for split in (train, test)
    }
    evaluation = an_evaluation(store, dataset, test)
    archive = Archive(
        store.root / "made", "train-images", "train.gz", 123456, "ab" * 32, "https://example.org/train.gz"
    )
    return RunRecord(
        id="20260502-090013-3f2a",
        dataset=dataset.name,
        started="2026-05-02T09:00:13+00:00",
        asked_by="command line",
        profile="default",
        config=TrainingConfig.model_validate({"epochs": epochs}).model_dump(mode="json"),
        steps=(
            Step("decode train", "a" * 32, "120 images", 0.123456, True, "nothing changed"),
            Step("train", "b" * 32, "5 epochs", 75.4321, False, "learning_rate 0.001 → 0.003"),
        ),
        archives=(archive,),
        train=train,
        test=test,
        validation=Validation(store.root, not failing, "va" * 32, some_checks(failing), counts),
        model=a_model(store, epochs, held_out),
        evaluation=evaluation,
        champion_evaluation=dataclasses.replace(evaluation, accuracy=0.5),
        decision=Decision(
            "promoted",
            "promoted v2: net +3 of 62 test rows against v1",
            2,
            2,
            1,
            (Rule("test accuracy", "at least 50.00%", "79.03%", True),),
        ),
    )


STAGES: dict[str, tuple[str, ...]] = {
    "start": (
        "archives",
        "steps",
        "train",
        "test",
        "validation",
        "model",
        "evaluation",
        "champion_evaluation",
        "decision",
    ),
    "fetch": ("train", "test", "validation", "model", "evaluation", "champion_evaluation", "decision"),
    "decode": ("test", "validation", "model", "evaluation", "champion_evaluation", "decision"),
    "validate": ("model", "evaluation", "champion_evaluation", "decision"),
    "train": ("evaluation", "champion_evaluation", "decision"),
    "evaluate": ("champion_evaluation", "decision"),
    "decide": (),
}


def cut_at(run: RunRecord, stage: str, failure: Failure | None) -> RunRecord:
    """Return `run` as if it had ended in `stage`."""
    empty = {name: () if name in ("archives", "steps") else None for name in STAGES[stage]}
    return dataclasses.replace(run, failure=failure, **empty)  # type: ignore[arg-type]


# --- what a page must be ------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Reads a page strictly: every element that is opened is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.headings: list[tuple[int, str]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"attribute twice in {tag}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text.append(data)
        if self._open and re.fullmatch("h[1-6]", self._open[-1]):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def check_page(text: str, homepage: str = "") -> Page:
    """Read a page and check all that holds for every page."""
    page = Page(text)
    check_harmless(page, text, homepage)
    check_accessible(page)
    assert len(text.encode()) < rendering.MAX_HTML_BYTES
    for raw in ("None", "nan", "Undefined", "dataclass", "PosixPath", "object at 0x", "np.float"):
        assert raw not in page.words(), f"raw {raw} on the page"
    assert not re.search(r"\d\.\d{7,}", page.words()), "a number that is not rounded"
    return page


def check_harmless(page: Page, text: str, homepage: str) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "img", "foreignobject", "animate", "b2"}
    policies = [a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv")]
    assert policies == [CSP]
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{name} on {tag}"
            assert not re.match(r"\s*(javascript|vbscript):", value, re.IGNORECASE)
            if name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
                check_address(tag, attributes, value, homepage)
    assert set(re.findall(r"url\((.{0,5})", text)) <= {"data:", "#loss", "#accu", "#rate", "#seco", "#past"}
    assert "@import" not in text


def check_address(tag: str, attributes: Mapping[str, str], value: str, homepage: str) -> None:
    if value.startswith("http"):
        assert tag == "a"
        assert value == homepage
        assert attributes["rel"] == "noopener noreferrer"
    else:
        assert value.startswith(("#", "data:"))


def check_accessible(page: Page) -> None:
    identities = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identities) == len(set(identities)), "an identifier twice"
    levels = [level for level, _ in page.headings]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
    assert all(title.strip() for _, title in page.headings)
    for tag, a in page.elements:
        assert tag != "th" or a.get("scope") in ("col", "row")
        assert a.get("role") not in ("img", "region") or a.get("aria-label") or a.get("aria-labelledby")
        assert a.get("aria-labelledby", "verdict") in identities
        if tag == "a" and a["href"].startswith("#"):
            assert a["href"][1:] in identities
    assert next(a for tag, a in page.elements if tag == "html")["lang"] == "en"


def check_markdown(text: str, homepage: str = "") -> list[str]:
    """Read Markdown with a reader that lets every link through; return its headings."""
    assert len(text.encode()) < rendering.MAX_MARKDOWN_BYTES
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    reader.validateLink = lambda url: True  # type: ignore[method-assign]
    tokens = reader.parse(text)
    inline = [child for token in tokens for child in token.children or []]
    assert not {"html_block", "html_inline"} & {token.type for token in (*tokens, *inline)}
    assert {str(t.attrGet("href")) for t in inline if t.type == "link_open"} <= {homepage}
    assert all(str(t.attrGet("src")).startswith("data:image/svg+xml;base64,") for t in inline if t.type == "image")
    # GitHub's flavour makes links of bare addresses.
    bare = re.sub(r"\]\(<[^>]*>\)|^```$.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"(?<!\\):(?=//)|www(?<!\\)\.", bare)
    return [tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open"]


def both(store: Store, dataset: Dataset, run: RunRecord) -> tuple[Page, str]:
    """Return the page and the Markdown of a run, after the checks that hold for all of them."""
    values, pictures = compose(store, dataset, run)
    text = markdown(values, pictures, "tiny/7-reports/x/report.html")
    homepage = rendering.link(values["data"]["homepage"]) if values["data"] else ""
    check_markdown(text, homepage)
    return check_page(html(values, pictures), homepage), text


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return a_dataset(tmp_path)


# --- the tests ----------------------------------------------------------------------------------------------------


def test_publish_writes_html_and_json_once(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    done = publish.fn(store, dataset, run)
    assert done.record.folder == store.entries("tiny", "publish") / run.id
    assert done.step.summary == f"tiny/7-reports/{run.id}/report.html"
    check_page(done.record.html.read_text("utf-8"), dataset.homepage)
    values = json.loads(done.record.json.read_text("utf-8"))
    assert values["schema"] == report.SCHEMA == 1
    assert values == compose(store, dataset, run)[0]
    assert publish.fn(store, dataset, run).step.reused


def test_publish_shows_report_and_metrics_under_stable_keys(
    store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, Any] = {}
    monkeypatch.setattr(artifacts, "show_markdown", lambda name, text, description: shown.update({name: text}))
    monkeypatch.setattr(artifacts, "show_table", lambda name, rows, description: shown.update({name: rows}))
    publish.fn(store, dataset, a_run(store, dataset))
    assert set(shown) == {"report-tiny", "metrics-tiny"}
    assert check_markdown(shown["report-tiny"], dataset.homepage)[0].startswith("Promoted")
    assert shown["metrics-tiny"][0] == {
        "class": "bar 2",
        "rows": 20,
        "recall": "89.80%",
        "precision": "80.00%",
        "f1": "85.00%",
    }


def test_the_same_run_gives_the_same_bytes(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    first, second = (compose(store, dataset, run) for _ in range(2))
    assert html(*first) == html(*second)
    assert markdown(*first) == markdown(*second)
    assert first[0] == second[0]


def test_a_complete_run_has_every_section_in_order(store: Store, dataset: Dataset) -> None:
    page, text = both(store, dataset, a_run(store, dataset))
    titles = [title for level, title in page.headings if level == 2]
    assert titles == [
        "The data",
        "Checks of the data",
        "Training",
        "Test results",
        "Decision",
        "Time",
        "Environment and origin",
    ]
    assert page.headings[0] == (1, "Version 2 is the new champion")
    for said in (
        "79.03%",
        "95% interval 71.23% to 87.65%",
        "98.77%",
        "v2: net +3",
        "0.12 s",
        "1 min 15 s",
        "learning_rate 0.001 → 0.003",
        "idxflow run --dataset-file tiny.toml",
    ):
        assert said in page.words(), said
    for said in ("79.03%", "71.23% to 87.65%", "learning\\_rate 0.001 → 0.003"):
        assert said in text


def test_every_class_and_mistake_is_pictured(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    page, _ = both(store, dataset, run)
    labels = [a["aria-label"] for tag, a in page.elements if a.get("class") == "sprite"]
    assert [f"an example of class {name}" for name in dataset.classes] == labels[:3]
    assert run.evaluation
    assert sum(label.startswith("row") and "taken for" in label for label in labels) == len(run.evaluation.mistakes)


def test_pictures_are_the_rows_they_say(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    values, pictures = compose(store, dataset, run)
    assert run.train
    assert run.test
    train, _ = parquet.read(run.train.file)
    test, _ = parquet.read(run.test.file)
    assert pictures.examples is not None
    assert pictures.mistakes is not None
    np.testing.assert_array_equal(pictures.examples, train[[0, 1, 2]])
    np.testing.assert_array_equal(pictures.mistakes, test[[m["row"] for m in values["test"]["mistakes"]]])
    position = next(n for n, check in enumerate(values["checks"]["checks"]) if check["name"] == "repeats")
    np.testing.assert_array_equal(pictures.checks[position], test[[1, 7]])
    assert values["checks"]["checks"][position]["labels"] == ["bar 1", "bar 1"]


FAILURES = [
    ("start", "ConfigError", "The configuration cannot be used"),
    ("fetch", "DigestMismatch", "An archive is not the published one"),
    ("fetch", "SourceUnavailable", "No source could be read"),
    ("decode", "FormatError", "An archive is damaged or of another form"),
    ("validate", "ValidationFailed", "The data breaks its contract"),
    ("validate", "TrainingFailed", "Training did not succeed"),
    ("train", "StoreError", "The store cannot be used"),
    ("evaluate", "DamagedEntry", "A file of the store is damaged"),
    ("decide", "KeyError", "An unexpected error"),
]


@pytest.mark.parametrize(("stage", "kind", "headline"), FAILURES)
def test_a_failed_run_leads_with_what_went_wrong(
    store: Store, dataset: Dataset, stage: str, kind: str, headline: str
) -> None:
    code = getattr(errors, kind, IdxflowError).exit_code
    failure = Failure(kind, "tiny: expected 9 things; found 8; count again", code)
    run = cut_at(a_run(store, dataset, failing=kind == "ValidationFailed"), stage, failure)
    page, text = both(store, dataset, run)
    assert page.headings[0] == (1, headline)
    words = page.words()
    assert words.index(headline) < words.index("expected 9 things") < words.index("What to do")
    assert "What to do" in text
    outcome = "refused" if code == 3 else "failed"
    assert f"# {outcome.capitalize()} · {headline}" in text
    sections = {a.get("id") for tag, a in page.elements if tag == "section"}
    assert ("decision" in sections) == (stage == "decide")
    assert ("test" in sections) == (stage in ("evaluate", "decide"))
    values = compose(store, dataset, run)[0]
    assert values["verdict"]["outcome"] == outcome
    assert values["verdict"]["failure"] == {"kind": kind, "exit_code": code}


def test_refused_data_names_and_pictures_its_rows_first(store: Store, dataset: Dataset) -> None:
    failure = Failure("ValidationFailed", "tiny: 2 labels are outside 0 to 2", 3)
    page, text = both(store, dataset, cut_at(a_run(store, dataset, failing=True), "validate", failure))
    words = page.words()
    assert (
        words.index("observed 0 to 37; rows 4 · 11")
        < words.index("What to do")
        < words.index("120 images to learn from")
    )
    pictured = [a["aria-label"] for _, a in page.elements if a.get("class") == "sprite"]
    assert pictured[:2] == ["row 4 of train", "row 11 of train"]
    assert "This run did not reach: training, test, decision" in words
    assert "observed 0 to 37; rows 4 · 11" in text


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_run_that_was_cut_short_has_a_report(store: Store, dataset: Dataset, stage: str) -> None:
    page, _ = both(store, dataset, cut_at(a_run(store, dataset), stage, None))
    expected = "Version 2 is the new champion" if stage == "decide" else "No decision was made"
    assert page.headings[0] == (1, expected)


@pytest.mark.parametrize(
    ("outcome", "version", "champion", "headline"),
    [
        ("promoted", 1, 1, "Version 1 is the new champion"),
        ("kept", 3, 2, "The champion stays version 2"),
        ("unchanged", 2, 2, "Nothing changed since the last decision"),
        ("refused", None, 2, "The model is below a floor and was refused"),
    ],
)
def test_every_outcome(
    store: Store, dataset: Dataset, outcome: Any, version: int | None, champion: int, headline: str
) -> None:
    rules = (Rule("test accuracy", "at least 90.00%", "79.03%", outcome != "refused"),)
    decision = Decision(outcome, "said why", version, champion, None, rules)
    failure = Failure("ModelRefused", "said why", 5) if outcome == "refused" else None
    run = dataclasses.replace(a_run(store, dataset), decision=decision, failure=failure, champion_evaluation=None)
    page, _ = both(store, dataset, run)
    assert page.headings[0] == (1, headline)
    assert "Said why." in page.words()
    assert ("What to do" in page.words()) == (outcome == "refused")


def test_the_paired_comparison_is_shown(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    assert run.decision
    paired = gate.compared((9_400, 153, 147, 300), 350)
    decision = dataclasses.replace(run.decision, paired=paired, looks=3, policy="better")
    shown = dataclasses.replace(run, decision=decision)
    page, text = both(store, dataset, shown)
    said = (
        "Of 10,000 test images both models get 9,400 right, only this one 153, only the champion 147, neither 300: "
        "net +6, +0.06 points, 90% interval -0.23 to +0.35."
    )
    for words in (page.words(), text.replace("\\", "")):
        assert said in words
        assert "p 0.39 (McNemar, exact, one-sided)" in words
        assert "It is decision 3 on these test images" in words
    values = compose(store, dataset, shown)[0]["decision"]
    assert (values["paired"]["only_candidate"], values["looks"], values["policy"]) == (153, 3, "better")
    assert "both models get" not in both(store, dataset, run)[0].words()


def hostile_run(store: Store, text: str) -> tuple[Dataset, RunRecord]:
    """Return a run that has `text` wherever a record can hold one."""
    dataset = dataclasses.replace(
        a_dataset(store.root), title=text, licence=text, homepage=text, citation=text, classes=(text, "b" + text, "c")
    )
    run = a_run(store, dataset, epochs=1, failing=True)
    assert run.validation
    assert run.decision
    return dataset, dataclasses.replace(
        run,
        started=text,
        asked_by=text,
        profile=text,
        config={**run.config, text: text},
        steps=tuple(dataclasses.replace(s, name=text, summary=text, reason=text) for s in run.steps),
        archives=tuple(dataclasses.replace(a, file_name=text, source=text) for a in run.archives),
        validation=dataclasses.replace(
            run.validation,
            checks=tuple(dataclasses.replace(c, name=text, limit=text, observed=text) for c in run.validation.checks),
        ),
        decision=dataclasses.replace(run.decision, sentence=text, rules=(Rule(text, text, text, False),)),
    )


def structure(page: Page) -> list[str]:
    """Return the elements that do not depend on texts: a home page may be a link, a long name is a `span`
    with a title, and a hostile setting is one row more."""
    return [
        tag
        for tag, a in page.elements
        if tag not in ("a", "td", "tr", "th", "b") and not (tag == "span" and "title" in a)
    ]


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    """The report of the run that `hostile_run` is made from."""
    store = Store(tmp_path_factory.mktemp("harmless"))
    dataset = a_dataset(store.root)
    return both(store, dataset, a_run(store, dataset, epochs=1, failing=True))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_stay_texts(store: Store, harmless: tuple[Page, str], text: str) -> None:
    dataset, run = hostile_run(store, text)
    page, markdown_text = both(store, dataset, run)
    assert structure(page) == structure(harmless[0])
    assert len(check_markdown(markdown_text)) == len(check_markdown(harmless[1], "https://example.org/bars?a=1&b=2"))
    values = compose(store, dataset, run)[0]
    json.dumps(values, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_errors_stay_texts(store: Store, text: str) -> None:
    dataset, run = hostile_run(store, text)
    page, _ = both(store, dataset, cut_at(run, "validate", Failure(text, text, 3)))
    assert page.headings[0] == (1, "An unexpected error")


def test_lone_surrogates_and_control_characters_are_replaced(store: Store, dataset: Dataset) -> None:
    run = cut_at(a_run(store, dataset), "fetch", Failure("FormatError", "file \udcff\x00\x07 is bad", 3))
    done = publish.fn(store, dataset, run)
    for path in (done.record.html, done.record.json):
        text = path.read_text("utf-8")
        assert "file \ufffd\ufffd\ufffd is bad" in text
        assert "\x00" not in text


@pytest.mark.parametrize(
    ("address", "linked"),
    [
        ("https://example.org/a?b=1&c=2", True),
        ("http://example.org", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("//example.org", False),
        ("https://", False),
        ("ftp://example.org", False),
        ("https://example.org/ onclick=x", False),
        ('https://example.org/"><script>', False),
        ("", False),
        ("https://[::1", False),
        ("file:///etc/passwd", False),
    ],
)
def test_only_web_addresses_become_links(store: Store, tmp_path: Path, address: str, linked: bool) -> None:
    dataset = a_dataset(tmp_path, homepage=address)
    page, _ = both(store, dataset, cut_at(a_run(store, dataset), "decode", None))
    assert [a["href"] for tag, a in page.elements if tag == "a" and a["href"].startswith("http")] == [address] * linked


@pytest.mark.parametrize(
    ("classes", "shape", "rows"),
    [
        (2, (8, 8), (4, 3)),
        (10, (28, 28), (600, 200)),
        (62, (64, 64), (700, 400)),
        (256, (8, 8), (600, 300)),
        (3, (200, 120), (30, 20)),
        (1, (1, 1), (3, 2)),
    ],
)
def test_any_number_of_classes_and_image_size(
    store: Store, tmp_path: Path, classes: int, shape: tuple[int, int], rows: tuple[int, int]
) -> None:
    dataset = a_dataset(tmp_path, classes, shape)
    page, text = both(store, dataset, a_run(store, dataset, rows))
    sprites = [a for _, a in page.elements if a.get("class") == "sprite"]
    assert len(sprites) >= min(classes, 64), "the pictures were left out"
    assert "base64," in text, "the pictures were left out"


def test_one_epoch_without_held_out_rows(store: Store, dataset: Dataset) -> None:
    page, _ = both(store, dataset, a_run(store, dataset, epochs=1, held_out=False))
    assert "No rows were held out" in page.words()
    assert "epoch 1, kept" in page.words()


def test_first_run_has_no_champion_to_compare_with(store: Store, dataset: Dataset) -> None:
    decision = Decision("promoted", "promoted v1: the first model above the floors", 1, 1, None, ())
    run = dataclasses.replace(a_run(store, dataset), decision=decision, champion_evaluation=None)
    page, _ = both(store, dataset, run)
    assert "Against champion" not in page.words()
    assert "Champion before none" in page.words()


def test_what_cannot_be_read_is_left_out(store: Store, dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    run = a_run(store, dataset)
    assert run.train
    assert run.test
    assert run.model
    assert run.evaluation
    run.train.file.write_bytes(b"PAR1 no longer")
    run.test.file.unlink()
    run.model.history.write_text("{", encoding="utf-8")
    run.evaluation.file.write_bytes(b"PK")
    page, _ = both(store, dataset, run)
    assert not [a for _, a in page.elements if a.get("class") == "sprite"]
    assert "the history of this training cannot be read" in page.words().lower()
    assert "79.03%" in page.words()
    assert len([r for r in caplog.records if "left out" in r.message]) >= 4


def test_rows_that_are_not_there_are_named_without_pictures(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    assert run.validation
    checks = (Check("test", "odd", "e", "c", "l", "o", "warning", False, (1, 99_999)),)
    run = dataclasses.replace(run, validation=dataclasses.replace(run.validation, checks=checks))
    page, _ = both(store, dataset, run)
    assert "1 · 99,999" in page.words()


def test_report_names_no_folder_of_the_machine(store: Store, dataset: Dataset, tmp_path: Path) -> None:
    home = Path.home()
    said = f"cannot read {home}/secret/x.gz, {store.root}/tiny/2-splits/k/train.parquet and /srv/private/deep/y.gz"
    archive = Archive(tmp_path, "train-images", "x.gz", 1, "ab" * 32, f"{home}/data of mine/x.gz")
    run = dataclasses.replace(
        cut_at(a_run(store, dataset), "fetch", Failure("StoreError", said, 1)), archives=(archive,)
    )
    values, pictures = compose(store, dataset, run)
    for text in (html(values, pictures), markdown(values, pictures), json.dumps(values)):
        for private in (str(home), str(tmp_path), "secret", "private", "/srv"):
            assert private not in text
    assert "store/tiny/2-splits/k/train.parquet" in values["verdict"]["sentence"]
    assert "…/x.gz" in values["verdict"]["sentence"]


def test_earlier_runs_are_drawn_and_strange_ones_passed_over(store: Store, dataset: Dataset) -> None:
    ledger = Ledger(store, "tiny")
    for day in range(1, 41):
        run = f"2026{3 + day // 21:02d}{day % 21:02d}-000000-aaaa"
        ledger.append("runs", run, {"test_accuracy": 0.9, "state": "kept"})
    for run, strange in (("20260501-x", {"test_accuracy": "no", "state": []}), ("20270101-later", {"state": "kept"})):
        ledger.append("runs", run, strange)
    values, pictures = compose(store, dataset, a_run(store, dataset))
    assert len(values["past"]) == report.MAX_PAST
    assert values["past"][-2] == {"id": "20260501-x", "outcome": "undecided", "accuracy": None}
    assert values["past"][-1] == {"id": "20260502-090013-3f2a", "outcome": "promoted", "accuracy": 49 / 62}
    assert "past" in pictures.charts
    check_page(html(values, pictures), dataset.homepage)


def test_too_many_pictures_are_left_out_with_a_warning(
    store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values, pictures = compose(store, dataset, a_run(store, dataset))
    monkeypatch.setattr(rendering, "MAX_MARKDOWN_BYTES", 10_000)
    assert "base64" not in check_and_return(markdown(values, pictures), dataset)
    assert "left out the pictures" in caplog.text


def check_and_return(text: str, dataset: Dataset) -> str:
    check_markdown(text, dataset.homepage)
    return text


def test_metrics_without_a_test_are_empty(store: Store, dataset: Dataset) -> None:
    assert metrics(compose(store, dataset, cut_at(a_run(store, dataset), "decode", None))[0]) == []


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain, text: 1.5 %", "plain, text: 1.5 %"),
        ("a_b*c", "a\\_b\\*c"),
        ("- item", "\\- item"),
        ("1. item", "1\\. item"),
        ("1.5", "1.5"),
        ("# h", "\\# h"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("a|b\nc", "a\\|b c"),
        ("www.x.y", "www\\.x.y"),
        ("https://x", "https\\://x"),
        ("[x](y)", "\\[x\\]\\(y\\)"),
        ("\\", "\\\\"),
        ("me@x.y", "me\\@x.y"),
    ],
)
def test_markdown_is_escaped(text: str, escaped: str) -> None:
    assert rendering.escaped_markdown(text) == escaped


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1e-7, "1e−7"),
        (0.001, "0.001"),
        (0.30000000000000004, "0.3"),
        (True, "yes"),
        (None, "none"),
        ((50, 50), "50, 50"),
        ([], "none"),
        (60000, "60,000"),
        (50, "50"),
        ("tanh", "tanh"),
        (123456.789, "1.235e5"),
    ],
)
def test_settings_are_shown_for_people(value: Any, shown: str) -> None:
    assert rendering.number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "under 0.01 s"),
        (0.128, "0.13 s"),
        (59.994, "59.99 s"),
        (75.4, "1 min 15 s"),
        (3599.9, "1 h 0 min"),
        (7265, "2 h 1 min"),
        (None, "–"),
    ],
)
def test_durations_are_shown_for_people(seconds: float | None, shown: str) -> None:
    assert rendering.duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(999, "999 bytes"), (28881, "28.2 KiB"), (9912422, "9.5 MiB"), (5 * 2**30, "5.0 GiB"), (None, "–")],
)
def test_sizes_are_shown_for_people(count: int | None, shown: str) -> None:
    assert rendering.size(count) == shown
