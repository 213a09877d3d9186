"""Scheduled times that were missed: one run makes up for all of them, and the others say so."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from storage.ledger import Ledger
from storage.store import Store
from tests.servers import BIN, ROOT, prefect_server, running
from tests.test_deployment import post, prefect, until

pytestmark = pytest.mark.flow

MISSED = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server with the deployments of `prefect.yaml`, and no worker."""
    home = tmp_path_factory.mktemp("home")
    with prefect_server(home) as environment:
        prefect(environment, "work-pool", "create", "idxflow", "--type", "process")
        prefect(environment, "--no-prompt", "deploy", "--all")
        yield {**environment, "IDXFLOW_STORE": str(home / "store"), "PREFECT_WORKER_QUERY_SECONDS": "2"}


def miss_some_runs(server: dict[str, str], deployment: str, **parameters: Any) -> None:
    """Schedule runs for the next seconds, while there is no worker, and wait until all their times are over."""
    start = datetime.now(UTC) + timedelta(seconds=15)
    rule = f"DTSTART:{start:%Y%m%dT%H%M%SZ}\nRRULE:FREQ=SECONDLY;INTERVAL=1;COUNT={MISSED}"
    schedule = {"active": True, "parameters": parameters, "schedule": {"rrule": rule, "timezone": "UTC"}}
    post(server, f"deployments/{deployment}/schedules", [schedule])
    until(lambda: len(runs(server, deployment)) == MISSED)
    time.sleep(max(0.0, (start + timedelta(seconds=MISSED) - datetime.now(UTC)).total_seconds()))


def runs(server: dict[str, str], deployment: str) -> list[dict[str, Any]]:
    wanted = {"deployments": {"id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return post(server, "flow_runs/filter", wanted)


def test_of_missed_runs_the_latest_is_carried_out(server: dict[str, str]):
    digits = {d["name"]: d["id"] for d in post(server, "deployments/filter", {})}["digits"]
    miss_some_runs(server, digits, training={"epochs": 2})
    home = Path(server["HOME"])
    with running(
        [str(BIN / "prefect"), "worker", "start", "--pool", "idxflow", "--type", "process"],
        server,
        ROOT,
        home / "worker.log",
    ):

        def ended() -> list[dict[str, Any]] | None:
            found = runs(server, digits)
            # Cancelled is not the end here: the run that holds the slot makes way and puts it right.
            return found if all(run["state"]["type"] == "COMPLETED" for run in found) else None

        found = until(ended, 150)
    names = [run["state"]["name"] for run in found]
    assert Counter(names) == {"Superseded": MISSED - 1, "Promoted": 1} or names[-1] == "Refused: model"
    assert names[-1] != "Superseded"
    latest = datetime.fromisoformat(found[-1]["expected_start_time"])
    for run in found[:-1]:
        assert run["state"]["message"] == f"superseded by the run scheduled for {latest:%Y-%m-%d %H:%M:%S} UTC"
    assert len(Ledger(Store(home / "store"), "digits").read("runs")) == 1


def test_a_wrong_policy_is_refused_before_the_run_starts(server: dict[str, str]):
    digits = {d["name"]: d["id"] for d in post(server, "deployments/filter", {})}["digits"]
    url = f"{server['PREFECT_API_URL']}/deployments/{digits}/create_flow_run"
    answer = httpx.post(url, json={"parameters": {"catch_up": "some"}, "state": {"type": "SCHEDULED"}}, timeout=30)
    assert answer.status_code in (409, 422)
    assert "catch_up" in answer.text
