"""A deployment in operation: a real Prefect server with the deployments of `prefect.yaml`, and a worker."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker

from flows import diagnosis
from flows.service import deployments
from flows.service.deployments import ensure_automation, ensure_pool
from storage.store import Store
from tests.support import commands
from tests.support.commands import Command
from tests.support.servers import HTTP, ROOT, prefect_server, stop

_NOW = datetime.now(UTC)
LAST_DAY = {"since": (_NOW - timedelta(days=1)).isoformat(), "until": (_NOW + timedelta(days=1)).isoformat()}
WATCH = ("--watch", "--watch-interval", "1")
WORKER = ("worker", "start", "--pool", "idxflow", "--type", "process")


class Operated:
    """A server with the deployments of `prefect.yaml`, and a worker; each can be stopped and started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = Store(home / "store")
        self.environment: dict[str, str] = {}
        self._server, self._worker = ExitStack(), ExitStack()

    def start_server(self) -> None:
        patience = {
            # A run that cannot be cancelled is waited for five minutes otherwise.
            "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "5",
            # And one that waits for another's slot asks again after half a minute.
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
        }
        _, environment = self._server.enter_context(prefect_server(self.home, **patience))
        more = {"IDXFLOW_STORE": str(self.store.root), "PREFECT_WORKER_QUERY_SECONDS": "2"}
        # So that the server notices within half a minute that a worker is gone.
        self.environment = {**environment, **more, "PREFECT_WORKER_HEARTBEAT_SECONDS": "5"}
        with self.client() as client:
            ensure_pool(client, "idxflow")
            ensure_automation(client, 90)
            fork_flow_runs(client)
        prefect(self.environment, "--no-prompt", "deploy", "--all")

    def start_worker(self, *arguments: str) -> None:
        """Start it as Prefect's command does, or `idxflow` with these arguments."""
        program, words = ("idxflow", arguments) if arguments else ("prefect", WORKER)
        self._worker.enter_context(worker(*words, environment=self.environment, home=self.home, program=program))

    def stop_worker(self) -> None:
        self._worker.close()

    def stop(self) -> None:
        self.stop_worker()
        self._server.close()

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        settings = {PREFECT_API_URL: self.environment["PREFECT_API_URL"]}
        with temporary_settings(settings), get_client(sync_client=True) as client:
            yield client

    def post(self, path: str, body: Any) -> Any:
        return post(self.environment, path, body)

    def get(self, path: str) -> Any:
        return HTTP.get(f"{self.environment['PREFECT_API_URL']}/{path}").raise_for_status().json()

    def patch(self, path: str, body: Any) -> None:
        """Change something; SQLite may be locked for a moment, which the server answers with 503."""

        def accepted() -> bool:
            answer = HTTP.patch(f"{self.environment['PREFECT_API_URL']}/{path}", json=body)
            return answer.status_code != 503 and bool(answer.raise_for_status())

        until(accepted)

    def delete(self, path: str) -> None:
        def accepted() -> bool:
            answer = HTTP.delete(f"{self.environment['PREFECT_API_URL']}/{path}")
            return answer.status_code != 503 and bool(answer.raise_for_status())

        until(accepted)

    def deployment(self, name: str) -> dict[str, Any]:
        return next(d for d in self.post("deployments/filter", {}) if d["name"] == name)

    def runs(self, name: str) -> list[dict[str, Any]]:
        """The runs of a deployment, in the order of their scheduled times."""
        by_id = {"id": {"any_": [self.deployment(name)["id"]]}}
        return self.post("flow_runs/filter", {"deployments": by_id, "sort": "EXPECTED_START_TIME_ASC"})

    def idxflow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return commands.idxflow(*arguments, env=self.environment, cwd=Path("/"))

    def findings(self) -> dict[str, diagnosis.Diagnosis]:
        """What `idxflow doctor` finds out about the server."""
        with temporary_settings({PREFECT_API_URL: self.environment["PREFECT_API_URL"]}):
            return {finding.what: finding for finding in diagnosis._server(self.store)}


def template_of_forks() -> dict[str, Any]:
    """Return that of a pool whose workers start flow runs that need not import what they run (`commands`)."""
    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["command"]["default"] = commands.flow_run_command()
    return template


def fork_flow_runs(client: SyncPrefectClient, pool: str = "idxflow") -> None:
    """Have the workers of a pool that exists start such flow runs."""
    client.update_work_pool(pool, WorkPoolUpdate(base_job_template=template_of_forks()))


class _Deploying(Command):
    """`prefect deploy`, as `subprocess.Popen` starts it."""

    def __init__(
        self, words: Sequence[str], *, env: Mapping[str, str], cwd: Path, stdout: IO[bytes], **_: object
    ) -> None:
        with Path(os.devnull).open() as nothing:
            streams = (nothing.fileno(), stdout.fileno(), stdout.fileno())
            super().__init__(*words[words.index("prefect") + 1 :], env=env, cwd=cwd, program="prefect", streams=streams)

    def wait(self, timeout: float | None = None) -> int:
        if timeout is not None and not select.select([self._connection], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("prefect deploy", timeout)
        code = super().wait()
        self._resources.close()
        return code


def fork_deploys(patch: pytest.MonkeyPatch) -> None:
    """Have what is deployed in this process be deployed by such a fork."""
    patch.setattr(deployments, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": _Deploying}))


@contextmanager
def worker(
    *arguments: str,
    environment: dict[str, str],
    home: Path,
    program: str = "prefect",
    user: int | None = None,
) -> Iterator[None]:
    """Run a worker, which starts flow runs, while the block lasts; its log is in `home`."""
    with Path(os.devnull).open() as nothing, (home / "worker.log").open("wb") as log:
        streams = (nothing.fileno(), log.fileno(), log.fileno())
        started = Command(*arguments, env=environment, cwd=home, program=program, streams=streams, user=user)
    try:
        yield
    finally:
        stop(started)


def prefect(environment: dict[str, str], *arguments: str, cwd: Path = ROOT) -> str:
    result = commands.prefect(*arguments, env=environment, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def until(look: Callable[[], Any]) -> Any:
    """Look again until there is something, however busy the machine is: pytest ends a test that hangs."""
    while not (value := look()):
        time.sleep(0.5)
    return value


def post(environment: dict[str, str], path: str, body: Any) -> Any:
    """Ask the API, again where it says 503, as Prefect's own client does: SQLite has one writer."""

    def tried() -> httpx.Response | None:
        answer = HTTP.post(f"{environment['PREFECT_API_URL']}/{path}", json=body)
        return None if answer.status_code == 503 else answer

    answer = until(tried)
    answer.raise_for_status()
    return answer.json() if answer.content else None


def under_way(ask: Callable[[str, Any], Any], run: str) -> list[Any]:
    """Return the task runs of a flow run that have not ended; `ask` posts a question to the API."""
    tasks = ask("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert tasks, "it has called no task"
    return [task for task in tasks if task["state"]["type"] in ("RUNNING", "PENDING", "SCHEDULED")]
