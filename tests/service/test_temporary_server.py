"""The Prefect server of a run without a lasting one: all of the run reaches it, and it never outlives the run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from prefect.settings import PREFECT_HOME, temporary_settings

from flows.service import application, temporary
from flows.service.fork import NAME
from flows.service.temporary import TemporaryServer, temporary_server
from storage.errors import PrefectFailed
from tests.conftest import TinyFactory, write_tiny
from tests.support import refusals
from tests.support.commands import Command, idxflow
from tests.support.operated import until
from tests.support.servers import BIN, clean_environment, is_starting

SECONDS = 240
"""Only what hangs takes so long."""


def servers_of(process: int) -> list[int]:
    """The children of a process that are a server."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in children if Path(f"/proc/{child}/comm").read_text() == f"{NAME}\n"]


def has_ended(process: int) -> bool:
    try:
        # A zombie has ended, too, but its parent does not ask.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.flow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_run_however_that_ends(tmp_path: Path, tiny: TinyFactory, number: signal.Signals):
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"))
    with Command("run", "--dataset-file", str(tiny().manifest), env=environment) as run:
        until(lambda: servers_of(run.pid))
        server = servers_of(run.pid)[0]
        run.send_signal(number)
        assert run.wait(SECONDS) == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
        until(lambda: has_ended(server))


def test_a_run_removes_what_killed_ones_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = (
        "import os, signal, tempfile\nfrom flows.service import temporary\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "with temporary._folder() as folder:\n    (folder / 'made').touch()\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", killed], check=False)
    (leftover,) = tmp_path.iterdir()
    (tmp_path / "idxflow-prefect-link").symlink_to(leftover)
    with temporary._folder() as young:
        # It may be that of a run that is just starting.
        assert leftover.exists()
    os.utime(leftover, (0, 0))
    with temporary._folder() as used:
        assert not leftover.exists()
        os.utime(used, (0, 0))
        with temporary._folder():
            assert used.exists()
    assert not young.exists()
    assert not used.exists()


@pytest.mark.flow
@pytest.mark.remedies("flows.service.temporary:_has_answered")
def test_a_machine_that_cannot_reach_itself_is_named_at_once(tmp_path: Path, tiny: TinyFactory):
    if os.getuid() != 0:
        pytest.skip("needs to be root, to be in a network of its own")
    if not shutil.which("ip"):
        pytest.skip("needs ip: on Debian, apt-get install iproute2")
    dataset = tiny()
    (dataset.source / dataset.archive("test-labels").file).unlink()
    command = f"{BIN / 'idxflow'} validate --dataset-file {dataset.manifest}"
    # As it is advised, the second time; then the run gets as far as its archives.
    line = f"{command}; echo ended with $?; ip link set lo up; {command}; echo ended with $?"
    environment = {
        **clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store")),
        **refusals.python_environment(),
    }
    ended = subprocess.run(
        ["unshare", "--net", "bash", "-c", line], env=environment, capture_output=True, text=True, check=False
    )
    assert re.findall(r"ended with (\d+)", ended.stdout) == ["1", "4"], ended.stderr
    assert "Network is unreachable; switch the loopback interface on: ip link set lo up" in ended.stderr


@pytest.mark.flow
@pytest.mark.remedies("flows.service.temporary:wait")
def test_a_server_that_cannot_start_is_named_in_one_sentence(tmp_path: Path, tiny: TinyFactory):
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"))
    database = Path(environment["PREFECT_HOME"], "prefect.db")
    database.write_bytes(b"no database" * 1000)
    ended = idxflow("validate", "--dataset-file", str(tiny().manifest), env=environment)
    assert ended.returncode == 1
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith(
        "idxflow: expected a Prefect server for this run; the Prefect server ended with exit code "
    )
    assert "file is not a database" in lines[0]
    assert f"mv {database}* {database.parent}/broken" in lines[0]
    assert "try again" not in lines[0]
    remedy = re.search(f"mkdir .* && mv {database}\\S* {database.parent}/broken", lines[0])
    assert remedy
    subprocess.run(["bash", "-c", remedy[0]], check=True)
    assert idxflow("validate", "--dataset-file", str(tiny().manifest), env=environment).returncode == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of runs that have a data set, `tiny.toml`, in their HOME."""
    home = tmp_path_factory.mktemp("home")
    write_tiny(home)
    return clean_environment(home, IDXFLOW_STORE=str(home / "store"))


@pytest.mark.flow
def test_it_shares_its_database_with_no_other_server(place: dict[str, str]):
    home = Path(place["PREFECT_HOME"])
    # A profile without an address, as `prefect profile create` leaves it, names no server.
    (home / "profiles.toml").write_text('active = "work"\n[profiles.work]\n')
    # As any server does that runs: the database is open.
    with closing(sqlite3.connect(home / "prefect.db")) as server:
        server.execute("pragma journal_mode = wal")
        server.execute("select count(*) from flow_run").fetchone()
        ended = idxflow("validate", "--dataset-file", "tiny.toml", env=place, cwd=Path(place["HOME"]))
        assert ended.returncode == 0, ended.stderr
        assert server.execute("select count(*) from flow_run").fetchone() == (0,)
    assert home.stat().st_mode & 0o777 == 0o700
    # One that is empty is kept for the next; it knows of no run, either.
    (empty,) = (home / "idxflow").glob("empty-*.db")
    with closing(sqlite3.connect(empty)) as connection:
        assert connection.execute("select count(*) from flow_run").fetchone() == (0,)


@contextmanager
def server_without_an_answer(home: Path) -> Iterator[TemporaryServer]:
    """Start one that gets nothing done, as on a machine that is too busy."""
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_HOME: home}):
        patch.setattr(application, "_serve_forked", lambda *_: signal.pause())
        patch.setattr(temporary, "START_SECONDS", 0.1)
        with temporary_server("idxflow gc") as server:
            yield server


def test_no_other_server_starts_on_its_database_until_it_answers(tmp_path: Path):
    """Both would make the tables of a new one, and both would fail."""
    with server_without_an_answer(tmp_path / "prefect"):
        assert is_starting(tmp_path / "prefect")
    assert not is_starting(tmp_path / "prefect")


def test_of_what_the_run_has_open_it_has_only_its_socket(tmp_path: Path):
    """The locks of the run are free when the run lets go of them, whatever the server does."""
    with server_without_an_answer(tmp_path / "prefect"):
        (server,) = until(lambda: servers_of(os.getpid()))
        opened = sorted(str(path.readlink()) for path in Path(f"/proc/{server}/fd").iterdir())
    log = opened[1]
    assert log.endswith("/server.log")
    assert opened[:3] == ["/dev/null", log, log]
    assert [target.partition(":")[0] for target in opened[3:]] == ["socket"]


@pytest.mark.flow
@pytest.mark.remedies("flows.service.temporary:wait:2")
def test_all_of_a_run_is_in_prefect_s_database_and_json_holds_what_a_script_needs(place: dict[str, str]):
    """The same database, once no other server has it open."""
    with (
        server_without_an_answer(Path(place["PREFECT_HOME"])) as server,
        pytest.raises(PrefectFailed, match=r"within 0\.1 s; it did not; free CPU time or memory, then run again"),
    ):
        server.wait()
    command = ["run", "--dataset-file", "tiny.toml", "--json"]
    command += ["--set", "epochs=3", "--set", "learning_rate=0.1", "--set", "hidden=[8]"]
    ended = idxflow(*command, env=place, cwd=Path(place["HOME"]))
    outcome = json.loads(ended.stdout)
    assert outcome["state"] == "promoted", outcome
    assert outcome["run"], ended.stderr
    assert (outcome["version"], outcome["champion"], outcome["epochs"], outcome["error"]) == (1, 1, 3, None)
    assert outcome["dataset"] == "tiny"
    assert 0 < outcome["train_accuracy"] <= 1
    assert set(outcome["steps"]["train"]) >= {"seconds", "reused", "reason"}
    assert Path(outcome["report"]).is_file()

    with closing(sqlite3.connect(Path(place["PREFECT_HOME"], "prefect.db"))) as database:
        states = database.execute("select state_name from flow_run").fetchall()
        tasks = database.execute("select name, state_type from task_run order by name").fetchall()
        (lines,) = database.execute("select count(*) from log").fetchone()
    assert states == [("Completed",)]
    names = ["confirm", "decide", "decode-test", "decode-train", "evaluate-candidate", "fetch-test-images"]
    names += ["fetch-test-labels", "fetch-train-images", "fetch-train-labels", "normalize", "publish", "train"]
    assert tasks == [(name, "COMPLETED") for name in [*names, "validate"]]
    assert lines > len(tasks)
