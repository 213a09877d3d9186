"""Runs that could not say how they ended: the ledger says it for them, and `status` what to do."""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import diagnosis, endings, health
from flows.commands.cli import run_command
from flows.run import Request
from storage import retention, underway
from storage.files import locked
from storage.ledger import Ledger
from storage.registry import Registry
from storage.store import Store
from storage.verify import verify
from tests.conftest import TinyFactory
from tests.support.commands import Command, idxflow
from tests.support.operated import until
from tests.support.servers import clean_environment
from tests.support.stores import DATASET, decide, fingerprint, retrain

RUN = "20260101-000000-abcd"
STARTED = "2026-01-01T00:00:00.000+00:00"


@pytest.fixture
def filled(store: Store) -> Store:
    """A store in which all is well."""
    retrain(store, 1)
    return store


def die(store: Store, **about: Any) -> None:
    """Do what a run does that dies: begin, and let go of its lock."""
    record = {"started": STARTED, "asked_by": "command line", **endings.present(), "again": "idxflow run tiny", **about}
    underway.begin(store, DATASET, RUN, record).close()


def recorded(store: Store) -> dict[str, Any]:
    endings.settle(store, DATASET)
    record = Ledger(store, DATASET).last("runs")
    assert record
    return record


@pytest.mark.parametrize(
    ("number", "state", "sentence", "code"),
    [
        (signal.SIGKILL, "crashed", "its process {} was killed, or could not record how the run ended", -9),
        (signal.SIGINT, "interrupted", "it was stopped by Ctrl-C", 130),
        (signal.SIGTERM, "terminated", "it was ended by SIGTERM", 143),
    ],
)
@pytest.mark.flow
def test_a_run_that_is_ended_is_in_the_ledger_and_its_remedy_ends_well(
    server: dict[str, str], store: Store, tiny: TinyFactory, number: int, state: str, sentence: str, code: int
):
    manifest = str(tiny().manifest)
    environment = server | {"IDXFLOW_STORE": str(store.root)}
    # It waits there, which takes no processor.
    busy = locked(store.part("tiny", "locks") / "in-use.lock")
    with busy, Command("validate", "--dataset-file", manifest, env=environment) as command:
        until(lambda: "waiting for `gc` to finish" in command.output or command.poll() is not None)
        assert Ledger(store, "tiny").names("runs") == []
        command.send_signal(number)
        assert command.wait(120) == code, command.errors
    again = f"idxflow validate --dataset-file {manifest}"
    expected = f"{sentence.format(command.pid)}; run it again to resume: {again}"
    listed = idxflow("runs", "list", "tiny", "--json", env=environment)
    (run,) = json.loads(listed.stdout)
    assert (run["state"], run["sentence"], run["asked_by"]) == (state, expected, "command line")
    result = idxflow("status", "tiny", env=environment)
    assert result.returncode == 1
    ended = state if state == "crashed" else f"was {state}"
    assert f"the last run {ended}: {expected}" in " ".join(result.stdout.split())
    assert idxflow(*again.split()[1:], env=environment).returncode == 0
    assert [values["state"] for values in Ledger(store, "tiny").read("runs")] == [state, "valid"]
    assert list(underway.folder(store, "tiny").iterdir()) == []


@pytest.mark.parametrize(
    ("about", "cause"),
    [
        ({"boot": "another"}, "ended when its machine restarted"),
        ({"host": "elsewhere"}, "on the machine elsewhere is gone"),
        ({"memory": ["memory.events", 2]}, "was killed by the kernel, because memory ran out"),
        ({}, "was killed, or could not record how the run ended"),
    ],
)
def test_what_a_process_died_of_is_named_as_far_as_it_is_known(
    filled: Store, tmp_path: Path, about: dict[str, Any], cause: str
):
    # As the kernel counts them.
    counter = tmp_path / "memory.events"
    counter.write_text("oom 3\noom_kill 3\n")
    if "memory" in about:
        about = {"memory": [str(counter), 2]}
    die(filled, **about)
    record, remedy = recorded(filled), "run it again to resume: idxflow run tiny"
    assert (record["state"], record["sentence"]) == ("crashed", f"its process {os.getpid()} {cause}; {remedy}")


def test_the_command_that_resumes_a_run_asks_for_the_same(tmp_path: Path):
    manifest, store = str(tmp_path / "my own.toml"), tmp_path / "store"
    request = Request("tiny", manifest, "fast", {"epochs": 2}, ("hidden=[5, 5]",), "in box", str(store))
    program, command, *words = shlex.split(request.command("run"))
    assert (program, command, words[-2:]) == ("idxflow", "run", ["--store", str(store)])
    assert words[:-2] == [
        *("--dataset-file", manifest, "--profile", "fast"),
        *("--set", "epochs=2", "--set", "hidden=[5, 5]", "--source", "in box"),
    ]
    assert Request("mnist").command("validate") == "idxflow validate mnist"


def test_a_run_that_is_under_way_is_left_alone(filled: Store):
    trace = underway.begin(filled, DATASET, RUN, endings.present())
    before = fingerprint(filled)
    endings.settle(filled)
    assert fingerprint(filled) == before
    trace.close()
    assert recorded(filled)["run"] == RUN


def test_an_end_is_recorded_once(filled: Store):
    die(filled)
    threads = [threading.Thread(target=endings.settle, args=(filled,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [values["run"] for values in Ledger(filled, DATASET).read("runs")] == ["run-1", RUN]
    # Killed after it had recorded its end itself, and before its trace was removed.
    die(filled)
    endings.settle(filled)
    assert len(Ledger(filled, DATASET).names("runs")) == 2
    assert list(underway.folder(filled, DATASET).iterdir()) == []


def test_a_trace_that_was_damaged_is_still_of_a_run(filled: Store):
    die(filled)
    (path,) = underway.folder(filled, DATASET).iterdir()
    path.write_bytes(path.read_bytes()[:20])
    assert recorded(filled)["sentence"].startswith("its process was killed, or could not record how the run ended")


def test_a_decision_that_was_made_before_is_reported(filled: Store):
    decide(Registry(filled, DATASET), "promoted", 1, RUN, sentence="promoted v2: better", version=2)
    die(filled)
    assert recorded(filled)["sentence"].endswith("; before that, it decided: promoted v2: better")
    assert recorded(filled)["version"] == 2


@pytest.mark.parametrize("command", [["status"], ["runs", "list", DATASET], ["doctor"]])
def test_the_next_command_that_looks_records_it(filled: Store, command: list[str], tmp_path: Path):
    die(filled)
    ended = idxflow(*command, "--store", str(filled.root), env=clean_environment(tmp_path))
    assert (Ledger(filled, DATASET).last("runs") or {})["run"] == RUN
    assert "Traceback" not in ended.stdout + ended.stderr


def test_status_names_a_crashed_run_and_its_start_until_a_run_ends_well(filled: Store, capsys: pytest.CaptureFixture):
    die(filled)
    assert run_command(["status", "--store", str(filled.root)]) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "problem the last run crashed: its process" in output
    assert "last run 2026-01-01 00:00 UTC (" in output
    retrain(filled, 2)
    assert run_command(["status", "--store", str(filled.root)]) == 0


def test_its_report_can_be_made_from_what_is_left(filled: Store, tmp_path: Path, capsys: pytest.CaptureFixture):
    die(filled)
    page = tmp_path / "report.html"
    assert run_command(["report", DATASET, "--out", str(page), "--store", str(filled.root)]) == 0
    assert f"the report of run {RUN} was never published" in capsys.readouterr().err
    assert "The run was cut off" in page.read_text(encoding="utf-8")


def test_what_a_resume_needs_stays_until_a_run_came_to_its_end(filled: Store):
    unfinished = filled.dataset(DATASET) / "5-models" / ".abc.partial"
    unfinished.mkdir()
    (unfinished / "checkpoint.npz").write_bytes(b"epoch 7")
    other = filled.dataset(DATASET) / "5-models" / ".def.discarded"
    for settled in (lambda: None, lambda: endings.settle(filled)):
        die(filled)
        settled()
        other.mkdir()
        collection = retention.collect(filled, DATASET)
        assert [leftover.path for leftover in collection.leftovers] == [other]
        assert collection.unfinished == (unfinished,)
        assert (unfinished / "checkpoint.npz").is_file()
        finding = diagnosis._whole(filled)
        assert (finding.verdict, finding.remedy) == ("ok", "")
        assert "1 unfinished, which the next run resumes" in finding.found
        assert [f.remedy for f in verify(filled).leftovers] == ["run the same command again to resume"]
    retrain(filled, 2)
    assert diagnosis._whole(filled).remedy == filled.command("gc")
    assert [leftover.path for leftover in retention.collect(filled, DATASET).leftovers] == [unfinished]


def test_looking_reads_what_is_under_way_and_nothing_else(filled: Store, monkeypatch: pytest.MonkeyPatch):
    for number in range(2, 6):
        retrain(filled, number)
    opened = counted(monkeypatch, underway, "read_json"), counted(monkeypatch, Ledger, "names")
    endings.settle(filled)
    assert [len(calls) for calls in opened] == [0, 0]


def counted(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> list[None]:
    calls: list[None] = []
    real: Callable[..., Any] = getattr(where, name)
    monkeypatch.setattr(where, name, lambda *arguments: (calls.append(None), real(*arguments))[1])
    return calls


def test_states_that_need_help_are_all_known():
    assert {"crashed", "cancelled", "terminated", "interrupted", "failed", "refused"} == set(health.BAD)
