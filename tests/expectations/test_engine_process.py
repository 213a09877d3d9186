"""The process that evaluates suites: what it answers is what this one would, and it is never in the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from expectations import engine, engine_process, run_suites, suites, summary
from expectations.engine import Result
from expectations.suites import Expectation, Suite
from storage.datasets import catalog
from tests.support.operated import until
from tests.support.tables import faulty

ROOT = Path(__file__).resolve().parents[2]
DATASET = replace(catalog.find("mnist"), rows={})
SUITE = Suite("test", "row", (Expectation("n", "ExpectTableRowCountToEqual", {"value": 3}, "3"),))
EQUAL = {"column_A": "declared", "column_B": "actual", "ignore_row_if": "either_value_is_missing"}
PAIRS = Suite("archives", "split", (Expectation("pair", "ExpectColumnPairValuesToBeEqual", EQUAL, "equal"),))


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, ended: None) -> subprocess.Popen[bytes]:
    """The process, although the tests have imported the library: the one of the test before, if that has left it."""
    monkeypatch.setattr(engine, "is_loaded", lambda: False)
    engine_process.begin()
    assert engine_process._process
    return engine_process._process


@pytest.fixture(scope="module")
def ended() -> Iterator[None]:
    """Nothing is left of the process after the tests."""
    yield
    engine_process.end()


def objects(*values: object) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def as_json(results: dict[int, Result]) -> str:
    return json.dumps({number: asdict(results[number]) for number in sorted(results)})


def children() -> set[str]:
    own = Path("/proc/self/task")
    return {child for task in own.glob("*/children") for child in task.read_text().split()}


def test_it_answers_what_this_process_would(begun: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch):
    table = faulty(120, 10, 4)
    tables = [
        (suites.images(DATASET, "test"), table),
        (suites.classes(DATASET, "test"), summary.class_table(np.arange(95) % 10, 10)),
        (SUITE, {"index": np.arange(0)}),
        (PAIRS, {"index": np.arange(2), "declared": objects(None, [9, 7]), "actual": objects("a", [9, 8])}),
    ]
    for suite, columns in tables:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "evaluate", None)
            there, checks = engine_process.evaluate(suite, columns), run_suites.run(suite, [columns])
        with monkeypatch.context() as patch:
            patch.setattr(engine_process, "evaluate", engine.evaluate)
            assert checks == run_suites.run(suite, [columns])
        assert as_json(there) == as_json(engine.evaluate(suite, columns))


WORKER = """
import json, sys, time
from expectations import engine, engine_process
from expectations.suites import Expectation, Suite
import numpy as np
suite = Suite("test", "row", (Expectation("n", "ExpectTableRowCountToEqual", {"value": 3}, "3"),))
with engine_process.shared(sys.argv[1]):
    for rows in (3, 4):
        print(engine_process.evaluate(suite, {"index": np.arange(rows)})[0].success, flush=True)
        input()
print(engine.is_loaded())
"""


def worker(name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, name], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_workers_are_answered_side_by_side_without_an_import_of_their_own(begun: subprocess.Popen[bytes]):
    name = engine_process.address()
    with worker(name) as one, worker(name) as other:
        # Both are in the middle of it, and so is this process.
        assert [process.stdout and process.stdout.readline() for process in (one, other)] == ["True\n"] * 2
        assert engine_process.evaluate(SUITE, {"index": np.arange(3)})[0].success
        assert [process.communicate("\n\n")[0] for process in (one, other)] == ["False\nFalse\n"] * 2
    assert (one.returncode, other.returncode) == (0, 0)


def test_another_user_is_not_answered(begun: subprocess.Popen[bytes]):
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    code = (
        "import os, socket, sys\nos.setuid(65534)\nconnection = socket.socket(socket.AF_UNIX)\n"
        "connection.connect('\\0' + sys.argv[1])\nprint(connection.recv(1))"
    )
    stranger = [sys.executable, "-c", code, engine_process.address()]
    assert subprocess.run(stranger, capture_output=True, text=True, check=True).stdout == "b''\n"


def test_a_worker_evaluates_by_itself_where_the_process_cannot_be_reached(begun: subprocess.Popen[bytes]):
    name = engine_process.address()
    with worker(name) as process:
        assert process.stdout
        assert process.stdout.readline() == "True\n"
        # It does not wait for the worker.
        engine_process.end()
        assert process.communicate("\n\n")[0] == "False\nFalse\n"
    # A worker that comes later finds nobody: this process stands for it, because it need not import the library.
    with engine_process.shared(name):
        assert engine_process._line.get() is None
        assert engine_process.evaluate(SUITE, {"index": np.arange(3)})[0].success


def test_where_it_was_killed_this_process_evaluates(begun: subprocess.Popen[bytes]):
    begun.kill()
    begun.wait()
    assert engine_process.evaluate(SUITE, {"index": np.arange(3)})[0].success
    engine_process.end()


def test_it_ends_with_the_process_that_began_it():
    code = (
        "import os, signal\nfrom expectations import engine_process\n"
        "engine_process.begin()\nprint(engine_process._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    until(lambda: not Path(f"/proc/{int(killed.stdout)}").exists())


def test_what_has_the_library_starts_no_process():
    engine_process.end()
    engine.prepare()
    before = children()
    engine_process.begin()
    assert children() == before
