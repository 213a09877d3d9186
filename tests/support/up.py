"""`idxflow up` for tests: started, asked, and ended with the test."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import httpx
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.service.processes import end_with_parent
from storage.files import locked
from tests.support.commands import ADDRESS, Command, idxflow
from tests.support.operated import under_way, until
from tests.support.servers import BIN, HTTP

END_WITH_TESTS = end_with_parent()


@dataclass
class Service:
    """A running `idxflow up` and what reaches it."""

    environment: dict[str, str]
    process: subprocess.Popen[bytes] | Command
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def secret(self) -> str:
        return (Path(self.environment["PREFECT_HOME"]) / "idxflow" / "auth-string").read_text().strip()

    @property
    def login(self) -> dict[str, str]:
        """The environment of Prefect's own commands, as the lines that were printed make it."""
        return {**self.environment, "PREFECT_API_AUTH_STRING": self.secret}

    @cached_property
    def _headers(self) -> dict[str, str]:
        """What proves that a change was meant."""
        api, user = self.environment["PREFECT_API_URL"], str(uuid.uuid4())
        token = HTTP.get(f"{api}/csrf-token?client={user}", auth=self.credentials).json()
        return {"Prefect-Csrf-Token": token["token"], "Prefect-Csrf-Client": user}

    @property
    def credentials(self) -> tuple[str, str]:
        user, _, word = self.secret.partition(":")
        return user, word

    def get(self, path: str) -> Any:
        return self.ask("GET", path)

    def post(self, path: str, body: Any) -> Any:
        return self.ask("POST", path, json=body)

    def ask(self, method: str, path: str, **more: Any) -> Any:
        """Ask the API, again where it says 503, as Prefect's own client does: SQLite has one writer."""
        url = f"{self.environment['PREFECT_API_URL']}/{path}"

        def tried() -> httpx.Response | None:
            headers = {} if method == "GET" else self._headers
            answer = HTTP.request(method, url, auth=self.credentials, headers=headers, **more)
            return None if answer.status_code == 503 else answer

        answer = until(tried)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def deployment(self, name: str) -> dict[str, Any]:
        return next(d for d in self.post("deployments/filter", {}) if d["name"] == name)

    def slots(self, name: str) -> int:
        return self.deployment(name)["global_concurrency_limit"]["active_slots"]

    def state(self, run: str) -> tuple[str, str]:
        state = self.get(f"flow_runs/{run}")["state"]
        return state["type"], state["message"] or ""

    def has_state(self, run: str, kind: str) -> str | None:
        """The state's message once the run has that state; a run that ended in another way fails the test."""
        state, message = self.state(run)
        assert state in (kind, "SCHEDULED", "PENDING", "RUNNING", "CANCELLING"), (state, message)
        return (message or "-") if state == kind else None

    def tasks_under_way(self, run: str) -> list[Any]:
        """The task runs of a flow run that have not ended."""
        return under_way(self.post, run)

    def start_long_training(self) -> str:
        """Start a training that would take minutes; return its flow run once epochs are being logged."""
        return self._start({"training": {"epochs": 10_000, "patience": 10_000}}, " epoch ")

    @contextmanager
    def waiting_run(self) -> Iterator[str]:
        """Start a run that waits for another, so it uses no processor; yield its flow run once it waits."""
        with locked(Path(self.environment["IDXFLOW_STORE"], "digits", "locks", "in-use.lock")):
            yield self._start({}, "waiting for `gc` to finish")

    def _start(self, parameters: dict[str, Any], words: str) -> str:
        """Run the deployment `digits`; return its flow run once a line of its log has these words."""
        body = {"parameters": {"dataset": "digits", **parameters}}
        run = self.post(f"deployments/{self.deployment('digits')['id']}/create_flow_run", body)["id"]
        logs = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}
        until(lambda: any(words in line["message"] for line in self.post("logs/filter", logs)))
        return run

    def pid(self, name: str) -> int:
        """The process id of the server or worker, as `up` last printed it."""
        lines = [
            line for line in self.output.splitlines() if line.startswith((f"{name} ready", f"{name} started again"))
        ]
        return int(lines[-1].rpartition(" ")[2])


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call `idxflow up` where it ends by itself; what it starts are forks, as in `going`."""
    return idxflow("up", *_without_site(arguments), env=_forking(environment), cwd=Path("/"), program="up")


def _without_site(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Return the arguments of `up` without a site, unless they choose its port: all tests would want the same one."""
    return arguments if "--site-port" in arguments else (*arguments, "--no-site")


def _forking(environment: dict[str, str]) -> dict[str, str]:
    """Return the environment in which it finds what its flow runs can be forked from."""
    return {**environment, ADDRESS: os.environ[ADDRESS]}


def in_foreground() -> None:
    # Shells start background jobs with SIGINT ignored, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    END_WITH_TESTS()


@contextmanager
def going(environment: dict[str, str], output: Path, *arguments: str, forked: bool = False) -> Iterator[Service]:
    """Run `idxflow up` from another folder until it says that it is ready; end it with the block if need be.

    In that folder are modules that end whatever imports them. If `forked`, it and all that it starts are forks of a
    process that has imported what they need, and it looks every two seconds after what it has deployed.
    """
    folder = output.with_suffix(".folder")
    folder.mkdir(exist_ok=True)
    for name in ("calendar", "random", "uvicorn", "numpy", "yaml", "flows", "storage"):
        (folder / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    with output.open("wb") as stream:
        start = _forked if forked else _called
        process = start(("up", *_without_site(arguments)), environment, folder, stream)
    service = Service(environment, process, output)
    with process:
        try:
            until(lambda: "\nCtrl-C stops" in service.output or process.poll() is not None)
            assert process.poll() is None, service.output
            yield service
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(240)


def _called(
    arguments: tuple[str, ...], environment: dict[str, str], folder: Path, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    words, streams = [str(BIN / "idxflow"), *arguments], {"stdout": output, "stderr": output}
    return subprocess.Popen(words, env=environment, cwd=folder, preexec_fn=in_foreground, **streams)


def _forked(arguments: tuple[str, ...], environment: dict[str, str], folder: Path, output: IO[bytes]) -> Command:
    with Path(os.devnull).open() as nothing:
        streams = nothing.fileno(), output.fileno(), output.fileno()
        return Command(*arguments, env=_forking(environment), cwd=folder, program="up", streams=streams)


@contextmanager
def configured(service: Service) -> Iterator[None]:
    """Have this process use that server."""
    settings = {
        PREFECT_API_URL: service.environment["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: service.secret,
        PREFECT_HOME: Path(service.environment["PREFECT_HOME"]),
    }
    with temporary_settings(settings):
        yield
