"""The option `--workers` of runs: who has it, who computes, and what a run that was stopped says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows import pipeline, retrain
from flows.commands.cli import run_command
from flows.run import Job, Request
from storage.errors import ConfigError
from storage.runtime.progress import Progress, listening
from storage.store import Store
from storage.workers.address import INSECURE_VARIABLE, OPEN_WORKERS
from storage.workers.current import current
from storage.workers.here import Here
from tasks.ui import artifacts
from tasks.ui.parts import PartsDisplay
from tests.support import working
from tests.support.working import Item


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (None, ""),
        ("4", " --workers 4"),
        ("tls://scheduler:8786", " --workers tls://scheduler:8786"),
        ("tcp://127.0.0.1:8786", " --workers tcp://127.0.0.1:8786"),
        ("tcp://scheduler:8786", " --workers tcp://scheduler:8786 --insecure-workers"),
    ],
)
def test_the_command_that_resumes_a_run_has_its_workers(name: str | None, words: str) -> None:
    assert Request("mnist", workers=name).command("run") == f"idxflow run mnist{words}"


def test_workers_that_cannot_be_used_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    store = tmp_path / "store"
    days = ("--from", "2026-11-01", "--to", "2026-11-02")
    for command in (("run",), ("run", "digits", "mnist"), ("validate",), ("backfill", *days), ("doctor",)):
        for name, words in (
            ("tcp://scheduler:8786", "give --insecure-workers or IDXFLOW_INSECURE_WORKERS=1"),
            ("tls://scheduler:99999", "expected a number of processes from 1 to 1024, or the address"),
            (
                "tls://scheduler:8786",
                "expected certificates for tls://scheduler:8786; found none; set IDXFLOW_WORKERS_CA",
            ),
        ):
            assert run_command([*command, "--workers", name, "--store", str(store)]) == 2, command
            assert words in capsys.readouterr().err
    assert not store.exists()


def test_the_flows_take_workers_and_nothing_that_gives_up_protection() -> None:
    for flow in (retrain.retrain, retrain.retrain_arrival, retrain.validate_dataset):
        described = flow.parameters.properties
        assert described["workers"]["pattern"] == OPEN_WORKERS
        assert "insecure_workers" not in described
    with pytest.raises(ConfigError):
        Request("digits", workers="tcp://scheduler:8786").resolve()


def test_the_prefect_ui_shows_how_many_parts_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, ...]] = []

    class Bar:
        """In place of an artifact: Prefect's server is not here."""

        def __init__(self, name: str, description: str) -> None:
            shown.append((name, description))

        def move(self, percent: float, description: str) -> None:
            shown.append((f"{percent:.0f}", description))

    monkeypatch.setattr(artifacts, "ProgressBar", Bar)
    display = PartsDisplay("digits")
    display(Progress("train", 1, 2, "epochs"))
    for done in range(3):
        display(Progress("decode train", done, 2, "parts", f"{done} of 2 parts"))
    assert shown == [
        ("decode-train-digits", "decode train of digits"),
        ("0", "decode train: 0 of 2 parts"),
        # Within a second of the one before only the end is shown.
        ("100", "decode train: 2 of 2 parts"),
    ]


def test_a_run_computes_with_its_workers_and_lets_go_of_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    told: list[Progress] = []

    def walk(job: Job, caller: pipeline.Caller) -> None:
        results = current().each(working.square, [Item(number) for number in range(4)], "squares of train")
        seen.extend(result.process for _, result in results)
        assert current() is job.workers

    monkeypatch.delenv(INSECURE_VARIABLE, raising=False)
    with listening(told.append):
        ended = retrain.carry_out(
            Request("digits", store=str(store.root), workers="2"), walk, caller=pipeline.Directly()
        )
    assert ended.is_completed()
    assert len(seen) == 4
    assert os.getpid() not in seen
    assert not any(Path(f"/proc/{process}").exists() for process in seen)
    assert [step.done for step in told if step.unit == "parts"] == [0, 1, 2, 3, 4, 4]
    assert isinstance(current(), Here)
