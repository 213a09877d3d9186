"""Real Prefect servers and workers for tests, each with its own home and port, ended with the test."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Protocol, Self

import certifi
import httpx
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOCAL_STORAGE_PATH,
    temporary_settings,
)

from flows.service.application import Plan, listen
from flows.service.processes import end_with_parent
from storage.files import locked
from tests.support import commands, refusals

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_SECONDS = 240
HTTP = httpx.Client(timeout=START_SECONDS, limits=httpx.Limits(max_keepalive_connections=0))
"""For requests of tests, also on a busy machine. Making a client takes longer than a request, and servers come and go
at the same address."""
TEMPORARY = Path(tempfile.gettempdir())
"""Not asked for later: some tests have their own folder for temporary files."""
KEPT = TEMPORARY / f"idxflow-tests-{os.getuid()}-prefect-{version('prefect')}-home" / "prefect"
"""Prefect's home after the first start of a server, once there has been one."""
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""From the lowest of these on, the system gives ports by itself; Linux, ip(7)."""
_LEFT = ("prefect.db", "memo_store.toml")
"""What a server leaves in Prefect's home when it has started: its database, and the note of what that has got."""
SECRET = "idxflow:canary-of-the-tests"
GRACE_SECONDS = 3
"""Before force is used. What a server has been told is in its database by then."""


def free_port() -> int:
    """Return a port that nobody listens on, that the system gives to nobody by itself, and that no other tests get.

    One that the system chose (port 0) it may give to the next connection, before the server that it is for has it.
    """
    lowest = int(EPHEMERAL.read_text().split()[0]) if EPHEMERAL.exists() else 32_768
    # Not the generator that others seed.
    for port in random.SystemRandom().sample(range(lowest // 2, lowest), 100):
        with socket.socket(socket.AF_UNIX) as claim, socket.socket() as probe, suppress(OSError):
            # As long as this process lives; a name that needs no file (abstract, unix(7)).
            claim.bind(f"\0idxflow-tests-port-{port}")
            probe.bind(("127.0.0.1", port))
            claim.detach()
            return port
    raise AssertionError("no port is free")


def kept_home() -> Path:
    """Return Prefect's home after the first start of a server: its database, and the note that all is in there.

    To make the tables and fill them takes each new server more than ten seconds, so one is kept.
    """
    KEPT.parent.mkdir(mode=0o700, exist_ok=True)
    with locked(KEPT.with_name("lock")):
        if not KEPT.exists():
            with tempfile.TemporaryDirectory(dir=KEPT.parent) as name:
                _start_once(Path(name))
                (Path(name) / KEPT.name).rename(KEPT)
    return KEPT


def _start_once(home: Path) -> None:
    with listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        environment = clean_environment(home, first_start=True, PREFECT_API_URL=url)
        with Server(Plan("127.0.0.1"), environment, home, listener) as server:
            wait_until_healthy(url, server, server.log)
    prefect = home / "prefect"
    with sqlite3.connect(prefect / "prefect.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert {path.name for path in prefect.iterdir()} >= {*_LEFT}


def fill_home(prefect: Path) -> None:
    """Put an empty database into Prefect's home, and the note that it is complete, unless there is one."""
    if not (prefect / "prefect.db").exists():
        prefect.mkdir(parents=True, exist_ok=True)
        for name in _LEFT:
            shutil.copyfile(kept_home() / name, prefect / name)


def clean_environment(home: Path, first_start: bool = False, **more: str) -> dict[str, str]:
    """Return an environment as a new user has it: own HOME and PREFECT_HOME, nothing of idxflow or Prefect set.

    Prefect's database is empty but made, unless this is to be the very `first_start` of a server.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "IDXFLOW_"))}
    if not first_start:
        fill_home(home / "prefect")
    # Rich fits its output to the terminal; without one it would wrap at 80 columns.
    own = {"HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "COLUMNS": "200", "NO_COLOR": "1"}
    return {**inherited, **refusals.python_environment(), **own, **more}


def is_starting(home: Path) -> bool:
    """Return whether a server holds the lock of those that start on the database in Prefect's `home`."""
    with (home / "idxflow" / "start.lock").open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], cwd: Path, log: Path) -> Iterator[subprocess.Popen]:
    """Run a service while the block lasts, in its own process group, so that its children end with it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Also where the tests are killed.
            preexec_fn=end_with_parent(),
        )
        try:
            yield process
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    break
                try:
                    process.wait(GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    continue


@contextmanager
def running_fork(
    program: str, words: Sequence[str], environment: Mapping[str, str], cwd: Path, log: Path
) -> Iterator[commands.Command]:
    """Run a service as a fork (`tests.support.commands`) while the block lasts."""
    with Path(os.devnull).open() as nothing, log.open("wb") as output:
        streams = (nothing.fileno(), output.fileno(), output.fileno())
        process = commands.Command(*words, env=environment, cwd=cwd, program=program, streams=streams)
    try:
        yield process
    finally:
        stop(process)


@contextmanager
def prefect_server(home: Path, **more: str) -> Iterator[tuple[Server, dict[str, str]]]:
    """Run a server as `idxflow up --no-auth --no-csrf` starts it; yield it and the environment that reaches it.

    Args:
        home: its HOME.
        more: variables of its environment.
    """
    with listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        environment = clean_environment(
            home,
            PREFECT_API_URL=url,
            PREFECT_API_SSL_CERT_FILE=one_authority(home),
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            PREFECT_UI_API_URL="/api",
            **more,
        )
        with Server(Plan("127.0.0.1", links=str(home / "links")), environment, home, listener) as server:
            wait_until_healthy(url, server, server.log)
            yield server, environment


@contextmanager
def guarded_server(home: Path, **more: str) -> Iterator[tuple[Server, dict[str, str]]]:
    """Run the server that `idxflow up` starts, without the rest of it; yield it and the environment that reaches it."""
    with listen("127.0.0.1", 0) as listener:
        environment = clean_environment(
            home,
            PREFECT_API_URL=f"http://127.0.0.1:{listener.getsockname()[1]}/api",
            PREFECT_API_AUTH_STRING=SECRET,
            PREFECT_API_SSL_CERT_FILE=one_authority(home),
            PREFECT_SERVER_API_AUTH_STRING=SECRET,
            PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED="true",
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            **more,
        )
        with Server(Plan("127.0.0.1", (), str(home)), environment, home, listener) as server:
            yield server, environment


def stop(running: commands.Command | subprocess.Popen) -> None:
    """Stop a process if it still runs, with force if need be."""
    with running as process:
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()


class Server:
    """A server of this plan, which ends with the block; its log is in `home`.

    In tests it is a fork of a process that has imported Prefect's server (`tests.support.commands`), as that of a
    single run is. Tests of how `idxflow up` starts and watches its own call that (`tests.support.up`).
    """

    def __init__(self, plan: Plan, environment: Mapping[str, str], home: Path, listener: socket.socket) -> None:
        self.log = home / "server.log"
        self._plan, self._environment, self._listener = plan, environment, listener
        self._process: commands.Command | subprocess.Popen

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = self._forked(log) if commands.listening() else self._called(log)

    def _forked(self, log: IO[bytes]) -> commands.Command:
        words, streams = json.dumps(asdict(self._plan)), (self._listener.fileno(), log.fileno(), log.fileno())
        return commands.Command(words, env=self._environment, cwd=ROOT, program="server", streams=streams)

    def _called(self, log: IO[bytes]) -> subprocess.Popen:
        command = self._plan.command(self._environment, ROOT, self.log, self._listener)
        inherited, end = command.inherited, end_with_parent()
        # In its own session: Ctrl-C is for the benchmark that calls it.
        own: dict[str, Any] = {"start_new_session": True, "pass_fds": inherited, "preexec_fn": end}
        return subprocess.Popen(command.arguments, cwd=ROOT, env=self._environment, stdout=log, stderr=log, **own)

    def stop(self) -> None:
        # It may be stopped for a while (`tests.conftest`).
        self._process.send_signal(signal.SIGCONT)
        stop(self._process)

    def kill(self) -> None:
        with self._process as process:
            process.kill()

    def poll(self) -> int | None:
        """Return the exit code (minus the signal that ended it), or None while it runs."""
        return self._process.poll()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)


def wait_until_answers(environment: Mapping[str, str]) -> None:
    """Wait for a server whose port takes requests before it can answer them."""
    HTTP.get(f"{environment['PREFECT_API_URL']}/health").raise_for_status()


def one_authority(folder: Path) -> str:
    """Write a file of authorities that has only one; return its path.

    Each of Prefect's clients reads all that it trusts, which takes 20 ms, and http needs none of them.
    """
    path = folder / "authorities.pem"
    bundle = Path(certifi.where()).read_text(encoding="utf-8")
    path.write_text("".join(bundle.partition("-----END CERTIFICATE-----\n")[:2]), encoding="utf-8")
    return str(path)


@contextmanager
def used_in_this_process(server: Mapping[str, str], home: Path) -> Iterator[Path]:
    """Let flows that are called in this process talk to a server; yield the folder in `home` for their results.

    Without heartbeats, because each flow run waits a second for theirs to end.
    """
    # Prefect: heartbeats-in-tests.
    results = home / "results"
    settings = {
        PREFECT_API_URL: server["PREFECT_API_URL"],
        PREFECT_API_SSL_CERT_FILE: server["PREFECT_API_SSL_CERT_FILE"],
        PREFECT_API_AUTH_STRING: server.get("PREFECT_API_AUTH_STRING"),
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        PREFECT_LOCAL_STORAGE_PATH: results,
    }
    with temporary_settings(settings):
        yield results
        # What is still on its way would not find the server.
        APILogWorker.instance().drain()
        EventsWorker.drain_all()


class _Process(Protocol):
    def poll(self) -> int | None: ...


def wait_until_healthy(url: str, process: _Process, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            # The port may be open without a process that would answer.
            if HTTP.get(f"{url}/health", timeout=20).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"the Prefect server did not start: {log.read_text()[-2000:]}")
