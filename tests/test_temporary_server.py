"""The Prefect server of a run without a lasting one: all of the run reaches it, and it never outlives the run."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import TinyFactory
from tests.servers import BIN, clean_environment

SECONDS = 240
"""Only what hangs takes so long."""


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"expected within {SECONDS} s: {what}"
        time.sleep(0.05)


def servers_of(process: int) -> list[int]:
    """The children of a process that are a server."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [
        int(child) for child in children if b"flows.service.application" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def is_gone(process: int) -> bool:
    try:
        # A zombie has ended, too, but its parent does not ask.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.flow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_run_however_that_ends(tmp_path: Path, tiny: TinyFactory, number: signal.Signals):
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"))
    command = [str(BIN / "idxflow"), "run", "--dataset-file", str(tiny().manifest)]
    run = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # Background shells ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until(lambda: bool(servers_of(run.pid)), "a server that was started")
    server = servers_of(run.pid)[0]
    os.kill(run.pid, number)
    run.communicate(timeout=SECONDS)
    assert run.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    until(lambda: is_gone(server), "the server has ended")


@pytest.mark.flow
def test_one_that_cannot_start_is_said_in_one_sentence(tmp_path: Path, tiny: TinyFactory):
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"))
    Path(environment["PREFECT_HOME"], "prefect.db").write_bytes(b"no database" * 1000)
    command = [str(BIN / "idxflow"), "validate", "--dataset-file", str(tiny().manifest)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 1
    said = ended.stderr.strip().splitlines()
    assert len(said) == 1, ended.stderr
    assert said[0].startswith(
        "idxflow: expected a Prefect server for this run; the Prefect server ended with exit code "
    )
    assert "file is not a database" in said[0]


@pytest.mark.flow
def test_all_of_a_run_is_in_prefect_s_database_and_json_holds_what_a_script_needs(tmp_path: Path, tiny: TinyFactory):
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"))
    command = [str(BIN / "idxflow"), "run", "--dataset-file", str(tiny().manifest), "--json"]
    command += ["--set", "epochs=3", "--set", "learning_rate=0.1", "--set", "hidden=[8]"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS)
    found = json.loads(ended.stdout)
    assert found["state"] == "promoted", found
    assert found["run"], ended.stderr
    assert (found["version"], found["champion"], found["epochs"], found["error"]) == (1, 1, 3, None)
    assert found["dataset"] == "tiny"
    assert 0 < found["train_accuracy"] <= 1
    assert set(found["steps"]["train"]) >= {"seconds", "reused", "reason"}
    assert Path(found["report"]).is_file()

    with closing(sqlite3.connect(Path(environment["PREFECT_HOME"], "prefect.db"))) as database:
        states = database.execute("select state_name from flow_run").fetchall()
        tasks = database.execute("select name, state_type from task_run order by name").fetchall()
        (lines,) = database.execute("select count(*) from log").fetchone()
    assert states == [("Promoted",)]
    names = ["confirm", "decide", "decode-test", "decode-train", "evaluate-candidate", "fetch-test-images"]
    names += ["fetch-test-labels", "fetch-train-images", "fetch-train-labels", "normalize", "publish", "train"]
    assert tasks == [(name, "COMPLETED") for name in [*names, "validate"]]
    assert lines > len(tasks)


@pytest.mark.flow
def test_it_shares_its_database_with_no_other_server(tmp_path: Path, tiny: TinyFactory):
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"))
    home = Path(environment["PREFECT_HOME"])
    command = [str(BIN / "idxflow"), "validate", "--dataset-file", str(tiny().manifest)]
    # As any server does that runs: the database is open.
    with closing(sqlite3.connect(home / "prefect.db")) as server:
        server.execute("pragma journal_mode = wal")
        server.execute("select count(*) from flow_run").fetchone()
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert ended.returncode == 0, ended.stderr
        assert server.execute("select count(*) from flow_run").fetchone() == (0,)
    assert home.stat().st_mode & 0o777 == 0o700
    # One that is empty is kept for the next; it knows of no run, either.
    (empty,) = (home / "idxflow").glob("empty-*.db")
    with closing(sqlite3.connect(empty)) as kept:
        assert kept.execute("select count(*) from flow_run").fetchone() == (0,)
    assert subprocess.run(command, env=environment, capture_output=True, timeout=SECONDS, check=False).returncode == 0
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        assert database.execute("select state_name from flow_run").fetchall() == [("Valid",)]
