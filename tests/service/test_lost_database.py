"""Prefect's database is removed, replaced or broken under `idxflow up`: what it promised is there again by itself."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from flows import arrival_runs, diagnosis
from flows.arrival_runs import connected
from flows.service import server, sqlite
from flows.service.client import querying
from flows.service.deployments import AUTOMATION, VARIABLE
from storage.errors import PrefectFailed
from storage.store import Store
from tests.support.commands import flow_run_command
from tests.support.operated import until
from tests.support.servers import clean_environment, free_port
from tests.support.up import Service, command, configured, going

pytestmark = pytest.mark.flow

CRON = "30 4 * * 2"
SECONDS = 240
"""Only what hangs takes so long."""
RESTORED = "deployed again; schedules as users had left them: "


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`idxflow up`, after somebody has changed schedules, paused a deployment, and disabled the automation."""
    home = tmp_path_factory.mktemp("home")
    environment = clean_environment(
        home,
        PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api",
        IDXFLOW_STORE=str(home / "store"),
        PREFECT_WORKER_QUERY_SECONDS="2",
    )
    with going(environment, home / "up.log", forked=True) as service:
        _as_people_do(service)
        remembered = Path(environment["PREFECT_HOME"]) / "idxflow"
        until(lambda: any(CRON in path.read_text() for path in remembered.glob("remembered-*.json")))
        yield service


def _as_people_do(service: Service) -> None:
    mnist, digits, inbox = (service.deployment(name) for name in ("mnist", "digits", "inbox"))
    changed = {"schedule": {"cron": CRON, "timezone": "UTC"}, "active": False}
    service.ask("PATCH", f"deployments/{mnist['id']}/schedules/{mnist['schedules'][0]['id']}", json=changed)
    schedule = {"schedule": {"interval": 3600, "anchor_date": "2020-01-01T00:00:00Z"}, "active": True, "slug": "hourly"}
    service.post(f"deployments/{digits['id']}/schedules", [schedule])
    service.post(f"deployments/{inbox['id']}/pause_deployment", {})
    service.ask("PATCH", f"automations/{_automations(service)[0]['id']}", json={"enabled": False})


def _automations(service: Service) -> list[dict[str, Any]]:
    return service.post("automations/filter", {"automations": {"name": {"any_": [AUTOMATION]}}})


def database(service: Service) -> Path:
    return Path(service.environment["PREFECT_HOME"]) / "prefect.db"


def lose(service: Service) -> None:
    for path in database(service).parent.glob("prefect.db*"):
        path.unlink()


def restored(service: Service, before: str) -> None:
    """Wait until all is there again."""
    until(lambda: RESTORED in service.output.removeprefix(before))
    # The token against forged requests was in the lost database.
    vars(service).pop("_headers", None)


def assert_all_there(service: Service) -> None:
    deployments = {d["name"]: d for d in service.post("deployments/filter", {})}
    assert set(deployments) == {"digits", "drift", "garbage", "inbox", "mnist", "study"}
    schedules = {
        name: [(s["active"], s["slug"], s["schedule"]) for s in d["schedules"]] for name, d in deployments.items()
    }
    assert [(a, slug, s["cron"]) for a, slug, s in schedules["mnist"]] == [(False, "weekly", CRON)]
    assert [(a, slug, s["interval"]) for a, slug, s in schedules["digits"]] == [(True, "hourly", 3600)]
    assert {name for name, d in deployments.items() if d["paused"]} == {"inbox"}
    assert [a["enabled"] for a in _automations(service)] == [False]
    assert service.get("work_pools/idxflow")["type"] == "process"
    assert service.get(f"variables/name/{VARIABLE}")


def assert_worker_works(service: Service) -> None:
    """A run that is refused at once: the data set is not known."""
    body = {"parameters": {"dataset": "no-such-data"}, "job_variables": {"command": flow_run_command()}}
    run = service.post(f"deployments/{service.deployment('digits')['id']}/create_flow_run", body)["id"]
    until(lambda: service.state(run)[0] == "FAILED")


def has_logged(service: Service, words: str, before: str) -> Callable[[], bool]:
    return lambda: words in service.output.removeprefix(before)


def test_a_database_that_is_removed_under_the_server_is_filled_again(service: Service):
    lose(service)
    restored(service, before="")
    # The server may have made a new file before `up` looked.
    how = r"was (removed|replaced) while the server was running"
    assert re.search(f"the database {re.escape(str(database(service)))} {how}", service.output)
    assert "digits, mnist" in service.output.rpartition(RESTORED)[2]
    assert_all_there(service)
    assert_worker_works(service)


def test_a_database_that_is_lost_while_the_server_is_killed_is_filled_again(service: Service):
    before = service.output
    dead = service.pid("server")
    with stopped(service):
        os.kill(dead, signal.SIGKILL)
        lose(service)
        database(service).touch()
    restored(service, before)
    assert "the server was killed by SIGKILL" in service.output
    assert service.pid("server") != dead
    assert_all_there(service)


@contextmanager
def stopped(service: Service, *more: int) -> Iterator[None]:
    """Keep `up`, and more processes, from doing anything meanwhile."""
    processes = (service.process.pid, *more)
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


@contextmanager
def patiently_configured(service: Service) -> Iterator[None]:
    """Have this process use that server; a busy machine is not what is looked for."""
    with configured(service), pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosis, "_QUERY_SECONDS", SECONDS)
        patch.setattr(server, "_HEALTH_SECONDS", SECONDS)
        patch.setattr(arrival_runs, "_PATIENCE_SECONDS", SECONDS)
        yield


def findings(service: Service) -> dict[str, diagnosis.Diagnosis]:
    """What `idxflow doctor` says of the server."""
    with patiently_configured(service):
        return {
            finding.what: finding for finding in diagnosis._server(Store(Path(service.environment["IDXFLOW_STORE"])))
        }


@pytest.mark.remedies("flows.diagnosis:_worker", "flows.diagnosis:_deployments", "flows.diagnosis:_automation")
@pytest.mark.remedies("flows.arrival_runs:connected")
def test_what_a_person_deletes_comes_back_and_the_doctor_finds_that_it_is_gone(service: Service):
    before = service.output
    with stopped(service, service.pid("worker")):
        assert findings(service)["database"].verdict == "ok"
        for name in ("digits", "drift", "mnist", "inbox", "study", "garbage"):
            service.ask("DELETE", f"deployments/{service.deployment(name)['id']}")
        service.ask("DELETE", f"automations/{_automations(service)[0]['id']}")
        service.ask("DELETE", "work_pools/idxflow")
        pool = findings(service)["worker"]
        assert (pool.verdict, pool.found) == ("problem", "no work pool 'idxflow'")
        assert "within a minute" in pool.remedy
        dead = findings(service)["dead runs"]
        assert dead.found == "no automation ends runs whose machine died"
        assert "within a minute" in dead.remedy
        finding = findings(service)["deployments"]
        assert (finding.verdict, finding.found) == ("problem", "none")
        assert "within a minute" in finding.remedy
        with (
            patiently_configured(service),
            pytest.raises(PrefectFailed, match="found none; `idxflow up` creates it"),
            connected(),
        ):
            pass
    # It names what is still missing: the worker may have made its pool first.
    until(has_logged(service, "deployed again", before))
    again = findings(service)
    assert again["deployments"].remedy != finding.remedy
    assert again["worker"].found != pool.found
    with patiently_configured(service), connected():
        pass
    assert_all_there(service)


@pytest.mark.remedies("flows.diagnosis:_database:3")
def test_the_doctor_finds_that_the_disk_of_the_database_is_full(service: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sqlite, "LEAST_FREE_BYTES", 1 << 60)
    finding = findings(service)["database"]
    store = service.environment["IDXFLOW_STORE"]
    assert (finding.verdict, finding.remedy) == (
        "problem",
        f"free some, for instance with `idxflow gc --store {store}`",
    )
    assert f"{database(service)}, Prefect's database, has less than" in finding.found
    monkeypatch.undo()
    assert findings(service)["database"].verdict == "ok"


@pytest.mark.remedies("flows.diagnosis:_database", "flows.diagnosis:_database:2", "flows.service.client:querying")
def test_the_doctor_finds_a_replaced_database_and_one_that_answers_no_query(service: Service):
    before = service.output
    with stopped(service):
        copy = database(service).with_name("copy.db")
        with sqlite3.connect(database(service)) as connection:
            connection.execute("VACUUM INTO ?", [str(copy)])
        connection.close()
        os.replace(copy, database(service))
        finding = findings(service)["database"]
        assert finding.verdict == "problem"
        assert f"{database(service)} was replaced while the server was running" in finding.found
    until(has_logged(service, "restarting the server", before))
    until(has_logged(service, "server started again", before))
    until(lambda: (now := findings(service).get("database")) and now.verdict == "ok")

    # A table is gone, while the file and the server stay.
    renamed(service, "deployment", "elsewhere")
    finding = findings(service)["database"]
    assert finding.verdict == "problem"
    assert "answers its health check, but not queries" in finding.found
    with pytest.raises(PrefectFailed, match="found .*500 Internal Server Error.*; see its log") as caught:
        ask_for_deployments(service)
    # As both advise.
    log = database(service).parent / "idxflow" / "server.log"
    assert str(log) in str(caught.value)
    assert "no such table: deployment" in log.read_text()
    renamed(service, "elsewhere", "deployment")
    assert ask_for_deployments(service)
    assert findings(service)["database"].verdict == "ok"


def renamed(service: Service, before: str, now: str) -> None:
    with sqlite3.connect(database(service), timeout=60) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        # Of other tables, nothing follows the name.
        connection.execute("PRAGMA legacy_alter_table = ON")
        connection.execute(f"ALTER TABLE {before} RENAME TO {now}")
    connection.close()


def ask_for_deployments(service: Service) -> list[dict[str, Any]]:
    with patiently_configured(service), querying() as ask:
        return ask("/deployments/filter", {})


GARBAGE = b"not a database at all, but long enough to be read as one" * 100


def _garbage(path: Path) -> None:
    path.write_bytes(GARBAGE)


def _malformed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4096)
    path.write_bytes(data)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [_garbage, _malformed, _folder])
def test_what_to_do_about_a_broken_database(spoil: Callable[[Path], None], tmp_path: Path):
    path = Path(clean_environment(tmp_path)["PREFECT_HOME"]) / "prefect.db"
    assert sqlite.trouble(path, "idxflow gc") is None
    spoil(path)
    assert f"mkdir {path.parent}/broken && mv {path}* {path.parent}/broken" in (
        sqlite.trouble(path, "idxflow gc") or ""
    )


@pytest.mark.remedies("flows.service.supervisor:_await_server")
def test_a_broken_database_is_named_with_what_to_do(tmp_path: Path):
    """As one is named to a single run: tests/service/test_temporary_server.py."""
    environment = clean_environment(tmp_path)
    path = Path(environment["PREFECT_HOME"]) / "prefect.db"
    _malformed(path)
    refused = command(environment, "--port", str(free_port()))
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert f"{path}" in refused.stderr
    remedy = f"mkdir {path.parent}/broken && mv {path}* {path.parent}/broken"
    assert remedy in refused.stderr
    subprocess.run(["bash", "-c", remedy], check=True)
    # The next thing that is wrong is said once the server is there.
    again = command({**environment, "IDXFLOW_ZOMBIE_SECONDS": "soon"}, "--port", str(free_port()))
    assert "expected IDXFLOW_ZOMBIE_SECONDS to be a number of seconds" in again.stderr


def test_an_empty_database_is_no_trouble_and_another_user_s_is(tmp_path: Path):
    path = tmp_path / "prefect.db"
    assert sqlite.trouble(path, "idxflow gc") is None
    path.touch(mode=0o600)
    assert sqlite.trouble(path, "idxflow gc") is None
    assert "give it to this user" in as_nobody(lambda: sqlite.trouble(path, "idxflow gc"))


def as_nobody(look: Callable[[], str | None]) -> str:
    """What another user is told; where this one may not become another, what nobody may read."""
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            with suppress(PermissionError):
                os.setresuid(65534, 65534, 65534)
            os.write(write, (look() or "nothing").encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as answer:
        return answer.read().decode()


def test_a_full_disk_is_reported_with_the_bytes_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sqlite, "LEAST_FREE_BYTES", 1 << 60)
    assert re.search(
        r"has less than [\d,.]+ MB free on its disk; free some",
        sqlite.trouble(tmp_path / "prefect.db", "idxflow gc") or "",
    )
