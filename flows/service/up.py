"""`idxflow up`: from nothing to scheduled retraining on one machine, in one command that stays in the foreground."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.service import server
from flows.service.lock import Lock
from flows.service.processes import Command, Service
from flows.settings import ROOT
from storage.errors import ConfigError, PrefectFailed

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POOL = "idxflow"
PROCESS = "process"
START_SECONDS = 240
STOP_SECONDS = 6
"""For each of worker and server, before force is used; together well below the 15 s that `up` may take to stop."""
SWEEP_SECONDS = 10
ZOMBIE_VARIABLE = "IDXFLOW_ZOMBIE_SECONDS"
ZOMBIE_SECONDS = 90
"""Three heartbeats of 30 s, the shortest that Prefect allows."""
_LEAST_ZOMBIE_SECONDS = 60


@dataclass(frozen=True)
class Wish:
    """What the command line asks for."""

    host: str
    port: int | None
    pool: str
    database: str | None
    auth: bool
    csrf: bool
    store: str | None


def up(
    *,
    port: Annotated[
        int | None,
        Parameter(
            help="Port of the server; default: that of PREFECT_API_URL, else 4200.", validator=Number(gte=1, lte=65535)
        ),
    ] = None,
    host: Annotated[
        str, Parameter(help="Address to listen on. One that other machines can reach needs --auth.")
    ] = "127.0.0.1",
    pool: Annotated[str, Parameter(help="Work pool to deploy to; made, of type process, if there is none.")] = POOL,
    database: Annotated[
        str | None,
        Parameter(
            help="`postgresql+asyncpg://user@host/name` instead of SQLite. The password comes from PGPASSWORD or "
            "~/.pgpass. [env var, with password: PREFECT_SERVER_DATABASE_CONNECTION_URL]"
        ),
    ] = None,
    auth: Annotated[
        bool,
        Parameter(
            negative="",
            help="Ask for an auth string: that of PREFECT_SERVER_API_AUTH_STRING (user:password), else one made once "
            "and kept in a file that only you can read.",
        ),
    ] = False,
    csrf: Annotated[bool, Parameter(negative="", help="Ask browsers for a token against forged requests.")] = False,
    store: Annotated[
        str | None,
        Parameter(
            help="Folder the runs keep everything in; default: `store` beside the source. [env var: IDXFLOW_STORE]"
        ),
    ] = None,
) -> int:
    """Start a Prefect server and a worker, deploy everything, and keep them running until Ctrl-C.

    A server that already runs is used and left running. What dies is started again, and a run whose process is gone
    is ended as Crashed. Schedules that were changed, paused or deleted in the UI stay so. Ctrl-C or SIGTERM stops
    what was started here and nothing else. With everything running already, it says so and ends.

    Examples: `idxflow up` · `idxflow up --port 4300 --auth` · `idxflow up --database postgresql+asyncpg://me@db/prefect`
    """
    wish = Wish(host, port, pool, server.checked_database(database), auth, csrf, store)
    if host not in server.LOOPBACK and not auth:
        raise ConfigError(f"expected --auth with --host {host}, which other machines can reach; found none")
    try:
        with _stop_signals():
            return _Up(wish).run()
    except _Stopped:
        # Only before anything was started; afterwards `run` itself ends on it.
        return 0


class _Stopped(BaseException):
    """SIGINT, SIGTERM or SIGHUP was received."""


@contextmanager
def _stop_signals() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        for again in caught:
            # Stopping takes its bounded time; a second Ctrl-C must not leave half of it running.
            signal.signal(again, signal.SIG_IGN)
        raise _Stopped

    # A signal that is ignored, as SIGHUP is after `nohup`, stays so.
    caught = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Up:
    """The server and worker of one `idxflow up`, and how far they have come."""

    def __init__(self, wish: Wish) -> None:
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME

        self.wish = wish
        self.where = server.address(wish.host, wish.port, PREFECT_API_URL.value())
        home = PREFECT_HOME.value()
        self.folder = home / "idxflow"
        for folder in (home, self.folder):
            folder.mkdir(parents=True, exist_ok=True)
            # Logs, results and the database hold parameters and addresses of data.
            folder.chmod(0o700)
        configured = PREFECT_API_AUTH_STRING.value()
        known = configured.get_secret_value() if configured else os.environ.get(server.AUTH)
        self.auth = server.auth_string(self.folder) if wish.auth else known
        self.worker_name = f"idxflow-up {socket.gethostname()}"
        self.lock = Lock(self.folder, self.where.api, wish.pool)
        self.server: Service | None = None
        self.worker: Service | None = None
        self.worker_since = datetime.now(UTC)
        self.pool_type = ""

    def run(self) -> int:
        """Bring everything up and keep it so; return the exit code."""
        if not self.lock.take():
            return self._say_what_runs()
        try:
            with self._client() as client:
                self._start(client)
                self._ready()
                self._keep(client)
        except _Stopped:
            _say("stopping")
            self._stop()
            _say("stopped")
            return 0
        except BaseException:
            self._stop()
            raise
        return 0

    def _say_what_runs(self) -> int:
        """Describe the `idxflow up` that has the lock."""
        holder = self.lock.read()
        ready = "is already running" if holder.get("ready") else "is already starting"
        _say(f"`idxflow up` {ready}, process {holder.get('pid', 'unknown')}")
        _say(f"server at {self.where.ui}; worker polling the pool {self.wish.pool}; logs in {self.folder}")
        return 0

    @contextmanager
    def _client(self) -> Iterator[SyncPrefectClient]:
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        settings = {PREFECT_API_URL: self.where.api, PREFECT_API_AUTH_STRING: self.auth}
        with temporary_settings(settings), get_client(sync_client=True) as client:
            yield client

    def _start(self, client: SyncPrefectClient) -> None:
        from flows.service import deployments

        self._start_server()
        self.pool_type = deployments.ensure_pool(client, self.wish.pool)
        deployments.ensure_automation(client, _zombie_seconds())
        environment = server.client_environment(self.where, self.auth, self.wish.store)
        kept = deployments.deploy(client, self.wish.pool, environment)
        _say(
            "deployed prefect.yaml" + (f"; schedules kept as they are on the server: {', '.join(kept)}" if kept else "")
        )
        self._start_worker(client, environment)

    def _start_server(self) -> None:
        if server.is_up(self.where, self.auth):
            _say(f"found a Prefect server at {self.where.ui}; it is left running at the end")
            return
        if not self.where.local:
            raise PrefectFailed(
                f"expected a Prefect server at {self.where.api} (PREFECT_API_URL), found none; start it there, or give "
                "--port for one on this machine"
            )
        server.refuse_if_taken(self.where)
        asked = self.auth if self.wish.auth or server.AUTH in os.environ else None
        environment = server.server_environment(self.where, self.wish.database, asked, self.wish.csrf)
        log = self.folder / "server.log"
        self.server = Service(Command("server", server.prefect("server", "start"), environment, ROOT, log))
        database = server.shown_database(environment.get(server.DATABASE))
        _say(f"starting a Prefect server at {self.where.ui}, database {database}, log {log}")
        self.server.start()
        self._await_server(self.server)
        _say(f"server ready, process {self.server.pid}")

    def _await_server(self, service: Service) -> None:
        deadline = time.monotonic() + START_SECONDS
        while service.pid and time.monotonic() < deadline:
            with suppress(PrefectFailed):  # it answers, but not yet in full
                if server.is_up(self.where, self.auth):
                    return
            time.sleep(0.3)
        found = f"none within {START_SECONDS} s" if service.pid else service.epitaph()
        raise PrefectFailed(f"expected a Prefect server at {self.where.ui}, found: {found}; see {service.command.log}")

    def _start_worker(self, client: SyncPrefectClient, environment: dict[str, str]) -> None:
        others = [name for name in self._workers(client) if name != self.worker_name]
        if self.pool_type != PROCESS:
            _say(
                f"the pool {self.wish.pool} is of type {self.pool_type}: start its worker where it belongs, "
                f"prefect worker start --pool {self.wish.pool}"
            )
            return
        if others and not self.server:
            _say(f"found a worker that polls the pool {self.wish.pool}: {others[0]}")
            return
        self._sweep(client, "its worker ended")
        log = self.folder / "worker.log"
        pool = ("--pool", self.wish.pool, "--type", PROCESS, "--name", self.worker_name)
        command = Command("worker", server.prefect("worker", "start", *pool), environment, ROOT, log)
        self.worker = Service(command)
        self.worker_since = datetime.now(UTC)
        self.worker.start()
        _say(f"starting a worker for the pool {self.wish.pool}, log {log}")
        self._await_worker(client, self.worker)
        _say(f"worker ready, process {self.worker.pid}")

    def _await_worker(self, client: SyncPrefectClient, service: Service) -> None:
        deadline = time.monotonic() + START_SECONDS
        while service.pid and time.monotonic() < deadline:
            if self._workers(client).get(self.worker_name, self.worker_since) > self.worker_since:
                return
            time.sleep(0.3)
        found = f"none within {START_SECONDS} s" if service.pid else service.epitaph()
        raise PrefectFailed(
            f"expected a worker in the pool {self.wish.pool}, found: {found}; see {service.command.log}"
        )

    def _workers(self, client: SyncPrefectClient) -> dict[str, datetime]:
        """Return the workers that are online, and when each gave its last heartbeat."""
        found = client.read_workers_for_work_pool(self.wish.pool)
        return {w.name: w.last_heartbeat_time for w in found if w.status == "ONLINE" and w.last_heartbeat_time}

    def _ready(self) -> None:
        self.lock.say({"pid": os.getpid(), "ready": True})
        secret = self.folder / "auth-string"
        login = f'\n  export PREFECT_API_AUTH_STRING="$(cat {secret})"' if self.wish.auth and secret.exists() else ""
        _say(
            f"ready: the UI is at {self.where.ui}; try, in another terminal:\n"
            f"  export PREFECT_API_URL={self.where.api}{login}\n"
            f"  prefect deployment run retrain/digits --watch\n"
            f"  open {self.where.ui}/v2/runs to watch it there\n"
            "  idxflow status"
        )

    def _keep(self, client: SyncPrefectClient) -> None:
        """Restart what dies until a signal comes; return at once if nothing was started here."""
        services = [service for service in (self.server, self.worker) if service]
        if not services:
            _say("everything was running already; nothing was started")
            return
        _say("Ctrl-C stops " + " and ".join(service.command.name for service in services))
        swept = time.monotonic()
        while True:
            for service in services:
                before, happened = service.pid, service.revive()
                if happened:
                    _say(happened)
                if service is self.worker and service.pid != before and service.pid:
                    self.worker_since = datetime.now(UTC)
            if self.worker and time.monotonic() - swept > SWEEP_SECONDS:
                self._sweep(client, "its worker ended")
                swept = time.monotonic()
            time.sleep(0.5)

    def _sweep(self, client: SyncPrefectClient, why: str) -> None:
        from flows.service.orphans import end_orphans

        # A server that is being started again is no reason to end; the next sweep finds what this one did not.
        with suppress(Exception):
            for name in end_orphans(client, self.wish.pool, self.worker_name, self.worker_since, why):
                _say(f"ended the run {name} as crashed: its process is gone")

    def _stop(self) -> None:
        """Stop the worker, its runs, and the server, whichever were started here. Never raises."""
        if self.worker:
            self.worker.stop(STOP_SECONDS)
            with suppress(Exception):
                self._end_runs()
        if self.server:
            self.server.stop(STOP_SECONDS)

    def _end_runs(self) -> None:
        """End the runs of a worker that was stopped: it does not wait for them, nor say that they have ended."""
        from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

        from flows.service.orphans import processes

        impatient = {PREFECT_API_REQUEST_TIMEOUT: STOP_SECONDS, PREFECT_CLIENT_MAX_RETRIES: 0}
        with temporary_settings(impatient), self._client() as client:
            left = processes(client, self.wish.pool, self.worker_name)
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            # They are not children of this process, so their end cannot be waited for.
            time.sleep(1 if left else 0)
            self.worker_since = datetime.now(UTC)
            self._sweep(client, "`idxflow up` was stopped")


def _zombie_seconds() -> int:
    given = os.environ.get(ZOMBIE_VARIABLE, str(ZOMBIE_SECONDS))
    if not given.isdigit() or int(given) < _LEAST_ZOMBIE_SECONDS:
        raise ConfigError(
            f"expected {ZOMBIE_VARIABLE} to be a number of seconds of at least {_LEAST_ZOMBIE_SECONDS}, two "
            f"heartbeats, found {given!r}"
        )
    return int(given)


def _say(line: str) -> None:
    print(line, flush=True)
