"""The report of every kind of run: complete, cut short, refused, tiny and large."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import errors
from storage.datasets.catalog import Dataset
from storage.errors import IdxflowError
from storage.formats import parquet
from storage.ledger import Ledger
from storage.records import Check, Decision, Failure, Rule
from storage.registry import Registry
from storage.store import Store
from tasks.gate import criteria, wilson
from tasks.publish import compose, publish
from tasks.report import document as report
from tasks.report import trend
from tasks.ui import artifacts
from tests.support.pages import both, check_markdown, check_page, pictured
from tests.support.reports import STAGES, a_dataset, a_run, cut_at


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return a_dataset(tmp_path)


def test_publish_writes_html_and_json_once(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    result = publish.fn(Registry(store, dataset.name), dataset, run)
    assert result.record.entry.folder == store.entries("tiny", "publish") / run.id
    assert result.step.summary == f"tiny/7-reports/{run.id}/report.html"
    check_page(result.record.html.read_text("utf-8"), dataset.homepage)
    values = json.loads(result.record.json.read_text("utf-8"))
    assert values["schema"] == report.SCHEMA == 2
    assert values == compose(Registry(store, dataset.name), dataset, run).values
    assert publish.fn(Registry(store, dataset.name), dataset, run).step.reused


def test_publish_shows_report_and_metrics_under_stable_keys(
    store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, Any] = {}
    monkeypatch.setattr(artifacts, "show_markdown", lambda name, text, description: shown.update({name: text}))
    monkeypatch.setattr(artifacts, "show_table", lambda name, rows, description: shown.update({name: rows}))
    publish.fn(Registry(store, dataset.name), dataset, a_run(store, dataset))
    assert set(shown) == {"report-tiny", "metrics-tiny"}
    assert check_markdown(shown["report-tiny"], dataset.homepage)[0].startswith("Promoted")
    assert shown["metrics-tiny"][0] == {
        "class": "bar 1",
        "rows": 21,
        "recall": "76.19%",
        "95% interval": "54.91% to 89.37%",
        "precision": "80.00%",
        "f1": "85.00%",
    }


def test_the_same_run_gives_the_same_bytes(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    first, second = (compose(Registry(store, dataset.name), dataset, run) for _ in range(2))
    assert first.html() == second.html()
    assert first.markdown() == second.markdown()
    assert first.json() == second.json()


def test_a_complete_run_has_every_section_in_order(store: Store, dataset: Dataset) -> None:
    page, text = both(store, dataset, a_run(store, dataset))
    titles = [title for level, title in page.headings if level == 2]
    assert titles == [
        "What changed since the champion",
        "The data",
        "Data checks",
        "Training",
        "Test results",
        "Mistakes and disagreements",
        "Decision and paired test",
        "Time",
        "Lineage",
    ]
    assert page.headings[0] == (1, "Version 2 is the new champion")
    for phrase in (
        "79.03%",
        "95% interval 71.23% to 87.65%",
        "98.77%",
        "v2: net +3",
        "0.12 s",
        "1 min 15 s",
        "learning_rate 0.001 → 0.003",
        "idxflow run --dataset-file tiny.toml",
    ):
        assert phrase in page.words(), phrase
    for phrase in ("79.03%", "71.23% to 87.65%", "learning\\_rate 0.001 → 0.003"):
        assert phrase in text


def test_every_class_and_mistake_is_pictured(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    page, _ = both(store, dataset, run)
    labels = pictured(page)
    kinds = ("an example of", "the mean of all training images of")
    assert [f"{kind} class {name}" for name in dataset.classes for kind in kinds] == labels[:6]
    assert run.evaluation
    assert sum(label.startswith("row") and "predicted" in label for label in labels) == len(run.evaluation.mistakes)
    assert sum("the champion" in label for label in labels) == 13 + 12


def test_pictures_are_the_rows_they_say(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    document = compose(Registry(store, dataset.name), dataset, run)
    assert run.train
    assert run.test
    train, _ = parquet.read(run.train.file)
    test, _ = parquet.read(run.test.file)
    assert document.pictures.examples is not None
    assert document.pictures.means is not None
    assert document.pictures.mistakes is not None
    np.testing.assert_array_equal(document.pictures.examples, train[[0, 1, 2]])
    np.testing.assert_array_equal(
        document.pictures.mistakes, test[[m["row"] for m in document.values["mistakes"]["shown"]]]
    )
    mean = train[parquet.labels(run.train.file) == 1].mean(axis=0)
    np.testing.assert_allclose(document.pictures.means[1], mean / mean.max() * 255, atol=0.51)
    lost, gained = (document.values["mistakes"][name] for name in ("lost", "gained"))
    np.testing.assert_array_equal(document.pictures.disagreements["lost"], test[[row["row"] for row in lost["shown"]]])
    assert {row["row"] % 5 for row in lost["shown"]} == {1}
    assert {row["row"] % 5 for row in gained["shown"]} == {2}
    position = next(n for n, check in enumerate(document.values["checks"]["checks"]) if check["name"] == "repeats")
    np.testing.assert_array_equal(document.pictures.checks[position], test[[1, 7]])
    assert document.values["checks"]["checks"][position]["labels"] == ["bar 1", "bar 1"]


FAILURES = [
    ("start", "ConfigError", "The configuration cannot be used"),
    ("fetch", "DigestMismatch", "An archive is not the published one"),
    ("fetch", "SourceUnavailable", "No source could be read"),
    ("decode", "FormatError", "An archive is damaged or has another format"),
    ("validate", "ValidationFailed", "The data failed its checks"),
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
    verdict = compose(Registry(store, dataset.name), dataset, run).values["verdict"]
    assert verdict["outcome"] == outcome
    assert verdict["failure"] == {"kind": kind, "exit_code": code}


def test_refused_data_names_and_pictures_its_rows_first(store: Store, dataset: Dataset) -> None:
    failure = Failure("ValidationFailed", "tiny: 2 labels are outside 0 to 2", 3)
    page, text = both(store, dataset, cut_at(a_run(store, dataset, failing=True), "validate", failure))
    words = page.words()
    assert (
        words.index("observed 0 to 37; first rows: 4 · 11")
        < words.index("What to do")
        < words.index("120 images for training")
    )
    assert pictured(page)[:2] == ["row 4 of train", "row 11 of train"]
    assert "This run did not reach: training, test, decision" in words
    assert "observed 0 to 37; first rows: 4 · 11" in text


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
    paired = criteria.compared((9_400, 153, 147, 300), 350)
    decision = dataclasses.replace(run.decision, paired=paired, looks=3, policy="better")
    shown = dataclasses.replace(run, decision=decision)
    page, text = both(store, dataset, shown)
    sentence = (
        "Of 10,000 test images, both models get 9,400 right, only this model 153, only the champion 147, and neither "
        "300. This model gets 6 more right than the champion: +0.06 points of accuracy (90% interval -0.23 to +0.35)."
    )
    for words in (page.words(), text.replace("\\", "")):
        assert sentence in words
        assert "would have probability 0.39 (McNemar's exact test, one-sided)" in words
        assert "This is decision 3 on these test images" in words
    values = compose(Registry(store, dataset.name), dataset, shown).values["decision"]
    assert (values["paired"]["only_candidate"], values["looks"], values["policy"]) == (153, 3, "better")
    assert "both models get" not in both(store, dataset, run)[0].words()


@pytest.mark.parametrize(
    ("looks", "left", "words"),
    [
        (1, None, ["This is the first decision on these test images."]),
        (1, 51, ["The error budget is 0.05 for all decisions on them; 51 decisions are left."]),
        (
            14,
            None,
            [
                "up to 0.7 promotions by luck are to be expected of them at alpha 0.05; alpha_budget in the manifest",
                "The champion's 79.03% is the score of a model chosen in 14 decisions on the same test images, so it",
            ],
        ),
        (52, 1, ["due to chance. The error budget is 0.05 for all decisions on them; 1 decision is left."]),
        (53, 0, ["and none is left: use other test images, promote by hand, or raise alpha_budget."]),
    ],
)
def test_what_many_decisions_on_the_same_images_mean(
    store: Store, dataset: Dataset, looks: int, left: int | None, words: list[str]
) -> None:
    run = a_run(store, dataset)
    assert run.decision
    limits = {"alpha": 0.05, "alpha_budget": 0.05}
    decision = dataclasses.replace(run.decision, policy="better", limits=limits, looks=looks, budget_left=left)
    shown = dataclasses.replace(run, decision=decision)
    page, text = both(store, dataset, shown)
    for phrase in words:
        assert phrase in page.words()
        assert phrase in text.replace("\\", "")
    worth = compose(Registry(store, dataset.name), dataset, shown).values["decision"]["champion_now"]
    assert (worth["decisions"], bool(worth["sentence"])) == (looks, looks > 1)
    assert (worth["adjusted_low"] < worth["low"]) == (worth["adjusted_high"] > worth["high"]) == (looks > 1)


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


def test_earlier_runs_are_drawn_and_strange_ones_passed_over(store: Store, dataset: Dataset) -> None:
    ledger = Ledger(store, "tiny")
    for day in range(1, 41):
        run = f"2026{3 + day // 21:02d}{day % 21:02d}-000000-aaaa"
        record = {"test_accuracy": 0.9, "test_rows": 60, "state": "kept", "steps": {"train": {"seconds": 2.5}}}
        ledger.append("runs", run, record)
    ledger.append("runs", "20260501-x", {"test_accuracy": "no", "state": []})
    run = a_run(store, dataset)
    # The order of the ledger tells: ids of one second sort by chance.
    for same_second in (f"{run.id[:-4]}ffff", run.id, f"{run.id[:-4]}0000"):
        ledger.append("runs", same_second, {"state": "kept"})
    document = compose(Registry(store, dataset.name), dataset, run)
    runs = document.values["trend"]["runs"]
    assert len(runs) == trend.MAX_RUNS
    assert [past["id"] for past in runs[-3:]] == ["20260501-x", f"{run.id[:-4]}ffff", run.id]
    assert (runs[-3]["outcome"], runs[-3]["accuracy"]) == ("undecided", None)
    assert (runs[-1]["id"], runs[-1]["outcome"], runs[-1]["accuracy"]) == ("20260502-090013-3f2a", "promoted", 49 / 62)
    assert (runs[-1]["low"], runs[-1]["high"], runs[-1]["seconds"]) == (0.7123456, 0.8765432, 75.555)
    assert (runs[-2]["low"], runs[-2]["seconds"]) == (None, None)
    assert (runs[0]["low"], runs[0]["high"], runs[0]["seconds"]) == (*wilson.interval(54, 60), 2.5)
    assert {"trend", "duration"} <= document.pictures.charts.keys()
    check_page(document.html(), dataset.homepage)
