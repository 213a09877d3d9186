"""Retention on a schedule: runs and events of Prefect's database, and the store, stay as large as they are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, LogCreate
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Running
from prefect.types._datetime import now

from flows.collect import _trim, collect
from storage.store import Store
from storage.verify import verify
from tests.conftest import write_tiny
from tests.support.faultserver import FaultServer
from tests.support.operated import until
from tests.support.runs import carried_out
from tests.support.servers import HTTP, ROOT, guarded_server, used_in_this_process, wait_until_answers

pytestmark = [pytest.mark.flow, pytest.mark.long]

KEEP_RUNS = 3
RUNS = 12
TABLES = ("flow_run", "flow_run_state", "log", "artifact", "artifact_collection", "events", "event_resources")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[SyncPrefectClient]:
    """A client of a server as `idxflow up` starts it; flows called in this process use it as well."""
    with (
        guarded_server(home) as (_, environment),
        used_in_this_process(environment, home),
        get_client(sync_client=True) as client,
    ):
        wait_until_answers(environment)
        yield client


@pytest.fixture(scope="module")
def deployment(client: SyncPrefectClient) -> UUID:
    return client.create_deployment(client.create_flow_from_name("made"), "of-the-test")


def ask(home: Path, query: str, *values: str) -> list[tuple[Any, ...]]:
    """Ask the server's database."""
    with closing(sqlite3.connect(home / "prefect" / "prefect.db", timeout=60)) as database:
        return database.execute(query, values).fetchall()


def rows(home: Path) -> dict[str, int]:
    return {name: ask(home, f"SELECT count(*) FROM {name}")[0][0] for name in TABLES}


def pages(home: Path) -> tuple[int, int]:
    """How many pages are in use, and how many the file has, with those that are free for new rows."""
    every, free = (ask(home, f"PRAGMA {name}")[0][0] for name in ("page_count", "freelist_count"))
    return every - free, every


def names(runs: list[UUID]) -> set[str]:
    """What events call them."""
    return {f"prefect.flow-run.{run}" for run in runs}


def about(home: Path) -> set[str]:
    """What events are about."""
    return {name for (name,) in ask(home, "SELECT DISTINCT resource_id FROM event_resources")}


def make_runs(client: SyncPrefectClient, deployment: UUID, home: Path) -> list[UUID]:
    """Make runs that leave what runs leave: states, logs, a large artifact, events of all that."""
    runs = []
    for number in range(RUNS):
        run = client.create_flow_run_from_deployment(deployment).id
        client.set_flow_run_state(run, Running())
        line = LogCreate(name="made", level=20, message="a line" * 20, timestamp=now("UTC"), flow_run_id=run)
        client.create_logs([line] * 30)
        client.create_artifact(ArtifactCreate(key="made", type="markdown", data=f"{number}" * 50_000, flow_run_id=run))
        client.set_flow_run_state(run, Completed())
        runs.append(run)
    # Events are kept later than they happen, in their order.
    completed = "SELECT resource_id FROM events WHERE event = 'prefect.flow-run.Completed'"
    until(lambda: names(runs) <= {name for (name,) in ask(home, completed)})
    return runs


def test_old_runs_go_with_all_that_is_theirs_and_the_database_stays_as_large_as_it_is(
    client: SyncPrefectClient, deployment: UUID, home: Path, tmp_path: Path
):
    unfinished = client.create_flow_run_from_deployment(deployment).id
    client.set_flow_run_state(unfinished, Running())
    other = client.create_flow_run_from_deployment(
        client.create_deployment(client.create_flow_from_name("other"), "of-the-test")
    ).id
    client.set_flow_run_state(other, Completed())
    sizes = []
    for _ in range(3):
        runs = make_runs(client, deployment, home)
        state = collect(keep_flow_runs=KEEP_RUNS, store=str(tmp_path / "store"), return_state=True)
        assert state.type == StateType.COMPLETED, state.message
        after = rows(home)
        remaining = {run.id for run in client.read_flow_runs()}
        # The newest that have ended, the one that has not, and what another deployment has.
        assert remaining >= {*runs[-KEEP_RUNS:], unfinished, other}
        assert not remaining & set(runs[:-KEEP_RUNS])
        assert after["artifact"] == KEEP_RUNS
        assert ask(home, "SELECT count(*) FROM log WHERE name = 'made'") == [(30 * KEEP_RUNS,)]
        assert after["artifact_collection"] == 1
        assert client.read_artifacts(limit=1)
        assert not names(runs[:-KEEP_RUNS]) & about(home)
        assert names(runs[-KEEP_RUNS:]) <= about(home)
        sizes.append(pages(home))
    # Where there was room for twelve runs, there is room for the next twelve.
    (_, first), (used, second), (used_again, third) = sizes
    assert used_again < used * 1.1
    assert third <= max(first, second) * 1.1


def test_events_go_by_age_too(client: SyncPrefectClient, deployment: UUID, home: Path, tmp_path: Path):
    runs = make_runs(client, deployment, home)
    assert names(runs) <= about(home)
    collect(event_days=0, store=str(tmp_path / "store"))
    assert not names(runs) & about(home)
    assert set(runs) <= {run.id for run in client.read_flow_runs()}


def test_nobody_else_makes_the_server_forget(client: SyncPrefectClient):
    answer = HTTP.post(f"{client.api_url}idxflow/trim", json={"keep_flow_runs": 1, "event_days": 0})
    assert answer.status_code in (401, 403)


def test_the_store_is_collected_and_what_cannot_be_is_named(client: SyncPrefectClient, tmp_path: Path):
    store = Store(tmp_path / "store")
    dataset = write_tiny(tmp_path)
    for seed in range(3):
        carried_out(store, dataset.manifest, seed=seed)
    before = sum(1 for path in store.root.rglob("*") if path.is_file())
    with store.in_use("tiny"):
        busy = collect(keep_versions=1, store=str(store.root))
    assert busy["busy"] == ["tiny"]
    assert busy["entries"] == 0
    summary = collect(keep_versions=1, store=str(store.root))
    assert summary["entries"] > 0
    assert summary["bytes"] > 0
    assert sum(1 for path in store.root.rglob("*") if path.is_file()) < before
    assert not verify(store).damage

    ledger = next(path for path in store.dataset("tiny").rglob("*.json") if "ledger" in str(path))
    ledger.write_text("{}")
    state = collect(keep_versions=1, store=str(store.root), return_state=True)
    assert state.type == StateType.FAILED
    assert state.message.startswith("tiny: ")


def test_a_server_that_idxflow_did_not_start_keeps_what_it_has(caplog: pytest.LogCaptureFixture):
    with FaultServer({}) as other:
        settings = {PREFECT_API_URL: f"http://{other.host}/api"}
        with temporary_settings(settings), get_client(sync_client=True) as client:
            assert _trim(client, 1, 1) == {"flow_runs": 0, "events": 0}
    assert "the server was not started by idxflow" in caplog.text


def test_it_is_weekly_and_one_key_turns_it_off():
    plan = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    (garbage,) = (d for d in plan["deployments"] if d["entrypoint"] == "flows.collect.collect")
    assert garbage["parameters"] == {"keep_versions": 10, "keep_flow_runs": 200, "event_days": 7}
    assert [(s["cron"], s["active"]) for s in garbage["schedules"]] == [("0 5 * * 1", True)]
