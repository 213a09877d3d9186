"""Runs with an audit: asked for or by the manifest, reused, in the report, and its suspects as a list."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.commands.cli import run_command
from flows.commands.suspects import _csv
from flows.run import Request
from flows.suspects import Audited
from storage.records import Audit, FolderEntry
from storage.retention import collect
from storage.store import Store
from storage.verify import verify
from tasks.auditing.tables import NearDuplicates, Suspects
from tests.conftest import bars, write_tiny
from tests.support.runs import run_without_prefect

WRONG = (10, 41, 77)
NEAR, EQUAL = 4, 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with three wrong labels, a near-duplicate and an equal image, in classes labelled 5, 6 and 7."""
    folder = tmp_path_factory.mktemp("audited")
    arrays = bars(120, 30, 3, (9, 7))
    labels = arrays["train-labels"].copy()
    labels[list(WRONG)] = (labels[list(WRONG)] + 1) % 3
    arrays["test-images"][NEAR] = arrays["train-images"][20] ^ 3
    arrays["test-images"][EQUAL] = arrays["train-images"][30]
    arrays["test-labels"][[NEAR, EQUAL]] = arrays["train-labels"][[20, 30]]
    arrays |= {"train-labels": labels + np.uint8(5), "test-labels": arrays["test-labels"] + np.uint8(5)}
    write_tiny(folder, arrays=arrays, manifest="label_base = 5\n[limits]\nmax_leaked = 1.0\n")
    return folder


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list[dict[str, Any]]:
    """Three runs: without an audit, with one, and with one again."""
    store, manifest = Store(folder / "store"), str(folder / "tiny.toml")
    return [run_without_prefect(store, dataset_file=manifest, audit=audit) for audit in (False, True, True)]


def report(outcome: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(Path(outcome["report"]).with_name("report.json").read_text())
    return values


def test_it_is_a_step_only_if_asked_for_and_is_reused(outcomes: list[dict[str, Any]]):
    assert [list(outcome["steps"]).count("audit") for outcome in outcomes] == [0, 1, 1]
    first, again = (outcome["steps"]["audit"] for outcome in outcomes[1:])
    assert (first["reused"], first["reason"], again["reused"]) == (False, "first run", True)
    assert first["summary"] == "3 labels of 120 look wrong, 1 near-duplicate, 1 equal"
    names = list(outcomes[1]["steps"])
    assert names[names.index("audit") - 1 : names.index("audit") + 2] == ["decode test", "audit", "validate"]


def test_nothing_else_changes_and_there_is_a_report_with_the_audit(outcomes: list[dict[str, Any]]):
    without, first, again = outcomes
    assert (first["state"], first["version"], again["state"]) == ("unchanged", without["version"], "unchanged")
    assert report(without)["audit"] is None
    assert first["report"] != without["report"]
    # With nothing new, the report is the one that has this audit.
    assert again["report"] == first["report"]


def test_the_report_has_the_suspects_and_the_pairs(outcomes: list[dict[str, Any]]):
    audit = report(outcomes[1])["audit"]
    assert audit["sentence"] == (
        "3 labels of 120 training rows look wrong. 1 test image is almost the same as a training image; 1 is "
        "equal to one. Nothing was removed."
    )
    shown = {one["row"]: (one["name"], one["suggested_name"], one["flagged"]) for one in audit["shown"]}
    true = bars(120, 30, 3, (9, 7))["train-labels"]
    assert shown == {row: (f"bar {(true[row] + 1) % 3}", f"bar {true[row]}", True) for row in WRONG}
    assert [(pair["test_row"], pair["train_row"]) for pair in audit["pairs"]] == [(NEAR, 20)]
    page = Path(outcomes[1]["report"]).read_text()
    for picture in ("s-suspects", "s-near-test", "s-near-train"):
        assert f".{picture} {{ --sheet: url(data:image/png" in page
    assert 'aria-label="test row 4: bar ' in page
    assert "idxflow suspects tiny --csv suspects.csv" in page


def test_spreadsheets_show_the_names_of_classes_and_compute_none():
    row = [np.array([value]) for value in (7, 0, 1, 0.1, 0.9, True)]
    record = Audit(FolderEntry(Path()), "", 1, 0, 1, 1, 0, 0, 0, 0, 0.1, 4, 1)
    found = Audited("run", record, Suspects(*row), NearDuplicates.none(), ("=1+1", "-"), ())
    assert _csv(found).decode().splitlines()[1] == "7,0,'=1+1,1,-,0.1,0.9,true"


def test_the_suspects_as_a_list_a_table_and_json(
    outcomes: list[dict[str, Any]], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["suspects", "tiny", "--store", str(folder / "store")]
    assert run_command([*words, "--limit", "2"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("row ")
    assert " → bar " in lines[0]
    assert lines[2] == f"3 suspects of 120 rows, 3 flagged (*), in run {outcomes[2]['run']}"
    assert printed.err == "idxflow: 1 more are not shown; --csv FILE writes all\n"
    assert run_command([*words, "--csv", str(tmp_path / "all.csv")]) == 0
    with (tmp_path / "all.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(int(row["row"]) for row in rows) == sorted(WRONG)
    for row in rows:
        # As in the label file.
        assert int(row["label"]) == int(row["class"].removeprefix("bar ")) + 5
        assert int(row["suggested_label"]) == int(row["suggested_class"].removeprefix("bar ")) + 5
        assert 0 <= float(row["probability"]) < float(row["suggested_probability"]) <= 1
        assert row["flagged"] == "true"
    # The same file again is not something else.
    assert run_command([*words, "--csv", str(tmp_path / "all.csv")]) == 0
    capsys.readouterr()
    assert run_command([*words, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["flagged_rows"], values["near_rows"], values["run"]) == (3, 1, outcomes[2]["run"])
    pairs = [(pair["test_row"], pair["train_row"], pair["distance"]) for pair in values["near_duplicates"]]
    assert pairs[0] == (EQUAL, 30, 0)
    assert pairs[1][:2] == (NEAR, 20)
    assert 0 < pairs[1][2] < 0.125
    assert [row["row"] for row in values["suspects"]] == [int(row["row"]) for row in rows]


def test_suspects_are_set_aside_only_if_that_is_asked_for(outcomes: list[dict[str, Any]], folder: Path):
    manifest = folder / "quarantined.toml"
    rules = '[quarantine]\nchecks = ["suspect", "leaked"]\nmax_share = 0.1\n'
    manifest.write_text((folder / "tiny.toml").read_text() + rules)
    outcome = run_without_prefect(Store(folder / "store"), dataset_file=str(manifest), epochs=1)
    assert outcome["steps"]["audit"]["reused"]
    assert outcome["steps"]["quarantine"]["summary"] == "3 of train, 1 of test set aside: leaked 1, suspect 3"
    values = report(outcome)
    assert {row["row"] for row in values["quarantine"]["shown"] if row["split"] == "train"} == {*WRONG}
    assert values["audit"]["sentence"].endswith("Flagged rows were set aside, as the quarantine below says.")
    # The pictures are of all rows, with those that are no longer in the split.
    assert ".s-suspects { --sheet: url(data:image/png" in Path(outcome["report"]).read_text()


def test_the_store_with_an_audit_is_whole_and_keeps_it(outcomes: list[dict[str, Any]], folder: Path):
    store = Store(folder / "store")
    assert not verify(store).damage
    kept = next(store.newest_entries("tiny", "audit"))
    collect(store, "tiny", keep_last=1)
    assert next(store.newest_entries("tiny", "audit")) == kept


def test_the_manifest_can_ask_for_it_and_a_command_repeats_the_request(tmp_path: Path, store: Store):
    manifest = str(write_tiny(tmp_path, manifest="audit = true\n").manifest)
    assert "audit" in run_without_prefect(store, dataset_file=manifest, epochs=1)["steps"]
    assert "--audit" not in Request(dataset_file=manifest).command("run")
    assert Request(dataset_file=manifest, audit=True).command("run").endswith("--audit")
