"""Where the seconds of a command went: every moment belongs to one name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from storage.runtime import timings
from storage.runtime.timings import Clock, Spent
from tests.support.commands import idxflow
from tests.support.servers import BIN, clean_environment

pytestmark = pytest.mark.long


def test_a_span_has_its_time_without_that_of_spans_within():
    moments = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    clock = Clock(lambda: next(moments))
    clock.enter("outer")
    clock.enter("inner")
    clock.leave()
    clock.leave()
    assert clock.spent() == (Spent("the rest", 6.0, 0), Spent("outer", 6.0, 1), Spent("inner", 3.0, 1))


def test_other_threads_only_count():
    clock = Clock(iter([0.0, 2.0]).__next__)

    def work() -> None:
        clock.enter("elsewhere")
        clock.leave()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert clock.spent() == (Spent("the rest", 2.0, 0), Spent("elsewhere", 0.0, 1))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("prefect.client.orchestration", "prefect"),
        ("flows.retrain", "idxflow"),
        ("idxflow_start", "idxflow"),
        ("json.decoder", "the standard library"),
        ("_ssl", "the standard library"),
    ],
)
def test_a_module_is_its_library_s(module: str, name: str):
    assert timings.library(module) == name


def test_without_a_clock_spans_measure_nothing():
    code = (
        "from storage.runtime import timings\n"
        "with timings.span('a'):\n    pass\n"
        "assert timings.running() is None\n"
        "clock = timings.start()\n"
        "import wave, numpy\n"
        "with timings.span('b'):\n    pass\n"
        "names = {each.name: each.count for each in clock.spent()}\n"
        "assert names['b'] == 1 and 'a' not in names, names\n"
        "assert names['import numpy'] > 50 and names['import the standard library'] > 0, names\n"
        "assert 0 < clock.seconds[timings.PYTHON], clock.seconds\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_age_of_a_process_counts_from_its_start():
    """A process that is started in between is younger than what has gone by here."""
    before = timings.age()
    code = "from storage.runtime import timings; print(timings.age())"
    child = float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    # The start is known to a hundredth of a second.
    assert 0 < child <= timings.age() - before + 0.02


@pytest.mark.flow
def test_a_run_shows_its_imports_requests_steps_and_its_server(tmp_path: Path):
    command = ["validate", "digits", "--store", str(tmp_path / "store"), "--timings"]
    environment = clean_environment(tmp_path, COLUMNS="80")
    words = [str(BIN / "idxflow"), *command, "--json"]
    first = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    measured = json.loads(first.stdout)["timings"]
    names = {each["name"] for each in measured["this command"]}
    assert names > {
        *("starting Python", "import prefect", "import pyarrow", "step decode", "step validate"),
        *("digests of source code", "waiting for Prefect's server", "request POST /api/flow_runs/"),
        *("Prefect's flow and task runs", "stopping Prefect's server"),
    }
    server = {each["name"] for each in measured["Prefect's server, until it answers"]}
    # A fork of the run, it has Prefect's client already.
    assert server > {"import sqlalchemy", "making Prefect's application", "its database and services"}
    assert "starting Python" not in server
    # Another process imports it.
    assert "import great_expectations" not in names | server

    again = idxflow(*command, env=environment).stdout.splitlines()
    shown = again[again.index("") :]
    assert all(len(line) <= 80 for line in shown)
    heads = [place for place, line in enumerate(shown) if re.fullmatch(r"[\d.]+ s of .+", line)]
    assert [shown[place].partition(" s of ")[2] for place in heads] == [*measured]
    for start, end in pairwise((*heads, len(shown) + 1)):
        seconds = [float(line.split()[0]) for line in shown[start + 2 : end - 1]]
        assert seconds == sorted(seconds, reverse=True)
        # Each line is rounded, but none is left out.
        assert sum(seconds) == pytest.approx(float(shown[start].split()[0]), abs=0.005 * (len(seconds) + 1))


@pytest.mark.flow
def test_an_unchanged_run_asks_prefect_little(tmp_path: Path, server: dict[str, str]):
    """Each of these takes milliseconds that a run waits for; its log is sent meanwhile, now and then."""
    environment = {**server, "HOME": str(tmp_path), "IDXFLOW_STORE": str(tmp_path / "store")}
    command = ["run", "digits", "--profile", "fast", "--json", "--timings"]
    for _ in range(2):
        ended = idxflow(*command, env=environment)
        assert ended.returncode == 0, ended.stderr
    outcome = json.loads(ended.stdout)
    assert outcome["state"] == "unchanged"
    asked = {e["name"]: e["count"] for e in outcome["timings"]["this command"] if e["name"].startswith("request")}
    assert asked["request POST /api/flow_runs/…/set_state"] == 2
    # What sends the log has a client, and a token, of its own.
    waited_for = {name: count for name, count in asked.items() if not name.endswith(("/logs/", "/csrf-token"))}
    assert sum(waited_for.values()) <= 19, waited_for
