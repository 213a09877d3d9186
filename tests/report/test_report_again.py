"""Reports of real runs: as documented, and made again from the store alone."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.run import Request, prepare
from storage.formats import arrays
from storage.ledger import Ledger
from storage.records import FolderEntry, RunRecord
from storage.registry import Registry
from storage.store import Store
from tasks.report import past_runs
from tasks.report.document import build
from tests.conftest import bars, write_tiny
from tests.support.pages import check_page
from tests.support.runs import carried_out

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Story:
    """Runs one after the other: the first, a weak champion replaced, kept, refused data, a test image trained on."""

    store: Store
    runs: dict[str, RunRecord]

    @property
    def registry(self) -> Registry:
        return Registry(self.store, "tiny")

    def published(self, name: str) -> dict[str, Any]:
        path = self.store.entries("tiny", "publish") / self.runs[name].id / "report.json"
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return values


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    store = Store(folder / "store")
    store.prepare()
    sliced = '[floors]\naccuracy = 0.0\nclass_recall = 0.0\n[slices]\nby = ["class", "slant"]\nmin_rows = 25\n'
    manifest = write_tiny(folder, test=90, manifest=f"{sliced}alpha = 0.001\n").manifest
    runs = {
        "first": carried_out(store, manifest, epochs=1, learning_rate=1e-6),
        "promoted": carried_out(store, manifest),
        "kept": carried_out(store, manifest, epochs=1, learning_rate=1e-5, seed=7),
    }
    wrong = bars(120, 90, 3, (9, 7))["train-labels"]
    wrong[[4, 11]] = 37
    write_tiny(
        folder, test=90, manifest="[floors]\naccuracy = 0.0\nclass_recall = 0.0\n", arrays={"train-labels": wrong}
    )
    runs["refused"] = carried_out(store, manifest)
    manifest_text = "[floors]\naccuracy = 0.0\nclass_recall = 0.0\n[limits]\nmax_leaked = 0.02\n"
    write_tiny(folder, test=90, manifest=manifest_text, arrays=leaked())
    runs["leaked"] = carried_out(store, manifest, held_out="tail")
    write_tiny(folder, test=90, manifest=f"{manifest_text}{SET_ASIDE}", arrays=suspicious())
    runs["set aside"] = carried_out(store, manifest, audit=True)
    folders = folder / "checked"
    for row in (0, 1):
        (folders / f"bar {row}").mkdir(parents=True)
        Image.fromarray(leaked()["test-images"][0]).save(folders / f"bar {row}" / f"row-{row}.png")
    write_tiny(folder, test=90, manifest=f"{manifest_text}{SET_ASIDE}{BEHAVIOUR}", arrays=suspicious())
    runs["probed"] = carried_out(store, manifest, audit=True)
    yield Story(store, runs)
    shutil.rmtree(folder)


RUNS = ("first", "promoted", "kept", "refused", "leaked", "set aside", "probed")
SET_ASIDE = '[quarantine]\nchecks = ["suspect", "leaked"]\nmax_share = 0.1\n'
BEHAVIOUR = '[behaviour]\nshift = { pixels = 1, changed = 0.5 }\nmust_be_right = "checked"\n'


def leaked() -> dict[str, np.ndarray]:
    """Return data with one test image in the training split, whose last rows are without the third class.

    Another one is almost in it, and a training label is wrong.
    """
    arrays = bars(120, 90, 3, (9, 7))
    last = np.flatnonzero(arrays["train-labels"] < 2)[-12:]
    order = np.append(np.setdiff1d(np.arange(120), last), last)
    arrays |= {role: arrays[role][order] for role in ("train-images", "train-labels")}
    arrays["test-images"][5], arrays["test-labels"][5] = arrays["train-images"][6] ^ 3, arrays["train-labels"][6]
    arrays["train-labels"][8] = (arrays["train-labels"][8] + 1) % 3
    arrays["test-images"][3], arrays["test-labels"][3] = arrays["train-images"][0], arrays["train-labels"][0]
    return arrays


def suspicious() -> dict[str, np.ndarray]:
    """Return data with one leaked test image, one that is almost a training image, and a wrong label."""
    arrays = leaked()
    arrays["test-images"][4] = arrays["train-images"][20] ^ 3
    arrays["test-labels"][4] = arrays["train-labels"][20]
    arrays["train-labels"][41] = (arrays["train-labels"][41] + 1) % 3
    return arrays


@pytest.mark.parametrize("name", RUNS)
def test_a_report_made_again_from_the_store_says_the_same(story: Story, name: str) -> None:
    run = past_runs.find(story.registry, story.runs[name].id)
    assert run
    document = build(story.registry, run)
    assert json.loads(document.json()) == story.published(name)
    folder = story.store.entries("tiny", "publish") / run.id
    page = document.html()
    assert page == (folder / "report.html").read_text(encoding="utf-8")
    check_page(page)


def test_means_and_ink_are_those_that_validation_kept_and_measured_where_it_kept_none(
    story: Story, tmp_path: Path
) -> None:
    run = past_runs.find(story.registry, story.runs["promoted"].id)
    assert run
    assert run.validation

    def html(name: str, means: dict[str, np.ndarray] | None) -> str:
        folder = tmp_path / name
        folder.mkdir()
        if means:
            shutil.copy(run.validation.summary, folder)
            arrays.write(folder / "means.npz", means)
        changed = dataclasses.replace(run, validation=dataclasses.replace(run.validation, entry=FolderEntry(folder)))
        return build(story.registry, changed).html()

    published = build(story.registry, run).html()
    # As an earlier version left it, and as it would be if something else had been measured.
    assert html("old", None) == published
    assert html("other", {"mean": np.eye(9, 7) * np.ones((3, 1, 1))}) != published


def test_the_drift_is_said_where_the_training_data_is_new(story: Story) -> None:
    drifts = {name: drift for name in RUNS if (drift := story.published(name)["drift"])}
    assert {name: drift["sentence"] for name, drift in drifts.items()} == {
        name: f"Within the limits: {rows} images like those that champion v2 was trained on, with none of 17 tests "
        "beyond its limit."
        for name, rows in (("leaked", 120), ("set aside", 119), ("probed", 119))
    }
    for name, drift in drifts.items():
        page = (story.store.entries("tiny", "publish") / story.runs[name].id / "report.html").read_text()
        section = page.partition('<section id="drift"')[2].partition("</section>")[0]
        assert section.count('role="img"') == len(drift["most"]) == 20


def test_the_behaviour_is_pictured_and_its_rows_are_those_of_the_archive(story: Story) -> None:
    behaviour = story.published("probed")["behaviour"]
    assert behaviour["sentence"] == (
        "Too many answers change with a shift of 1 pixel. 1 of 2 images that must be right are right."
    )
    (test,), (wrong,) = behaviour["tests"], behaviour["wrong"]
    assert (test["worst"] in ("up", "down"), test["passed"]) == (True, False)
    assert wrong["file"] == "checked/bar 1/row-1.png"
    rows = [example["row"] for example in test["examples"]]
    record = story.runs["probed"].behaviour
    assert record
    # The leaked test image of row 3 was set aside.
    assert rows == [row + (row >= 3) for row in (example.row for example in record.tests[0].examples)]
    page = (story.store.entries("tiny", "publish") / story.runs["probed"].id / "report.html").read_text()
    section = page.partition('<section id="behaviour"')[2].partition("</section>")[0]
    assert section.count('role="img"') == 2 * 4 + 1
    assert story.published("probed")["verdict"]["headline"] == "The model fails a test of its behaviour and was refused"
    assert story.published("set aside")["behaviour"] is None


def test_the_outcomes_are_those_that_the_story_tells(story: Story) -> None:
    outcomes = {name: story.published(name)["verdict"]["outcome"] for name in RUNS}
    assert outcomes == {
        "first": "promoted",
        "set aside": "kept",
        "promoted": "promoted",
        "kept": "kept",
        "refused": "refused",
        "leaked": "kept",
        "probed": "refused",
    }


def test_what_changed_since_the_champion_of_then(story: Story) -> None:
    def changed_inputs(name: str) -> list[tuple[str, str, Any, Any]]:
        differences = story.published(name)["changes"]["differences"]
        return [
            (difference["part"], difference["name"], difference["old"], difference["new"]) for difference in differences
        ]

    assert story.published("first")["changes"]["champion"] is None
    assert changed_inputs("promoted") == [("parameters", "epochs", 1, 2), ("parameters", "learning_rate", 1e-6, 0.1)]
    assert story.published("kept")["changes"]["champion"] == 2
    assert [difference[1] for difference in changed_inputs("kept")] == ["epochs", "learning_rate", "seed"]
    refused = {difference[:2] for difference in changed_inputs("refused")}
    assert refused == {("data", "train content"), ("data", "train-labels archive")}


def test_a_run_that_begins_in_the_second_of_a_decision_began_after_it(story: Story, store: Store) -> None:
    decided = Ledger(store, "tiny").append("arrivals", "mark", {})
    manifest = str(story.store.root.with_name("tiny.toml"))
    begun = prepare(Request(dataset_file=manifest, store=str(store.root)), "a test").record
    decided_at = json.loads((store.root / decided).read_text(encoding="utf-8"))["time"]
    assert datetime.fromisoformat(decided_at) <= datetime.fromisoformat(begun.started)


def test_the_model_and_the_champion_disagree_on_what_the_paired_test_counts(story: Story) -> None:
    for name in ("promoted", "kept"):
        values = story.published(name)
        paired, mistakes = values["decision"]["paired"], values["mistakes"]
        assert paired["only_candidate"] == mistakes["gained"]["count"]
        assert paired["only_champion"] == mistakes["lost"]["count"]
        assert paired["net"] != 0
        assert sum(b["rows"] for b in values["test"]["calibration"]["bins"]) == 90
        assert sum(s["rows"] for s in values["test"]["slices"] if s["by"] == "ink") == 90
        changed = np.array(values["test"]["confusion_change"])
        assert changed.sum() == 0
        assert changed.diagonal().sum() == paired["net"]


def test_the_gate_and_the_test_results_divide_by_the_same_quarters(story: Story) -> None:
    for name in ("first", "promoted", "kept"):
        values = story.published(name)
        judged = [s for s in values["decision"]["slices"] if s["by"] == "slant"]
        quarters = [s for s in values["test"]["slices"] if s["by"] == "slant"]
        assert [(s["lowest"], s["highest"], s["rows"], s["right"]) for s in judged] == [
            (s["from"], s["to"], s["rows"], s["correct"]) for s in quarters
        ]
        assert len(judged) == 4
        recalls = {c["name"]: c["recall"] for c in values["test"]["per_class"]}
        by_class = [s for s in values["decision"]["slices"] if s["by"] == "class"]
        assert {s["name"]: s["accuracy"] for s in by_class} == {f"class {n}": recall for n, recall in recalls.items()}


def test_the_lineage_names_every_step_s_code_and_libraries(story: Story) -> None:
    lineage = story.published("kept")["lineage"]
    assert {"decode train", "validate", "normalize", "train", "evaluate", "decide"} <= lineage["code"].keys()
    assert "tensorflow" in lineage["libraries"]["train"]
    assert lineage["packages"]["prefect"]
    assert {"train-images", "test-labels payload", "train split", "weights"} <= lineage["digests"].keys()
    assert lineage["command"] == (
        "idxflow run --dataset-file tiny.toml --profile default --set 'hidden=[8]' --set learning_rate=1e-05 "
        "--set batch_size=16 --set epochs=1 --set seed=7"
    )


def test_a_report_is_made_again_with_what_is_left(story: Story, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(story.store.root, root)
    store = Store(root)
    for step in ("train", "fetch"):
        shutil.rmtree(store.entries("tiny", step))
    registry = Registry(store, "tiny")
    run = past_runs.find(registry, story.runs["kept"].id)
    assert run
    values = build(registry, run).values
    assert (values["training"], values["data"]["archives"]) == (None, [])
    assert values["test"] == story.published("kept")["test"]


def test_a_run_that_the_ledger_does_not_know_has_no_record(story: Story) -> None:
    assert past_runs.find(story.registry, "20000101-000000-0000") is None


def test_a_ledger_record_of_another_version_is_read_as_far_as_it_goes(story: Story, caplog: Any) -> None:
    values = Ledger(story.store, "tiny").read("runs")[2]
    old = {name: value for name, value in values.items() if name not in ("facts", "environment")}
    old["decision"] = {"outcome": "kept", "unheard": 1}
    run = past_runs.run_record(story.store, old)
    assert run.facts
    assert (run.facts.classes, run.facts.title) == (("bar 0", "bar 1", "bar 2"), "tiny")
    assert (run.environment, run.decision) == (None, None)
    assert "left out Decision" in caplog.text
    check_page(build(story.registry, run).html())


# --- the documented schema ------------------------------------------------------------------------------------------

TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "whole number": (int,),
    "number": (int, float),
    "true or false": (bool,),
    "object": (dict,),
}


def documented() -> dict[str, str]:
    """Return the type of each field of `report.json`, by its path."""
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+?) \|", SCHEMA, re.MULTILINE)
    fields = {path: kind for path, kind in rows if not path.endswith(".*")}
    for path in [path for path, _ in rows if path.endswith(".*")]:
        fields |= {
            name.replace("mistakes.lost.", path[:-1]): kind
            for name, kind in list(fields.items())
            if name.startswith("mistakes.lost.")
        }
    return fields


def walk(value: Any, path: str, fields: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield each value of a report with its path; what is documented as `any` is not looked into."""
    if isinstance(value, dict) and fields.get(path) != "any":
        free = any(name.startswith(f"{path}{{}}") for name in fields)
        yield path, value
        for name, inner in value.items():
            yield from walk(inner, f"{path}{{}}" if free else f"{path}.{name}".lstrip("."), fields)
    elif isinstance(value, list) and fields.get(path) != "any":
        for inner in value:
            yield from walk(inner, f"{path}[]", fields)
    else:
        yield path, value


@pytest.mark.parametrize("name", RUNS)
def test_the_report_has_the_documented_fields_and_types(story: Story, name: str) -> None:
    fields = documented()
    for path, value in walk(story.published(name), "", fields):
        if isinstance(value, dict) and path not in fields:
            assert any(field.startswith((f"{path}.", f"{path}{{}}")) for field in fields) or not path
            continue
        assert path in fields, f"{path} is not documented"
        kind = fields[path]
        if kind != "any" and not (value is None and kind.endswith(" or null")):
            allowed = TYPES[kind.removesuffix(" or null")]
            assert isinstance(value, allowed), f"{path}: expected {kind}, found {value!r}"
            assert isinstance(value, bool) == (kind == "true or false"), path


def test_every_documented_field_is_there_in_some_report(story: Story) -> None:
    fields = documented()
    present = {path for name in RUNS for path, _ in walk(story.published(name), "", fields)}
    never = {path for path in fields if path not in present}
    # Nothing was done by hand, two models with three classes are rarely wrong in different ways, and no network is
    # one's own (`tests/tasks/test_own_models.py`).
    rare = ("decision.by_hand", "mistakes.otherwise_wrong.", "training.own.")
    assert never <= {path for path in fields if path.startswith(rare)}
