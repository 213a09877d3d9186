"""Credentials in an address are sent to its server and are found nowhere else."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import sqlite3
import subprocess
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from flows.retrain import validate_dataset
from storage.datasets.catalog import Dataset
from storage.errors import SourceUnavailable
from storage.store import Store
from tests.conftest import write_tiny
from tests.fetch.helpers import BODY, PATH, SECRET, SPEC, get, publish
from tests.support.commands import idxflow
from tests.support.faultserver import FaultServer, cut, good, in_turn, redirect, status
from tests.support.operated import worker
from tests.support.servers import HTTP, ROOT, prefect_server


def test_a_secret_in_an_address_is_sent_to_its_server_and_said_nowhere(
    store: Store, dataset: Dataset, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    answers = {PATH: in_turn(cut(BODY, 9000, ETag='"a"'), status(500), good(BODY)), "/bad": status(403)}
    with FaultServer(answers) as server:
        answers["/away"] = redirect(f"{server.url('/bad')}?signature={SECRET}")
        urls = [server.url(f"{path}?signature={SECRET}", user=f"{SECRET}:{SECRET}@") for path in ("/away", PATH)]
        fetched = get(store, dataset, *urls)
        # httpx quotes what it cannot read.
        answers["/nonsense"] = redirect(f"http://127.0.0.1:{SECRET}/")
        with pytest.raises(SourceUnavailable) as raised:
            get(store, dataset, urls[0], server.url("/nonsense"), spec=replace(SPEC, sha256="0" * 64))
        assert SECRET in server.requests[0].path
        assert server.requests[0].headers["authorization"].startswith("Basic ")
    text = "".join(traceback.format_exception(raised.value)) + caplog.text + repr(fetched)
    text += "".join(str(p) + p.read_text(errors="replace") for p in store.root.rglob("*") if p.is_file())
    assert SECRET not in text
    assert base64.b64encode(f"{SECRET}:{SECRET}".encode()).decode() not in text
    assert "HTTP Request" not in text
    assert fetched.record.source == server.url(PATH)


PASSWORD = f"{SECRET}%40+word"


@dataclass(frozen=True)
class Place:
    """A Prefect server, a tiny data set with digests, and a guarded server that redirects to signed addresses."""

    prefect: dict[str, str]
    folder: Path
    manifest: Path
    source: FaultServer

    @property
    def secret_source(self) -> str:
        return f"{self.source.url('/in', user=f'{SECRET}-user:{PASSWORD}@')}?token={SECRET}-token"

    def cli(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Call `idxflow` in a process of its own, and keep what it says."""
        place = ("--dataset-file", str(self.manifest))
        result = idxflow(*arguments, *place, env={**self.prefect, **environment}, cwd=self.folder)
        (self.folder / f"{len(list(self.folder.iterdir()))}.said").write_text(result.stdout + result.stderr)
        return result

    def api(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return HTTP.post(f"{self.prefect['PREFECT_API_URL']}/{path}", json=body)

    def end_of(self, run: str, seconds: float = 200) -> dict[str, Any]:
        """Wait for a flow run to end; return its state."""
        deadline = time.monotonic() + seconds
        while True:
            state = HTTP.get(f"{self.prefect['PREFECT_API_URL']}/flow_runs/{run}").json()["state"]
            if state["type"] not in ("SCHEDULED", "PENDING", "RUNNING") or time.monotonic() > deadline:
                return state
            time.sleep(0.5)

    def everything(self) -> dict[str, bytes]:
        """All that anything here has written or tells, by name.

        That is each file, with the database of Prefect, its write-ahead log, the logs of the server and of workers,
        stores and reports, and what commands said; the database once more as text, because a page of it may end within
        a word; and what the API shows.
        """
        home = Path(self.prefect["HOME"])
        contents = {
            str(path): str(path).encode() + path.read_bytes()
            for folder in (home, self.folder)
            for path in folder.rglob("*")
            if path.is_file()
        }
        with closing(sqlite3.connect(home / "prefect" / "prefect.db")) as database:
            contents["dump of prefect.db"] = "\n".join(database.iterdump()).encode()
        for path in ("logs", "artifacts", "flow_runs", "task_runs", "deployments", "block_documents"):
            contents[f"API: {path}"] = self.api(f"{path}/filter", {"limit": 200}).raise_for_status().content
        return contents


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    dataset = write_tiny(folder)
    published = publish(dataset)
    answers = {f"/in{path}": redirect(f"/signed{path}?X-Signature={SECRET}-signature") for path in published.bodies}
    answers |= {f"/signed{path}": good(body) for path, body in published.bodies.items()}
    shutil.rmtree(dataset.source)
    with FaultServer(answers) as source, prefect_server(tmp_path_factory.mktemp("home")) as (_, prefect):
        yield Place(prefect, folder, published.manifest, source)


def assert_no_canary(place: Place) -> None:
    """Look for the credentials as they are, decoded, and as a request's header has them."""
    header = base64.b64encode(f"{SECRET}-user:{unquote(PASSWORD)}".encode())
    contents = place.everything()
    # What is looked through is what was said: the address without its secrets is in there.
    address = place.source.host.encode()
    for kind in (".said", "prefect.db", "API: logs", "API: artifacts", "API: flow_runs", "report.json"):
        assert any(kind in name and address in data for name, data in contents.items()), kind
    assert [name for name, data in contents.items() if SECRET.encode() in data or header[:-4] in data] == []


@pytest.mark.flow
def test_credentials_of_a_source_are_found_nowhere_after_runs_that_succeed_and_fail(place: Place):
    place.source.requests.clear()
    quick = ("--set", "epochs=2", "--set", "learning_rate=0.1", "--set", "hidden=[8]")
    run = place.cli("run", *quick, IDXFLOW_SOURCE=place.secret_source, IDXFLOW_STORE=str(place.folder / "store"))
    assert "report " in run.stdout, run.stderr
    requests = place.source.requests
    assert {f"token={SECRET}-token", f"X-Signature={SECRET}-signature"} == {r.path.partition("?")[2] for r in requests}
    assert all(request.headers["authorization"].startswith("Basic ") for request in requests)

    # Each archive fails in its own way; the run's sentence is one of them, the rest is in the log.
    place.source.answers |= {
        "/signed/t10k-labels-idx1-ubyte.gz": status(403),
        "/signed/train-labels-idx1-ubyte.gz": good(b"other bytes"),
        "/signed/t10k-images-idx3-ubyte.gz": redirect(f"ftp://x:{SECRET}@127.0.0.1/"),
        "/signed/train-images-idx3-ubyte.gz": redirect(f"http://x:{SECRET}@127.0.0.1:{SECRET}/"),
    }
    failed = place.cli("run", "--json", IDXFLOW_SOURCE=place.secret_source, IDXFLOW_STORE=str(place.folder / "failed"))
    outcome = json.loads(failed.stdout)
    assert outcome["state"] in ("failed", "refused")
    assert place.source.host in outcome["sentence"]
    assert Path(outcome["report"]).is_file()
    assert_no_canary(place)


@pytest.mark.flow
def test_credentials_in_a_parameter_are_refused_before_they_are_kept(place: Place):
    result = place.cli("run", "--source", place.secret_source, "--json")
    assert result.returncode == 2
    assert "IDXFLOW_SOURCE" in json.loads(result.stdout)["error"]["sentence"]
    deployment = deploy(place)
    for source in (place.secret_source, f"https://host/?{SECRET}", f"https://{SECRET}@host"):
        answer = place.api(f"deployments/{deployment}/create_flow_run", {"parameters": {"source": source}})
        assert answer.status_code in (409, 422), answer.text
    assert SECRET.encode() not in b"".join(place.everything().values())


@pytest.mark.flow
def test_a_worker_has_its_source_from_its_own_environment_and_tells_nobody(place: Place):
    deployment = deploy(place)
    run = place.api(f"deployments/{deployment}/create_flow_run", {}).json()["id"]
    own = {"IDXFLOW_SOURCE": place.secret_source, "IDXFLOW_STORE": str(place.folder / "worked")}
    environment = {**place.prefect, **own, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    words = ("worker", "start", "--pool", "own", "--type", "process")
    place.source.requests.clear()
    place.source.answers |= dict.fromkeys(place.source.answers, status(403))
    with worker(*words, environment=environment, home=place.folder):
        state = place.end_of(run)
    assert state["type"] == "FAILED", (place.folder / "worker.log").read_text()
    assert place.source.host in state["message"]
    assert place.source.requests
    assert_no_canary(place)


def deploy(place: Place) -> str:
    """Deploy the validation of the tiny data set as `prefect deploy` does; return the deployment's id."""
    place.api(
        "work_pools/",
        {"name": "own", "type": "process", "base_job_template": ProcessWorker.get_default_base_job_template()},
    )
    values = {
        "name": "own",
        "flow_id": place.api("flows/", {"name": validate_dataset.name}).json()["id"],
        "entrypoint": "flows.retrain.validate_dataset",
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
        "work_pool_name": "own",
        "parameters": {"dataset_file": str(place.manifest)},
        "parameter_openapi_schema": parameter_schema(validate_dataset).model_dump(),
    }
    answer = place.api("deployments/", values)
    answer.raise_for_status()
    return str(answer.json()["id"])
