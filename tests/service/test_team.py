"""A team: one PostgreSQL, one Prefect server, one store in object storage; three users with nothing else in common."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from obstore.store import from_url
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_SSL_CERT_FILE, PREFECT_API_URL, temporary_settings

from flows.service.deployments import ensure_pool
from storage.objects.leases import Leases
from storage.objects.opening import opened
from tests.support import commands
from tests.support.object_servers import ObjectServer
from tests.support.operated import fork_flow_runs, until, worker
from tests.support.postgres import Cluster, postgres
from tests.support.servers import clean_environment, guarded_server

pytestmark = pytest.mark.long

PASSWORD = "canary-of-the-database"
FIRST, SECOND, PERSON = 61_001, 61_002, 61_003
"""Users, who need not be in the system's list."""


@dataclass(frozen=True)
class Member:
    """One of the team, with a home and a cache of its own, as on a machine of its own."""

    user: int
    home: Path
    environment: dict[str, str]

    def idxflow(self, *arguments: str) -> str:
        ended = commands.idxflow(*arguments, env=self.environment, cwd=self.home, user=self.user)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def asked(self, *arguments: str) -> Any:
        return json.loads(self.idxflow(*arguments, "--json"))


@pytest.fixture
def homes() -> Iterator[Path]:
    """A folder that others can enter, unlike pytest's."""
    if os.getuid() != 0:
        pytest.skip("needs to be root, to be other users as well")
    folder = Path(tempfile.mkdtemp(prefix="idxflow-team-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def member(user: int, homes: Path, **more: str) -> Member:
    home = homes / str(user)
    (home / "tmp").mkdir(parents=True)
    places = {"IDXFLOW_CACHE": str(home / "cache"), "TMPDIR": str(home / "tmp")}
    # Only a server needs a database in its home.
    environment = clean_environment(home, first_start=True, **places, **more)
    for folder in (home, home / "tmp"):
        os.chown(folder, user, user)
        folder.chmod(0o700)
    return Member(user, home, environment)


@contextmanager
def team_server(home: Path) -> Iterator[tuple[Cluster, dict[str, str]]]:
    """Run a PostgreSQL, and a Prefect server on it that requires an auth string; yield what a client needs."""
    home.mkdir()
    with postgres(PASSWORD) as cluster:
        database = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": cluster.url, "PGPASSWORD": PASSWORD}
        with guarded_server(home, **database) as (_, environment):
            names = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_API_SSL_CERT_FILE")
            yield cluster, {name: environment[name] for name in names}


@contextmanager
def client_of(server: dict[str, str]) -> Iterator[SyncPrefectClient]:
    settings = {
        PREFECT_API_URL: server["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: server["PREFECT_API_AUTH_STRING"],
        PREFECT_API_SSL_CERT_FILE: server["PREFECT_API_SSL_CERT_FILE"],
    }
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client


def deployed(client: SyncPrefectClient, queue: str, seed: int) -> FlowRun:
    """Make a deployment whose runs only the worker of a queue takes, and a run of it."""
    made = client.create_deployment(
        flow_id=client.create_flow_from_name("retrain"),
        name=queue,
        entrypoint="flows.retrain.retrain",
        work_pool_name="idxflow",
        work_queue_name=queue,
        parameters={"dataset": "digits", "profile": "fast", "training": {"seed": seed}},
    )
    return client.create_flow_run_from_deployment(made)


def says(client: SyncPrefectClient, run: FlowRun, words: str) -> bool:
    """Return whether a line of a run's log has these words; a run that has ended fails the test."""
    now = client.read_flow_run(run.id)
    assert not (now.state and now.state.is_final()), now.state
    lines = client.read_logs(LogFilter.model_validate({"flow_run_id": {"any_": [run.id]}}))
    return any(words in line.message for line in lines)


def ended(client: SyncPrefectClient, run: FlowRun) -> FlowRun | None:
    now = client.read_flow_run(run.id)
    return now if now.state and now.state.is_final() else None


def without_secrets(secret: str, homes: Path, cluster: Cluster, place: ObjectServer) -> None:
    """Look for a secret in all files of the team, in Prefect's database and in the store."""
    files = [path for path in homes.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"worker.log", "server.log"}
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    dump = cluster.dump()
    assert "waiting for `gc`" in dump
    assert secret not in dump
    store = from_url(place.address.partition("?")[0], config=place.config, client_options={"allow_http": True})
    kept = [found["path"] for page in store.list() for found in page]
    assert any("/ledger/runs/" in path for path in kept)
    assert [path for path in kept if secret.encode() in bytes(store.get(path).bytes())] == []


def retrained_at_once(client: SyncPrefectClient, workers: list[Member], address: str) -> list[FlowRun]:
    """Have each worker carry out a run, all from the same moment; return the runs, which have ended."""
    # They wait for a `gc`, which ends when all are there.
    leases, flag, runs = Leases(opened(address)), "digits/gc/0000.json", []
    leases.hold(flag)
    with ExitStack() as running:
        for seed, one in enumerate(workers):
            runs.append(deployed(client, str(one.user), seed))
            words = ("worker", "start", "--pool", "idxflow", "--type", "process", "--work-queue", str(one.user))
            running.enter_context(worker(*words, environment=one.environment, home=one.home, user=one.user))
        for run in runs:
            until(partial(says, client, run, "waiting for `gc`"))
        leases.release(flag)
        return [until(partial(ended, client, run)) for run in runs]


def decided(person: Member, names: set[str]) -> tuple[int, list[Any]]:
    """Check what both runs left; return the champion and the history."""
    assert {record["run"] for record in person.asked("runs", "list", "digits")} == names
    second, first = history = person.asked("registry", "history", "digits")
    assert {first["version"], second["version"]} == {1, 2}
    assert {first["run"], second["run"]} == names
    assert first["outcome"] == "promoted"
    # However close they were, it has found the champion of the first.
    assert (first["before"], second["before"]) == (None, first["version"])
    return second["after"], history


@pytest.mark.flow
def test_two_workers_retrain_at_once_a_third_user_rolls_back_and_all_see_one_history(
    object_storage: ObjectServer, homes: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in object_storage.environment.items():
        monkeypatch.setenv(name, value)
    shared = {"IDXFLOW_STORE": object_storage.address, **object_storage.environment}
    with team_server(homes / "server") as (cluster, server), client_of(server) as client:
        ensure_pool(client, "idxflow")
        fork_flow_runs(client)
        first, second = (
            member(user, homes, PREFECT_WORKER_QUERY_SECONDS="2", **server, **shared) for user in (FIRST, SECOND)
        )
        person = member(PERSON, homes, **shared)
        runs = retrained_at_once(client, [first, second], object_storage.address)
        assert [run.state.type.value for run in runs if run.state] == ["COMPLETED"] * 2, [run.state for run in runs]
        # Such as "digits 20261129-152727-27b3 promoted v1".
        champion, before = decided(person, {run.name.split()[1] for run in runs})

        person.idxflow("promote", "digits", str(3 - champion), "--force", "--reason", "another try")
        person.idxflow("rollback", "digits", "--reason", "it was better")
        history = person.asked("registry", "history", "digits")
        changes = [(one["outcome"], one["before"], one["after"]) for one in history[:2]]
        assert changes == [("rolled back", 3 - champion, champion), ("forced", champion, 3 - champion)]
        assert history[2:] == before
        for one in (first, second):
            assert one.asked("registry", "history", "digits") == history
            assert (one.home / "cache").stat().st_uid == one.user
        verdict = person.idxflow("verify", "digits")
        # Of two runs and four decisions.
        assert "2 versions, 6 ledger records" in verdict
        assert "0 damaged, 0 left over" in verdict
        without_secrets(object_storage.environment["AWS_SECRET_ACCESS_KEY"], homes, cluster, object_storage)
