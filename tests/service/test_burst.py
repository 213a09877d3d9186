"""Many runs asked for at once: each that was accepted exists, and who got none is told so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from benchmarks.burst import DEPLOYMENT, burst
from tests.support import commands
from tests.support.servers import Server, guarded_server, wait_until_answers

pytestmark = [pytest.mark.flow, pytest.mark.long]

RUNS = 40
COMMANDS = 2
REQUEST_SECONDS = 600
"""So that none is given up because the machine is busy."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def served(home: Path) -> Iterator[tuple[Server, dict[str, str]]]:
    """A server as `idxflow up` starts it, with a deployment that no worker carries out."""
    with guarded_server(home) as (server, environment):
        settings = {
            PREFECT_API_URL: environment["PREFECT_API_URL"],
            PREFECT_API_AUTH_STRING: environment["PREFECT_API_AUTH_STRING"],
        }
        wait_until_answers(environment)
        with temporary_settings(settings), get_client(sync_client=True) as client:
            _deploy(client)
        yield server, environment


def _deploy(client: SyncPrefectClient) -> None:
    flow, name = DEPLOYMENT.split("/")
    client.create_deployment(client.create_flow_from_name(flow), name)


def test_what_is_asked_for_at_once_is_made_and_nothing_is_locked(served: tuple[Server, dict[str, str]], home: Path):
    _, environment = served
    patient = {**environment, "PREFECT_API_REQUEST_TIMEOUT": str(REQUEST_SECONDS)}
    with temporary_settings({PREFECT_API_REQUEST_TIMEOUT: REQUEST_SECONDS}):
        outcome = burst(patient, home / "server.log", RUNS, COMMANDS)
    assert (outcome.asked, outcome.accepted, outcome.refused) == (RUNS + COMMANDS, RUNS + COMMANDS, 0)
    assert (outcome.existing, outcome.lost, outcome.locked) == (RUNS + COMMANDS, 0, 0)


def test_what_is_not_accepted_ends_in_an_error_and_what_was_accepted_outlives_the_server(
    served: tuple[Server, dict[str, str]], home: Path
):
    server, environment = served
    # Else each asker tries again until the server is back.
    impatient = {"PREFECT_CLIENT_MAX_RETRIES": "0", "PREFECT_API_REQUEST_TIMEOUT": str(REQUEST_SECONDS)}
    accepted = 0

    def kill_at_the_third() -> None:
        nonlocal accepted
        accepted += 1
        if accepted == 3:
            server.kill()
            server.start()

    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: REQUEST_SECONDS}):
        outcome = burst({**environment, **impatient}, home / "server.log", RUNS, 0, kill_at_the_third)
    assert outcome.lost == 0
    assert outcome.refused > 0
    assert outcome.accepted + outcome.refused == outcome.asked
    assert outcome.existing >= outcome.accepted

    server.stop()
    impatient["PREFECT_API_REQUEST_TIMEOUT"] = "2"
    process = commands.prefect("deployment", "run", DEPLOYMENT, env={**environment, **impatient}, cwd=Path("/"))
    assert process.returncode != 0
