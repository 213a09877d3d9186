"""`idxflow up` on a store in object storage: runs reach it, and nobody else sees what opens it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from obstore.store import from_url

from flows.service.server import Address, client_environment, server_environment
from tests.support.commands import flow_run_command, idxflow
from tests.support.object_servers import ObjectServer
from tests.support.operated import until
from tests.support.servers import clean_environment, free_port
from tests.support.up import Service, going

pytestmark = pytest.mark.long

HERE = Address("127.0.0.1", 4200, "http://127.0.0.1:4200/api")


@pytest.fixture(scope="module")
def service(object_storage: ObjectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    environment = clean_environment(
        home,
        PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api",
        IDXFLOW_STORE=object_storage.address,
        IDXFLOW_CACHE=str(home / "cache"),
        PREFECT_WORKER_QUERY_SECONDS="2",
        **object_storage.environment,
    )
    with going(environment, home / "up.log", forked=True) as service:
        yield service


@pytest.mark.flow
def test_a_deployment_retrains_in_object_storage_and_shows_nobody_the_credentials(
    service: Service, object_storage: ObjectServer, tmp_path: Path
):
    body = {
        "parameters": {"dataset": "digits", "profile": "fast"},
        "job_variables": {"command": flow_run_command()},
    }
    run = service.post(f"deployments/{service.deployment('digits')['id']}/create_flow_run", body)["id"]
    assert until(lambda: service.has_state(run, "COMPLETED")).startswith("promoted v1")

    elsewhere = {**service.login, "IDXFLOW_CACHE": str(tmp_path / "another")}
    result = idxflow("status", "digits", "--json", env=elsewhere)
    (status,) = json.loads(result.stdout)["datasets"]
    assert status["champion"]["version"] == 1

    home = Path(service.environment["HOME"])
    secret = object_storage.environment["AWS_SECRET_ACCESS_KEY"].encode()
    files = [path for path in home.rglob("*") if path.is_file()]
    assert home / "prefect" / "prefect.db" in files
    assert [path for path in files if secret in path.read_bytes()] == []
    store = from_url(
        object_storage.address.partition("?")[0], config=object_storage.config, client_options={"allow_http": True}
    )
    kept = [found["path"] for page in store.list() for found in page]
    assert any("/ledger/runs/" in path for path in kept)
    assert [path for path in kept if secret in bytes(store.get(path).bytes())] == []


@pytest.mark.flow
def test_an_address_with_a_password_does_not_reach_the_database(service: Service):
    body = {"parameters": {"dataset": "digits", "store": "s3://key:canary-in-an-address@bucket/store"}}
    with pytest.raises(httpx.HTTPStatusError, match="409 Conflict"):
        service.post(f"deployments/{service.deployment('digits')['id']}/create_flow_run", body)
    home = Path(service.environment["PREFECT_HOME"])
    assert [path for path in home.rglob("*") if path.is_file() and b"canary-in-an" in path.read_bytes()] == []


def test_only_the_worker_is_given_credentials(monkeypatch: pytest.MonkeyPatch):
    given = {"AWS_SECRET_ACCESS_KEY": "s", "AZURE_STORAGE_ACCOUNT_KEY": "a", "GOOGLE_SERVICE_ACCOUNT_KEY": "g"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    address = "s3://bucket/store?endpoint=http://127.0.0.1:9000"
    worker = client_environment(HERE, None, address)
    assert worker.items() >= {**given, "IDXFLOW_STORE": address}.items()
    assert not given.keys() & server_environment(HERE, None, None, csrf=True).keys()
