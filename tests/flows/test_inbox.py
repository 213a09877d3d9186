"""`idxflow watch` and the Prefect server: a set has been announced when the server has its run, and not before.

No worker takes the runs up here; tests/service/test_operated.py and tests/service/test_up.py are about what becomes
of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.service.deployments import ensure_pool
from storage.ledger import Ledger
from storage.store import Store
from tests.conftest import write_tiny
from tests.support.commands import Command, idxflow
from tests.support.operated import post, prefect, until
from tests.support.servers import HTTP

pytestmark = pytest.mark.flow

POOL = "for-inboxes"


@pytest.fixture(scope="module")
def deployed(server: dict[str, str]) -> Iterator[str]:
    """The deployment `retrain/inbox` on a server that others use as well; its id."""
    with temporary_settings({PREFECT_API_URL: server["PREFECT_API_URL"]}), get_client(sync_client=True) as client:
        ensure_pool(client, POOL)
        prefect(server, "--no-prompt", "deploy", "--name", "inbox", "--pool", POOL)
        deployment = client.read_deployment_by_name("retrain/inbox").id
        yield str(deployment)
        client.delete_deployment(deployment)


class World:
    """A folder that archives of `tiny` arrive in, and the server that is told."""

    def __init__(self, home: Path, server: dict[str, str], deployment: str) -> None:
        self.manifest = write_tiny(home).manifest
        self.first, self.second = home / "tiny-source", write_tiny(home, train=150, name="other").source
        self.inbox, self.store = home / "inbox", Store(home / "store")
        self.environment = {**server, "IDXFLOW_STORE": str(self.store.root)}
        self.deployment = deployment
        self.inbox.mkdir()

    def put(self, source: Path) -> None:
        shutil.copytree(source, self.inbox, dirs_exist_ok=True)

    def words(self, *more: str) -> list[str]:
        return ["watch", str(self.inbox), "--dataset-file", str(self.manifest), *more]

    def once(self) -> subprocess.CompletedProcess[str]:
        return idxflow(*self.words("--once"), env=self.environment)

    def sets(self) -> list[str]:
        return [values["arrival"] for values in Ledger(self.store, "tiny").read("arrivals")]

    def runs(self) -> list[dict[str, Any]]:
        """The runs of sets of this world, oldest first."""
        query = {"deployments": {"id": {"any_": [self.deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
        runs = post(self.environment, "flow_runs/filter", query)
        return [run for run in runs if run["parameters"]["arrival"] in self.sets()]

    def announced(self) -> list[str]:
        return [run["parameters"]["arrival"] for run in self.runs()]

    def set_state(self, kind: str, message: str = "") -> None:
        """Do what a worker or a person does to the newest run."""
        state = {"type": kind, "message": message}
        answer = post(self.environment, f"flow_runs/{self.runs()[-1]['id']}/set_state", {"state": state, "force": True})
        assert answer["status"] == "ACCEPT"

    def delete(self) -> None:
        """Delete the newest run, as a lost database does with all of them."""
        HTTP.delete(f"{self.environment['PREFECT_API_URL']}/flow_runs/{self.runs()[-1]['id']}").raise_for_status()


@pytest.fixture
def world(tmp_path: Path, server: dict[str, str], deployed: str) -> World:
    return World(tmp_path, server, deployed)


def test_a_set_is_announced_until_there_is_a_run_of_it_and_then_no_more(world: World):
    world.put(world.first)
    first = world.once()
    (arrival,) = world.sets()
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.endswith(f"complete; set {arrival}\ntiny: set {arrival} announced, its flow run is created\n")
    assert world.announced() == [arrival]
    nothing = f"tiny: nothing to announce, the archives in {world.inbox} have been announced\n"
    assert world.once().stdout == nothing
    world.delete()
    assert world.once().stdout == f"tiny: set {arrival} announced, its flow run is created\n"
    assert world.announced() == [arrival]
    # It may have ended while the server was not there, or had lost its database.
    Ledger(world.store, "tiny").append(
        "runs", "run", {"state": "promoted", "sentence": "promoted v1", "arrival": arrival}
    )
    world.delete()
    assert world.once().stdout == nothing
    assert world.announced() == []


@pytest.mark.remedies("flows.watcher:_announce")
def test_the_next_set_is_announced_when_the_run_of_the_one_before_it_has_started(world: World):
    world.put(world.first)
    assert world.once().returncode == 0
    world.put(world.second)
    waits = world.once()
    earlier, later = world.sets()
    assert waits.returncode == 1
    created = f"its run is created when the previous set's run, 'tiny {earlier}', has started"
    assert f"idxflow: tiny: the set {later} waits; {created}" in waits.stderr
    assert world.announced() == [earlier]
    world.set_state("RUNNING")
    assert world.once().stdout == f"tiny: set {later} announced, its flow run is created\n"
    assert world.announced() == [earlier, later]


def test_a_run_whose_process_died_is_reported_once_and_not_repeated(world: World):
    world.put(world.first)
    with Command(*world.words("--every", "0.2"), env=world.environment) as watcher:
        until(lambda: "announced, its flow run is created" in watcher.output)
        (arrival,) = world.sets()
        world.set_state("CRASHED", "killed by signal 9")
        again = f"prefect deployment run retrain/inbox --param dataset=tiny --param arrival={arrival}"
        until(lambda: again in watcher.errors)
        # The next set is not held up by it.
        world.put(world.second)
        until(lambda: len(world.announced()) == 2)
        assert watcher.errors.count("found Crashed: killed by signal 9; it is not retried automatically") == 1
    # What the command says does what it says.
    prefect(world.environment, *again.split()[1:])
    assert [world.announced().count(announced) for announced in world.sets()] == [2, 1]


def test_what_a_killed_watcher_had_taken_is_announced_by_the_next_one(world: World):
    """Killed between the snapshot and the run, with another set in the folder by then."""
    world.put(world.first)
    nowhere = {**world.environment, "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    with Command(*world.words("--every", "0.2"), env=nowhere) as watcher:
        until(world.sets)
        os.kill(watcher.pid, signal.SIGKILL)
    # As if killed before the record of it was written.
    (record,) = (world.store.dataset("tiny") / "ledger" / "arrivals").iterdir()
    (arrival,) = world.sets()
    record.unlink()
    world.put(world.second)
    with Command(*world.words("--every", "0.2"), env=world.environment):
        until(lambda: world.announced() == [arrival])
        world.set_state("RUNNING")
        until(lambda: len(world.announced()) == 2)
    assert world.announced() == world.sets()
