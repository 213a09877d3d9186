"""`idxflow backfill` and `idxflow run --as-of`: runs on the data as it was."""

from __future__ import annotations

import datetime
import json
import shlex
import signal
from pathlib import Path

import pytest

from flows import retrain
from flows.backfill import planned
from flows.commands.cli import run_command
from flows.interruption import Terminated
from flows.run import Request
from flows.several import Several
from storage.errors import ConfigError
from storage.ledger import Ledger
from storage.outcomes import Outcome
from storage.store import Store
from storage.verify import verify
from tests.conftest import TinyFactory, bars
from tests.support.commands import idxflow
from tests.support.listed_archives import dated, write_listed

DAYS = ("2026-11-01", "2026-11-08")
QUICK = ("--set", "epochs=1", "--set", "hidden=[4]")


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    dataset = write_listed(tmp_path, bars(240, 60, 3, (9, 7)), (120, 120))
    return str(dated(dataset, *DAYS, more="[floors]\naccuracy = 0\nclass_recall = 0\n").manifest)


def between(first: str, last: str, every: str = "1d", **more: str):
    return planned(Request(**more), datetime.date.fromisoformat(first), datetime.date.fromisoformat(last), every)


def test_days_without_new_data_have_no_run(manifest: str):
    plan = between("2026-11-06", "2026-11-10", dataset_file=manifest)
    assert {day: request.as_of for day, request in plan.requests.items()} == {
        "2026-11-06": "2026-11-06",
        "2026-11-08": "2026-11-08",
    }
    assert plan.same == {"2026-11-07": "2026-11-06", "2026-11-09": "2026-11-08", "2026-11-10": "2026-11-08"}
    assert [*between("2026-11-01", "2026-11-30", "7d", dataset_file=manifest).requests] == ["2026-11-01", "2026-11-08"]
    assert plan.requests["2026-11-08"].command("run").endswith("--as-of 2026-11-08")


def test_the_workers_of_a_backfill_are_those_of_its_runs(manifest: str, capsys: pytest.CaptureFixture[str]):
    words = ["backfill", "--dataset-file", manifest, "--from", DAYS[0], "--to", DAYS[1]]
    assert run_command([*words, "--workers", "many"]) == 2
    assert "--workers or IDXFLOW_WORKERS: expected a number of processes" in capsys.readouterr().err
    plan = between(*DAYS, dataset_file=manifest, workers="3")
    assert all("--workers 3" in request.command("run") for request in plan.requests.values())


@pytest.mark.remedies("flows.backfill:_days")
def test_a_step_that_is_no_number_of_days_is_refused(manifest: str):
    with pytest.raises(
        ConfigError, match="--every: expected a number of days, such as 1d or 7d; found 'weekly'; correct"
    ):
        between("2026-11-01", "2026-11-30", "weekly", dataset_file=manifest)
    assert between("2026-11-01", "2026-11-30", "7d", dataset_file=manifest).requests


@pytest.mark.remedies("flows.backfill:_days:2")
def test_days_in_the_wrong_order_are_refused(manifest: str):
    with pytest.raises(
        ConfigError, match="expected --to to be 2026-11-30 or later, as --from is; found 2026-11-01; exch"
    ):
        between("2026-11-30", "2026-11-01", dataset_file=manifest)
    assert between("2026-11-01", "2026-11-30", dataset_file=manifest).requests


@pytest.mark.remedies("flows.backfill:_days:3")
def test_too_many_days_are_refused(manifest: str):
    with pytest.raises(
        ConfigError, match="expected at most 10,000 days; found 36,525 from .*; choose fewer, or a longer"
    ):
        between("2026-11-01", "2126-11-01", dataset_file=manifest)
    assert between("2026-11-01", "2126-11-01", "30d", dataset_file=manifest).requests


@pytest.mark.remedies("flows.backfill:planned")
def test_data_without_dates_has_no_past(tiny: TinyFactory):
    dataset = tiny()
    words = ("backfill", "--dataset-file", str(dataset.manifest), "--from", "2026-11-01", "--to", "2026-11-02")
    assert run_command([*words]) == 2
    with pytest.raises(
        ConfigError,
        match=r"toml: expected archives with the days that their images are of; found none with a date; add ",
    ):
        between("2026-11-01", "2026-11-02", dataset_file=str(dataset.manifest))
    text = dataset.manifest.read_text()
    dataset.manifest.write_text(f"{text}\n[archives.train-images]\ndate = 2026-11-01\n")
    assert [*between("2026-11-01", "2026-11-02", dataset_file=str(dataset.manifest)).requests] == ["2026-11-01"]


def test_an_interrupted_backfill_says_what_is_done_and_the_command_that_goes_on(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def carry_out(runs: Several, at_once: int) -> None:
        runs.outcomes["2026-11-07"] = {**Outcome("promoted", "", "listed", "").to_json(), "seconds": 1.0}
        raise Terminated(signal.SIGTERM)

    # In place of runs, which take long, and of a signal.
    monkeypatch.setattr(Several, "carry_out", carry_out)
    store = tmp_path / "a store"
    words = [
        "backfill",
        "--dataset-file",
        manifest,
        "--from",
        "2026-11-07",
        "--to",
        "2026-11-09",
        "--store",
        str(store),
    ]
    assert run_command(words) == 143
    said = capsys.readouterr()
    assert [line.split()[:2] for line in said.out.splitlines()] == [["2026-11-07", "promoted"], ["2026-11-08", "not"]]
    again = said.err.partition("1 of 2 runs ended before this; go on with the rest: ")[2].splitlines()[0]
    assert shlex.split(again)[:1] == ["idxflow"]
    assert sorted(shlex.split(again)[1:]) == sorted([*words, "--every", "1d"])
    assert said.err.endswith("idxflow: terminated; run the same command again to resume\n")


def test_a_check_of_the_data_as_it_was(manifest: str, capsys: pytest.CaptureFixture[str]):
    assert run_command(["validate", "--dataset-file", manifest, "--as-of", "2026-10-31"]) == 2
    assert "expected archives of train-images of 2026-10-31 or earlier" in capsys.readouterr().err
    assert run_command(["validate", "--dataset-file", manifest, "--as-of", "someday"]) == 2
    assert "--as-of: expected a day such as 2026-11-30; found 'someday'" in capsys.readouterr().err
    assert "as_of" in retrain.validate_dataset.parameters.properties


@pytest.mark.flow
def test_each_day_is_a_run_on_its_data_and_is_recorded_with_it(server: dict[str, str], tmp_path: Path, manifest: str):
    environment = {**server, "IDXFLOW_STORE": str(tmp_path / "store"), "COLUMNS": "200"}
    words = ("backfill", "--dataset-file", manifest, "--from", "2026-11-07", "--to", "2026-11-09", *QUICK)
    ended = idxflow(*words, "--json", env=environment, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    values = json.loads(ended.stdout)
    assert [(run["as_of"], run["dataset"]) for run in values["runs"]] == [
        ("2026-11-07", "listed"),
        ("2026-11-08", "listed"),
    ]
    assert values["same"] == {"2026-11-09": "2026-11-08"}
    assert [run["steps"]["decode train"]["summary"] for run in values["runs"]] == [
        "120 images of 9×7",
        "240 images of 9×7 in 2 parts, 1 new",
    ]
    store = Store(tmp_path / "store")
    assert [record["as_of"] for record in Ledger(store, "listed").read("runs")] == ["2026-11-07", "2026-11-08"]
    report = json.loads(Path(values["runs"][0]["report"]).with_name("report.json").read_text())
    assert report["data"]["as_of"] == "2026-11-07"
    assert report["data"]["sentence"].endswith(
        " 1 of 2 archives for training of 2026-11-01, as of 2026-11-07: train-images-000-idx3-ubyte.gz."
    )
    assert "--as-of 2026-11-07" in report["lineage"]["command"]
    assert verify(store).findings == ()
    listed = idxflow("runs", "list", "listed", env=environment).stdout.splitlines()
    assert [line.rpartition(", ")[2] for line in listed] == ["as of 2026-11-08", "as of 2026-11-07"]
    valid = idxflow("validate", *words[1:3], "--as-of", "2026-11-07", "--json", env=environment, cwd=tmp_path)
    assert json.loads(valid.stdout)["steps"]["decode train"]["summary"] == "120 images of 9×7"
    # A second time it finds what is there.
    again = idxflow(*words, env=environment, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "idxflow: note: 1 day has the data of an earlier one, and no run: first 2026-11-09" in again.stderr
    table = again.stdout.splitlines()[-2:]
    assert [line.split()[:2] for line in table] == [["2026-11-07", "unchanged"], ["2026-11-08", "unchanged"]]
