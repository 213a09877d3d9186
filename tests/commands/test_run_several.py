"""`idxflow run` with several data sets: one command, one table, one exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flows.commands.several import chosen
from storage.datasets import catalog
from storage.store import Store
from tests.conftest import bars, write_tiny
from tests.support import clusters
from tests.support.commands import Command, idxflow
from tests.support.operated import until

pytestmark = pytest.mark.long

QUICK = tuple(
    word for setting in ("epochs=4", "learning_rate=0.1", "hidden=[8]", "batch_size=16") for word in ("--set", setting)
)
LONG = ("--set", "epochs=10000", "--set", "patience=10000")

Cli = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def environment(server: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return {**server, "IDXFLOW_STORE": str(tmp_path / "store"), "COLUMNS": "200"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The manifests of a good set, of one whose training data is blank, and of another good one."""
    blank = {"train-images": np.zeros_like(bars(120, 30, 3, (9, 7))["train-images"])}
    return {
        name: str(write_tiny(tmp_path, name=name, arrays=blank if name == "blank" else {}).manifest)
        for name in ("letters", "blank", "shapes")
    }


def given(*files: str) -> list[str]:
    return [word for file in files for word in ("--dataset-file", file)]


@pytest.mark.flow
def test_each_is_retrained_whether_or_not_the_others_succeed(
    environment: dict[str, str], files: dict[str, str], tmp_path: Path
):
    words = ("run", *given(*files.values()), *QUICK)
    first = idxflow(*words, "--at-once", "2", "--json", env=environment, cwd=tmp_path)
    assert first.returncode == 3, first.stderr
    ended = json.loads(first.stdout)
    assert [(run["dataset"], run["state"]) for run in ended["runs"]] == [
        ("letters", "promoted"),
        ("blank", "refused"),
        ("shapes", "promoted"),
    ]
    assert ended["error"] == ended["runs"][1]["error"]
    assert ended["error"]["exit_code"] == 3
    assert "shapes   train" in first.stderr

    again = idxflow(*words, env=environment, cwd=tmp_path)
    assert again.returncode == 3
    assert "Traceback" not in again.stderr
    table = again.stdout.splitlines()[-3:]
    assert [line.split("  ")[0] for line in table] == ["letters", "blank", "shapes"]
    assert "unchanged" in table[0]
    assert table[0].endswith(f"report {ended['runs'][0]['report']}")
    assert "data refused" in table[1]
    assert table[1].endswith(ended["error"]["sentence"])

    # What one run prints is what each of several prints.
    alone = json.loads(idxflow("run", *given(files["letters"]), *QUICK, "--json", env=environment).stdout)
    assert alone.keys() == ended["runs"][0].keys()
    assert alone["state"] == "unchanged"


@pytest.mark.flow
def test_ctrl_c_stops_all_and_says_how_to_resume(environment: dict[str, str], files: dict[str, str], tmp_path: Path):
    two = given(files["letters"], files["shapes"])
    histories = [tmp_path / "store" / name / "5-models" for name in ("letters", "shapes")]
    with Command("run", *two, *LONG, "--at-once", "2", env=environment) as process:
        until(
            lambda: (
                all(list(models.glob(".*.partial/history.jsonl")) for models in histories) or process.poll() is not None
            )
        )
        process.send_signal(signal.SIGINT)
        code, output, errors = process.wait(240), process.output, process.errors
    assert code == 130, errors
    assert errors.endswith("idxflow: interrupted; run the same command again to resume\n")
    assert "Traceback" not in output + errors
    assert [line.split()[:2] for line in output.splitlines()[-2:]] == [
        ["letters", "interrupted"],
        ["shapes", "interrupted"],
    ]
    # Each has recorded it, and nothing of them runs on.
    listed = json.loads(idxflow("status", "--json", env=environment).stdout)
    assert "interrupted" in json.dumps(listed)
    assert [*Store(tmp_path / "store").root.glob("*/ledger/underway/*.json")] == []


@pytest.mark.flow
def test_a_cluster_trains_for_all_of_them(environment: dict[str, str], tmp_path: Path):
    # Other tests do without it.
    from distributed import Client

    names = ("letters", "shapes", "signs")
    sets = given(*(str(write_tiny(tmp_path, name=name).manifest) for name in names))
    with clusters.scheduler(tmp_path) as (address, _), clusters.worker(tmp_path, address):
        done = idxflow("run", *sets, *QUICK, "--workers", address, "--json", env=environment, cwd=tmp_path)
        # Of data in one part, nothing else is computed there.
        with Client(address, set_as_default=False) as client:
            trained = client.run_on_scheduler(
                lambda dask_scheduler: dask_scheduler.task_prefixes["idxflow"].state_counts
            )
    assert done.returncode == 0, done.stderr
    assert [(run["dataset"], run["state"]) for run in json.loads(done.stdout)["runs"]] == [
        (name, "promoted") for name in names
    ]
    assert trained["memory"] == len(names)


def test_all_are_those_of_the_catalog_and_then_the_manifests():
    every = [(name, None) for name in catalog.names()]
    assert chosen([], [], True) == every
    assert chosen([], ["a.toml"], True) == [*every, ("digits", "a.toml")]


def test_one_is_what_it_was():
    assert chosen([], [], False) == [("digits", None)]
    assert chosen(["mnist"], [], False) == [("mnist", None)]
    assert chosen(["mnist"], ["a.toml"], False) == [("mnist", "a.toml")]
    assert chosen([], ["a.toml"], False) == [("digits", "a.toml")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("digits", "mist"), "expected a data set of the catalog"),
        (("digits", "mnist", "digits"), "expected each data set once; found digits twice"),
        (("digits", "mnist", "--set", "epochs=0"), "an integer from 1 to 10,000; found 0"),
        (("digits", "mnist", "--at-once", "0"), "--at-once"),
        (("digits", "mnist", "--timings"), "expected one data set with --timings; found 2"),
        (("digits", "--all"), "expected --all or the names of data sets"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_starts_nothing(words: tuple[str, ...], message: str, tmp_path: Path):
    environment = {**os.environ, "IDXFLOW_STORE": str(tmp_path / "store")}
    result = idxflow("run", *words, "--json", env=environment)
    assert result.returncode == 2
    assert message in json.loads(result.stdout)["error"]["sentence"]
    assert message in result.stderr
    assert not (tmp_path / "store").exists()
