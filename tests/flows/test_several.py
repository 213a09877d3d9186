"""Runs in processes of their own: what is shown of them, how they end, and what ends them.

What a run does is replaced by something short; the processes, their pipes and signals are real.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.interruption import Terminated, interruptible
from flows.run import Request
from flows.several import Several, by_name
from flows.terminal.console import Console
from flows.terminal.streams import guarded_streams
from storage.errors import ConfigError
from storage.outcomes import Outcome
from tasks.ui import progress
from tasks.ui.progress import Progress
from tests.support.object_servers import ObjectServer
from tests.support.operated import until
from tests.support.servers import ROOT

Call = Callable[[Request], object]


class Screen:
    """Keeps what would be shown; `on_line` is called with each line."""

    def __init__(self, on_line: Callable[[str], object] = lambda line: None) -> None:
        self.lines: list[str] = []
        self.bars: list[tuple[str, float]] = []
        self._on_line = on_line

    def say(self, line: str) -> None:
        self.lines.append(line)
        self._on_line(line)

    def advance(self, step: Progress) -> None:
        self.bars.append((step.name, step.done))


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def tell(message: Any) -> None:
    sys.stdout.write(f"{json.dumps(message)}\n")


def promoted(request: Request) -> None:
    tell(Outcome("promoted", "promoted v1", request.dataset, "store", version=1).to_json())


def failed(kind: str, code: int) -> None:
    tell({"error": {"kind": kind, "sentence": f"{kind}, in a sentence", "exit_code": code}})


def several(call: Call, *names: str, screen: Any = None) -> Several:
    return Several({name: Request(name) for name in names}, call, screen or Screen())


def carried_out(call: Call, *names: str, at_once: int = 1, screen: Any = None) -> Several:
    runs = several(call, *names, screen=screen)
    runs.carry_out(at_once)
    return runs


def states(runs: Several) -> dict[str, str | None]:
    return {name: outcome["state"] if outcome else None for name, outcome in runs.outcomes.items()}


def test_lines_and_bars_have_the_name_of_the_data_set():
    def run(request: Request) -> None:
        say(f"the step of {request.dataset}")
        progress.advance(Progress("train", 1, 2, "epochs"))
        sys.stdout.write("a library prints what is no message\n")
        promoted(request)

    screen = Screen()
    runs = carried_out(run, "a", "letters", screen=screen)
    assert screen.lines == ["a        the step of a", "letters  the step of letters"]
    assert screen.bars[:4] == [("a", 0), ("a train", 1), ("a", 1), ("a train", 1)]
    assert runs.exit_code == 0
    assert runs.to_json()["error"] is None
    assert [(run["dataset"], run["state"]) for run in runs.to_json()["runs"]] == [
        ("a", "promoted"),
        ("letters", "promoted"),
    ]


def test_one_runs_after_the_other(tmp_path: Path):
    def run(request: Request) -> None:
        with (tmp_path / "log").open("a") as log:
            log.write(f"{request.dataset} starts\n")
            log.flush()
            log.write(f"{request.dataset} ends\n")
        promoted(request)

    carried_out(run, "b", "a")
    assert (tmp_path / "log").read_text().splitlines() == ["b starts", "b ends", "a starts", "a ends"]


def test_as_many_as_are_asked_for_run_at_once(tmp_path: Path):
    def run(request: Request) -> None:
        (tmp_path / request.dataset).touch()
        if request.dataset == "c":
            assert list(tmp_path.glob("* ends")), "a third has started before one of the two has ended"
        # Neither of the two ends before the other has started.
        until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
        (tmp_path / f"{request.dataset} ends").touch()
        promoted(request)

    assert set(states(carried_out(run, "a", "b", "c", at_once=2)).values()) == {"promoted"}


def test_what_ends_one_does_not_end_the_others():
    def run(request: Request) -> None:
        if request.dataset == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if request.dataset == "broken":
            raise RuntimeError("nobody expected this")
        if request.dataset == "terminated":
            failed("Terminated", 143)
            return
        promoted(request)

    screen = Screen()
    runs = carried_out(run, "good", "killed", "broken", "terminated", "last", at_once=2, screen=screen)
    assert states(runs) == {
        "good": "promoted",
        "killed": "crashed",
        "broken": "crashed",
        "terminated": "terminated",
        "last": "promoted",
    }
    killed, broken = runs.outcomes["killed"], runs.outcomes["broken"]
    assert killed
    assert "was killed by SIGKILL" in killed["sentence"]
    assert killed["sentence"].endswith("; run it again to resume: idxflow run killed")
    assert set(killed) == set(Outcome("", "", "", "").to_json())
    assert broken
    assert "ended with exit code 1; run it again to resume: idxflow run broken" in broken["sentence"]
    assert "broken      RuntimeError: nobody expected this" in screen.lines
    # Of the first in the order given, not of the first that ended.
    assert runs.error == killed["error"]
    assert runs.exit_code == 1


def test_the_exit_code_is_that_of_the_first_in_the_order_given(tmp_path: Path):
    def run(request: Request) -> None:
        if request.dataset == "first":
            until((tmp_path / "second has ended").exists)
        failed("DataRefused", 3 if request.dataset == "first" else 4)
        (tmp_path / f"{request.dataset} has ended").touch()

    assert carried_out(run, "first", "second", at_once=2).exit_code == 3


def waits(request: Request) -> None:
    """Be stopped, and say by what."""
    try:
        with interruptible():
            say("ready")
            time.sleep(600)
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        say(f"stopped by {error.args[0].name if terminated else 'SIGINT'}")
        failed(*(("Terminated", 143) if terminated else ("Interrupted", 130)))


def interrupting(number: signal.Signals, after: int) -> Screen:
    """Return a screen that sends this process a signal after so many runs are ready."""

    def on_line(line: str) -> None:
        if line.endswith("ready") and sum(line.endswith("ready") for line in screen.lines) == after:
            os.kill(os.getpid(), number)

    screen = Screen(on_line)
    return screen


@pytest.mark.parametrize(
    ("number", "state"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "terminated")],
)
def test_a_signal_stops_all_that_run_and_those_that_wait_do_not_start(number: signal.Signals, state: str):
    screen = interrupting(number, after=2)
    runs = several(waits, "a", "b", "waiting", screen=screen)
    with pytest.raises(KeyboardInterrupt), interruptible():
        runs.carry_out(2)
    assert states(runs) == {"a": state, "b": state, "waiting": None}
    assert sorted(screen.lines)[1::2] == [f"a        stopped by {number.name}", f"b        stopped by {number.name}"]


def test_a_second_ctrl_c_kills_what_does_not_stop():
    def stubborn(request: Request) -> None:
        signal.signal(signal.SIGINT, lambda number, frame: say("not yet: ready"))
        say(f"{os.getpid()} ready")
        while True:
            time.sleep(600)

    screen = Screen(lambda line: os.kill(os.getpid(), signal.SIGINT) if line.endswith("ready") else None)
    runs = several(stubborn, "a", screen=screen)
    with pytest.raises(KeyboardInterrupt), interruptible():
        runs.carry_out(1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(screen.lines[0].split()[1]), 0)
    assert states(runs) == {"a": "crashed"}


def test_a_reader_that_is_gone_ends_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def run(request: Request) -> None:
        for number in range(1000):
            say(f"line {number} {'x' * 80}")
        (tmp_path / request.dataset).touch()
        promoted(request)

    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with guarded_streams(), Console(as_json=False) as console:
            runs = carried_out(run, "a", "b", screen=console)
            console.check_printed("nothing is lost that somebody reads")
    assert set(states(runs).values()) == {"promoted"}
    assert (tmp_path / "b").exists()


def test_colours_that_are_asked_for_do_not_come_through_the_pipe(monkeypatch: pytest.MonkeyPatch):
    def run(request: Request) -> None:
        with guarded_streams(), Console(as_json=True) as console:
            console.say("a line", "bold green")
        promoted(request)

    monkeypatch.setenv("FORCE_COLOR", "1")
    screen = Screen()
    carried_out(run, "a", screen=screen)
    assert screen.lines == ["a  a line"]


@pytest.mark.parametrize("name", ["nope", "mist"])
def test_one_that_is_unknown_has_nothing_started(name: str):
    with pytest.raises(ConfigError, match="expected a data set of the catalog"):
        by_name([Request("digits"), Request(name)])


_IN_OBJECT_STORAGE = """
import json, sys
from types import SimpleNamespace
from flows.run import Request
from flows.several import Several, by_name
from storage.opening import open_store
from storage.outcomes import Outcome

def run(request):
    open_store(request.store).prepare()
    print(json.dumps(Outcome("promoted", "promoted v1", request.dataset, request.store, version=1).to_json()))

screen = SimpleNamespace(say=print, advance=lambda step: None)
runs = Several(by_name([Request(name, store=sys.argv[1]) for name in ("digits", "mnist")]), run, screen)
runs.carry_out(2)
print(json.dumps([outcome["state"] for outcome in runs.outcomes.values()]))
"""


def test_runs_in_object_storage_can_be_forks_because_nothing_is_asked_before(
    object_storage: ObjectServer, tmp_path: Path
):
    # In a process of its own: once it has used object storage, its forks cannot.
    words = [sys.executable, "-c", _IN_OBJECT_STORAGE, object_storage.address]
    own = {"HOME": str(tmp_path), "IDXFLOW_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **object_storage.environment, **own}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.stdout.splitlines() == ['["promoted", "promoted"]'], done.stderr
