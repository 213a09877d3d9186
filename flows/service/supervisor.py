"""The supervisor of `idxflow up`: starts Prefect's server and a worker, deploys, and restarts what dies."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from flows.alerts.watching import Watch
from flows.interruption import outside_locks
from flows.service import configuration, entry, server, site_process, sqlite, worker
from flows.service.application import AUTH, Plan
from flows.service.database import hold, home_errors, in_use, private_home, starting
from flows.service.guard import LOOPBACK
from flows.service.kept_client import KeptClient
from flows.service.lock import Lock, ready, running
from flows.service.memory import Memory
from flows.service.processes import START_SECONDS, Command, Service
from flows.service.recorder import Recorder
from flows.settings import POOL, ROOT, SITE_PORT
from flows.terminal.screen import moving, styled
from storage.errors import ConfigError, PrefectFailed
from storage.opening import open_store
from storage.store import BESIDE, STORE_VARIABLE, command_for, store_address
from tasks.sources import proxies
from tasks.ui.artifacts import SITE_VARIABLE

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from rich.console import Console as Screen

    from flows.service.deployments import Deployed, Promise
    from flows.service.own_plans import OwnFiles
    from flows.service.pools import Placement

LINKS = "links"
"""Folder, below that of the logs, of the links that let a browser in."""
TABLES_SECONDS = 240
"""A server younger than this may still be creating its tables, so a missing answer is not reported."""
_AGAIN_SECONDS = 1.0
"""How soon a signal whose exception was lost raises it again."""
STOP_SECONDS = 6
"""Timeout before SIGKILL, for worker and server each; together well below the 15 s that `up` may take to stop."""
SWEEP_SECONDS = 10
LOOK_SECONDS = 15
"""Interval of the checks that the server answers queries and still has its setup."""
QUERY_SECONDS = 10
"""Timeout of one query in such a check."""
ZOMBIE_VARIABLE = "IDXFLOW_ZOMBIE_SECONDS"
ZOMBIE_SECONDS = 90
"""Three heartbeats of 30 s, the shortest that Prefect allows."""
_LEAST_ZOMBIE_SECONDS = 60
_STORE = "--store or IDXFLOW_STORE"
_OF_SERVER = ("--host", "--no-auth", "--no-csrf", "--database", "--allow-host")


@dataclass(frozen=True)
class UpOptions:
    """Options of the server and the worker; empty options are the defaults of `idxflow up`."""

    host: str = LOOPBACK[0]
    port: int | None = None
    pool: str = POOL
    database: str | None = None
    auth: bool = True
    csrf: bool = True
    store: str | None = None
    names: tuple[str, ...] = ()
    job_variables: str | None = None
    checkout: str | None = None
    site: bool = True
    """Whether to start the site, too, where a worker is started."""
    site_port: int = SITE_PORT

    def effects(self) -> dict[str, object]:
        """Return the options, by name, that have no effect on a server and worker that are already running."""
        return {
            "--host": self.host,
            "--no-auth": self.auth,
            "--no-csrf": self.csrf,
            "--database": self.database,
            "--allow-host": list(self.names),
            "--pool": self.pool,
            "--job-variables": self.job_variables,
            "--checkout": self.checkout,
            "--no-site": self.site,
            "--site-port": self.site_port,
            _STORE: store_address(self.store),
        }

    def ineffective(self, held: Mapping[str, object]) -> list[str]:
        """Return the names of the options that were given and differ from those in effect, `held`."""
        # A store that the environment names counts as given, too.
        usual = {**UpOptions().effects(), _STORE: store_address(BESIDE)}
        return [name for name, value in self.effects().items() if value not in (usual[name], held.get(name, value))]


def supervise(options: UpOptions) -> int:
    """Start a server and a worker, and keep them running until a signal arrives; return the exit code.

    Raises:
        ConfigError: options contradict each other or the environment.
        PrefectFailed: the server or the worker does not start.
    """
    if options.host not in LOOPBACK and not options.auth:
        raise ConfigError(
            f"expected no --no-auth with --host {options.host}, which other machines can reach; drop one of them"
        )
    if AUTH in os.environ and not options.auth:
        raise ConfigError(f"expected no --no-auth if {AUTH} is set; drop one of them")
    try:
        configuration.read()
        with stop_signals() as caught, home_errors():
            return Supervisor(options).run(caught)
    except Cancelled:
        # Only before anything was started; later, `run` handles it.
        return 0


class Cancelled(BaseException):
    """SIGINT, SIGTERM or SIGHUP was received."""


@contextmanager
def stop_signals() -> Iterator[Callable[[], None]]:
    """Make SIGINT, SIGTERM and SIGHUP raise `Cancelled` in the block; yield what to call once it has been caught.

    Until then it is raised again every second, because it can be lost: Python ignores exceptions in finalizers, and a
    library may replace it by an error of its own, which the supervisor would ignore as that of a busy server.
    """
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        # Stopping takes a bounded time; a second Ctrl-C must not leave half of the processes running.
        if not received:
            received.append(number)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS, _AGAIN_SECONDS)
            raise Cancelled

    def stop_again(_number: int, _frame: FrameType | None) -> None:
        raise Cancelled

    def caught() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def report(ignored: sys.UnraisableHookArgs) -> None:
        if not isinstance(ignored.exc_value, Cancelled):
            hook(ignored)

    # A signal that is ignored, such as SIGHUP after `nohup`, stays ignored.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, outside_locks(stop)) for number in numbers}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, outside_locks(stop_again))
    hook, sys.unraisablehook = sys.unraisablehook, report
    try:
        yield caught
    finally:
        caught()
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


class Supervisor:
    """The server and worker of one `idxflow up`, and their state."""

    def __init__(self, options: UpOptions) -> None:
        self.options = options
        configured = configuration.url()
        self.chosen = options.port is None and bool(configured)
        """Whether the user configured which server to use."""
        self.where = server.address(options.host, options.port, configured)
        self.home = private_home()
        self.folder = self.home / "idxflow"
        # No address of this machine is reached through a proxy.
        proxies.keep_direct(*proxies.LOOPBACK, *([self.where.name] if self.where.local else []))
        self.auth = server.known_auth_string(self.where, self.folder)
        self.worker_name = f"idxflow-up {socket.gethostname()}"
        self.lock = Lock(self.folder, self.where.api, options.pool)
        self.listener: socket.socket | None = None
        """Kept open, so that no other process can take the port while the server restarts."""
        self.database: IO[bytes] | None = None
        """Kept open, so that no temporary server uses the database, too."""
        self.server: Service | None = None
        self.worker: Service | None = None
        self.worker_since = datetime.now(UTC)
        self.placement: Placement
        self.database_file: Path | None = None
        """The file of the database of a server that was started here, if it is SQLite."""
        self.opened: sqlite.Identity | None = None
        """The identity of the file that the server has open; None if unknown."""
        self.journal: sqlite.Identity | None = None
        self.promise: Promise | None = None
        self.store = open_store(options.store)
        self.recorder = Recorder(self.store, self._impatient)
        self.alerts = Watch(self.store, self._impatient, self.where.api)
        self.last_problem, self.last_information = "", dict[str, object]()
        """The last line printed about a lasting problem, and the last information written for others."""

    def run(self, caught: Callable[[], None]) -> int:
        """Start everything and keep it running; return the exit code. Calls `caught` when it begins to stop."""
        if not self.lock.take():
            return self._say_what_runs()
        try:
            self._start_server()
            with self._client() as client:
                self._start(client)
                self._ready()
            self._keep()
        except Cancelled:
            caught()
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
        effects = holder.get("effects", {})
        pool = effects.get("--pool", self.options.pool)
        _say(f"server at {self.where.ui}; worker polling the pool {pool}; logs in {self.folder}")
        for option in self.options.ineffective(effects):
            _say(f"{option} has no effect on what is already running: stop that first, with Ctrl-C or kill")
        if holder.get("links"):
            self._say_link()
        return 0

    def _say_link(self) -> None:
        _say(f"open in a browser, once, within {entry.SECONDS // 60} minutes:")
        _say(f"  {entry.link(self.folder / LINKS, self.where.ui)}")

    @contextmanager
    def _client(self) -> Iterator[SyncPrefectClient]:
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        settings = {PREFECT_API_URL: self.where.api, PREFECT_API_AUTH_STRING: self.auth}
        with temporary_settings(settings), get_client(sync_client=True) as client:
            yield client

    def _start(self, client: SyncPrefectClient) -> None:
        from flows.service import deployments

        environment = server.client_environment(self.where, self.auth, self.options.store)
        memory = Memory(self.folder, self.where.api, self.options.pool)
        plan = deployments.read_plan()
        self.placement = self._placed(client, memory, plan)
        promise = deployments.Promise(
            self.options.pool,
            zombie_seconds(),
            environment,
            memory,
            plan,
            self._revive_all,
            self.own.read(plan),
            self.placement,
        )
        with _waiting("deploying prefect.yaml"):
            self.promise, deployed = self.own.provide(client, promise)
        files = ", ".join(["prefect.yaml", *(str(plan.file) for plan in self.promise.own.plans)])
        unchanged = f"; schedules kept as they are on the server: {', '.join(deployed.kept)}" if deployed.kept else ""
        removed = f"; removed, no longer in the file: {', '.join(deployed.removed)}" if deployed.removed else ""
        _say(f"deployed {files}{self._into(deployed)}{unchanged}{removed}")
        if self.placement.is_foreign:
            self._say_workers(client)
        else:
            self._start_worker(client, environment)

    def _placed(self, client: SyncPrefectClient, memory: Memory, plan: Mapping[str, Any]) -> Placement:
        """Return how the deployments are put into the pool; print what may be wrong with that."""
        from flows.service import deployments, pools

        if self.options.pool == POOL:
            remembered = memory.read()
            deployments.ensure_pool(client, POOL, remembered.pool if remembered else {})
        pool = deployments.found_pool(client, self.options.pool)
        wanted = pools.Wanted(self.options.job_variables, self.options.checkout, self.options.store)
        placement = pools.placed(pool, wanted, plan)
        for warning in placement.warnings:
            _say(f"warning: {warning}")
        return placement

    def _into(self, deployed: Deployed) -> str:
        """Return where it has been deployed to, and what of it is new, if the pool is not that of this command."""
        if not self.placement.is_foreign:
            return ""
        changed = f"changed: {', '.join(deployed.changed)}" if deployed.changed else "nothing has changed"
        code = f", with the code in {self.placement.checkout}" if self.placement.checkout else ""
        return f" to the work pool {self.options.pool} (type {self.placement.kind}){code}; {changed}"

    def _say_workers(self, client: SyncPrefectClient) -> None:
        """Say who takes the runs of a pool whose workers are not started here."""
        workers = ", ".join(sorted(self._workers(client)))
        start = f"prefect worker start --pool {shlex.quote(self.options.pool)} --type {self.placement.kind}"
        _say(
            f"workers that poll the pool {self.options.pool}: {workers}"
            if workers
            else f"no worker polls the pool {self.options.pool} yet; where its runs are to be started from: {start}"
        )

    @cached_property
    def own(self) -> OwnFiles:
        """The files of the users' own data sets."""
        from flows.service.own_plans import OwnFiles
        from flows.service.pools import PROCESS

        return OwnFiles(self.store.root, _say, self.options.pool if self.placement.kind != PROCESS else "")

    @cached_property
    def site(self) -> site_process.Started:
        """The pages for people, and the API (`idxflow serve`)."""
        return site_process.Started(self.folder)

    @cached_property
    def checks(self) -> KeptClient:
        """What the regular checks query the server with."""
        return KeptClient(lambda: self._impatient(QUERY_SECONDS))

    def _checking(self) -> AbstractContextManager[SyncPrefectClient]:
        return self.checks.client(self.server.pid if self.server else None)

    def _start_server(self) -> None:
        if not (self.chosen or server.is_ours(self.where, self.folder)):
            raise PrefectFailed(
                f"expected a free port or a server of your own at {self.where.ui}, found another user's; choose "
                "another with --port, or set PREFECT_API_URL to trust that one"
            )
        if server.is_up(self.where, self.auth):
            _say(f"found a Prefect server at {self.where.ui}; it stays up when this command ends")
            for option in self.options.ineffective(dict.fromkeys(_OF_SERVER)):
                _say(f"{option} has no effect on that server")
            return
        if not self.where.local:
            raise PrefectFailed(
                f"expected a Prefect server at {self.where.api} (PREFECT_API_URL), found none; start it there, or give "
                "--port for one on this machine"
            )
        self.listener = server.listening(self.where)
        self.database = hold(self.home)
        self.auth = server.auth_string(self.folder) if self.options.auth else None
        environment = server.server_environment(self.where, self.options.database, self.auth, self.options.csrf)
        log = self.folder / server.LOG
        plan = Plan(self.options.host, self.options.names, str(self.folder / LINKS))
        self.server = Service(plan.command(environment, ROOT, log, self.listener))
        self.database_file = sqlite.configured(environment.get(server.DATABASE))
        self._refuse_shared_database()
        database = server.shown_database(environment.get(server.DATABASE))
        _say(f"starting a Prefect server at {self.where.ui}, database {database}, log {log}")
        for opened in server.opened(self.options.auth, self.options.csrf):
            _say(opened)
        new = bool(self.database_file and not self.database_file.exists())
        making = "creating the server's database, once" if new else "waiting for the server"
        with _waiting(making), starting(self.home):
            self.server.start()
            # Import the modules of the next steps while the server starts.
            import_module("flows.service.deployments")
            self._await_server(self.server)
        _say(f"server ready, process {self.server.pid}")

    def _refuse_shared_database(self) -> None:
        """Raise PrefectFailed if another `idxflow up` uses the SQLite database, and thus has the queue of writers."""
        if self.database or not (self.database_file and in_use(self.database_file)):
            return
        others = [api for api in ready(self.folder) if running(self.folder, api)]
        if others:
            raise PrefectFailed(
                f"expected no other server on the database {self.database_file}; found that of `idxflow up` at "
                f"{others[0]}; stop that one first, or choose another PREFECT_HOME or --database"
            )

    def _await_server(self, service: Service) -> None:
        deadline = time.monotonic() + START_SECONDS
        while service.pid and time.monotonic() < deadline:
            with suppress(PrefectFailed):  # it answers, but not yet in full
                # A short timeout, to notice its death: the port stays open all the time.
                if server.is_up(self.where, self.auth, seconds=1):
                    self._note_database()
                    return
            time.sleep(0.3)
        problem = f"none within {START_SECONDS} s" if service.pid else service.epitaph()
        raise PrefectFailed(
            f"expected a Prefect server at {self.where.ui}, found: {problem}; "
            f"{self._trouble() or f'see {service.command.log}'}"
        )

    def _start_worker(self, client: SyncPrefectClient, environment: dict[str, str]) -> None:
        others = [name for name in self._workers(client) if name != self.worker_name]
        if others and not self.server:
            _say(f"found a worker that polls the pool {self.options.pool}: {others[0]}")
            return
        self._sweep(client, "its worker ended")
        if self.options.site:
            self._start_site(environment)
        # The runs link to their reports there, unless the user has said where the pages are, such as behind a proxy.
        environment = {**({SITE_VARIABLE: self.site.url} if self.site.url else {}), **environment}
        log = self.folder / "worker.log"
        pool = ("--pool", self.options.pool, "--type", "process", "--name", self.worker_name)
        command = Command("worker", worker.command(STOP_SECONDS, *pool), environment, ROOT, log)
        self.worker = Service(command)
        self.worker_since = datetime.now(UTC)
        self.worker.start()
        _say(f"starting a worker for the pool {self.options.pool}, log {log}")
        with _waiting("waiting for the worker"):
            self._await_worker(client, self.worker)
        _say(f"worker ready, process {self.worker.pid}")

    def _start_site(self, environment: Mapping[str, str]) -> None:
        """Start the site. Where that is impossible, say why: retraining goes on without it."""
        options = self.options
        try:
            plan = site_process.SitePlan(options.host, options.names, options.store)
            self.site.start(plan, options.site_port, self.auth, environment)
        except ConfigError as error:
            return _say(f"warning: no site: {error}")
        asks = "" if options.host in LOOPBACK else ", with the password of the server"
        return _say(f"starting the site at {self.site.url}{asks}, process {self.site.pid}, log {self.site.log}")

    def _await_worker(self, client: SyncPrefectClient, service: Service) -> None:
        deadline = time.monotonic() + START_SECONDS
        while service.pid and time.monotonic() < deadline:
            if self._workers(client).get(self.worker_name, self.worker_since) > self.worker_since:
                return
            time.sleep(0.3)
        problem = f"none within {START_SECONDS} s" if service.pid else service.epitaph()
        raise PrefectFailed(
            f"expected a worker in the pool {self.options.pool}, found: {problem}; see {service.command.log}"
        )

    def _workers(self, client: SyncPrefectClient) -> dict[str, datetime]:
        """Return the workers that are online, with the time of each one's last heartbeat."""
        workers = client.read_workers_for_work_pool(self.options.pool)
        return {w.name: w.last_heartbeat_time for w in workers if w.status == "ONLINE" and w.last_heartbeat_time}

    def _ready(self) -> None:
        self._tell()
        _say(f"ready: the UI is at {self.where.ui}; try, in another terminal:")
        for step in self._next_steps():
            _say(f"  {step}")
        if not (self.server and self.auth):
            return
        # Output that is not a terminal may be stored, and read by others.
        if sys.stdout.isatty():
            self._say_link()
        else:
            _say("for a link to open in a browser, run `idxflow up` in a terminal")

    def _next_steps(self) -> Iterator[str]:
        """Yield commands that work in a new terminal, without any of this one's variables."""
        programs = Path(sys.executable).parent
        if Path(shutil.which("idxflow") or "").parent != programs:
            yield f"export PATH={shlex.quote(str(programs))}:$PATH"
        yield f"export PREFECT_API_URL={shlex.quote(self.where.api)}"
        if self.site.url:
            yield f"export {SITE_VARIABLE}={shlex.quote(os.environ.get(SITE_VARIABLE, self.site.url))}"
        if login := server.login(self.auth, self.folder):
            yield login
        # Otherwise Prefect's own commands would send these requests through the proxy.
        yield from proxies.shell_lines()
        # Prefect: telemetry.
        yield f"export DO_NOT_TRACK={os.environ['DO_NOT_TRACK']}"
        yield "prefect deployment run retrain/digits --watch"
        elsewhere = (self.placement.job_variables.get("env") or {}).get(STORE_VARIABLE)
        yield command_for(elsewhere, "status") if elsewhere else self.store.command("status", usual=BESIDE)

    def _keep(self) -> None:
        """Restart processes that die, until a signal arrives; return at once if nothing was started here."""
        if not self._services:
            what = "deployed" if self.placement.is_foreign else "everything is already running"
            _say(f"{what}; nothing was started")
            return
        *names, last = (service.command.name for service in self._services)
        _say(f"Ctrl-C stops {', '.join(names)}{' and ' if names else ''}{last}")
        swept = looked = time.monotonic()
        while True:
            self._revive_all()
            # Do not query a dead server: its port still accepts the request, and waiting would delay the restart.
            if not self.server or self.server.pid:
                if time.monotonic() - looked > LOOK_SECONDS:
                    self._look_after()
                    looked = time.monotonic()
                elif self.worker and time.monotonic() - swept > SWEEP_SECONDS:
                    with suppress(Exception), self._checking() as client:
                        self._sweep(client, "its worker ended")
                    swept = time.monotonic()
            for line in self.alerts.look():
                _say(line)
            time.sleep(0.5)

    @property
    def _services(self) -> list[Service]:
        """Return the services that were started here."""
        return [service for service in (self.server, self.worker, self.site.service) if service]

    def _revive_all(self) -> None:
        for service in self._services:
            self._revive(service)

    def _revive(self, service: Service) -> None:
        """Restart a service if it has died."""
        before = service.pid
        try:
            happened = service.revive()
        except PrefectFailed as error:
            if service is self.site.service:
                self.site.give_up()
                return _say(f"no site any more: {error}")
            trouble = self._trouble() if service is self.server else None
            raise PrefectFailed(f"{error}; {trouble}") if trouble else error from None
        if happened:
            trouble = self._trouble() if service is self.server and not service.pid else None
            _say(f"{happened}; {trouble}" if trouble else happened)
        if service.pid != before and service.pid:
            if service is self.worker:
                self.worker_since = datetime.now(UTC)
            elif service is self.server:
                # The file that it opens is known once it answers.
                self.opened = None
        return None

    def _look_after(self) -> None:
        """Check that the server has its database, answers queries and has its setup; repair it if not."""
        if self._restart_on_lost_database():
            return
        try:
            message = self._keep_promise()
        except PrefectFailed as error:
            self._say_once(str(error))
            return
        except Exception as error:
            if trouble := self._trouble():
                self._say_once(trouble)
            elif not (self.server and self.server.age < TABLES_SECONDS):
                # A server that has just started may be creating its tables.
                self._say_once(self._unanswered(error))
            return
        # With a full disk the server may still answer queries that only read.
        full = sqlite.full_disk(self.database_file, self._gc) if self.database_file else None
        if full:
            self._say_once(full)
        self.last_problem = full or ""
        self._note_database()
        self._tell()
        if message:
            _say(message)

    def _keep_promise(self) -> str | None:
        """Deploy what users have scheduled since, and restore what the server has lost; return what was done."""
        if not self.promise:
            return None
        with self._checking() as client:
            self.promise, message = self.own.look_after(client, self.promise)
        return message

    def _restart_on_lost_database(self) -> bool:
        """Restart a server whose database was removed or replaced, because it would keep using the old file."""
        if not (self.database_file and self.opened and self.server and self.server.pid):
            return False
        now = sqlite.identity(self.database_file)
        if now == self.opened:
            return False
        happened = "replaced" if now else "removed"
        _say(f"the database {self.database_file} was {happened} while the server was running; restarting the server")
        self.server.stop(STOP_SECONDS)
        sqlite.forget_journal(self.database_file, self.journal)
        return True

    def _note_database(self) -> None:
        """Record the identity of the file that the server has open."""
        if self.server and self.server.pid and self.database_file and not self.opened:
            self.opened = sqlite.identity(self.database_file)
            self.journal = sqlite.identity(sqlite.journal(self.database_file))

    def _tell(self) -> None:
        """Write information for other commands, such as `idxflow doctor`, into the lock's file."""
        words: dict[str, object] = {
            "api": self.where.api,
            "links": bool(self.server and self.auth),
            "database": str(self.database_file or ""),
            "opened": self.opened,
            "effects": self.options.effects(),
        }
        if words == self.last_information:
            return
        # If the disk is full, write it later.
        with suppress(OSError):
            self.lock.say({"pid": os.getpid(), "ready": True, **words})
            self.last_information = words

    def _trouble(self) -> str | None:
        return sqlite.trouble(self.database_file, self._gc) if self.database_file else None

    @property
    def _gc(self) -> str:
        return self.store.command("gc", usual=BESIDE)

    def _unanswered(self, error: Exception) -> str:
        return (
            f"the server at {self.where.ui} does not answer queries ({type(error).__name__}); retrying; "
            f"see {self.folder / server.LOG}"
        )

    def _say_once(self, line: str) -> None:
        """Print a line about a lasting problem, only the first time."""
        if line != self.last_problem:
            _say(line)
            self.last_problem = line

    def _sweep(self, client: SyncPrefectClient, why: str) -> None:
        from flows.service.orphans import end_orphans

        # A restarting server is no reason to stop; the next sweep finds what this one missed.
        with suppress(Exception):
            ended = end_orphans(client, self.options.pool, self.worker_name, self.worker_since, why)
            for name in ended:
                _say(f"ended the run {name} as crashed: its process is gone")
            self.recorder.record(client, at_once=bool(ended))

    def _stop(self) -> None:
        """Stop the worker, its runs and the server, if they were started here. Never raises."""
        with suppress(Exception):
            self.checks.close()
        self.site.stop(STOP_SECONDS)
        if self.worker:
            self.worker.stop(STOP_SECONDS)
            with suppress(Exception):
                self._end_runs()
                self.recorder.finish(STOP_SECONDS)
        if self.server:
            self.server.stop(STOP_SECONDS)
        if self.listener:
            self.listener.close()

    @contextmanager
    def _impatient(self, seconds: float) -> Iterator[SyncPrefectClient]:
        """Yield a client with a timeout of `seconds` that does not retry."""
        from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

        settings = {PREFECT_API_REQUEST_TIMEOUT: seconds, PREFECT_CLIENT_MAX_RETRIES: 0}
        with temporary_settings(settings), self._client() as client:
            yield client

    def _end_runs(self) -> None:
        """End the runs of a stopped worker, which neither waits for them nor reports their end."""
        # Prefect: orphans.
        from flows.service.orphans import processes

        with self._impatient(STOP_SECONDS) as client:
            pids = processes(client, self.options.pool, self.worker_name)
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            # They are not children of this process, so it cannot wait for their end.
            time.sleep(1 if pids else 0)
            self.worker_since = datetime.now(UTC)
            self._sweep(client, "`idxflow up` was stopped")


def zombie_seconds() -> int:
    """Return the number of seconds without a heartbeat after which a run counts as dead.

    Raises:
        ConfigError: the environment's value is not a number, or too small.
    """
    value = os.environ.get(ZOMBIE_VARIABLE, str(ZOMBIE_SECONDS))
    if not value.isdigit() or int(value) < _LEAST_ZOMBIE_SECONDS:
        raise ConfigError(
            f"expected {ZOMBIE_VARIABLE} to be a number of seconds of at least {_LEAST_ZOMBIE_SECONDS}, two "
            f"heartbeats, found {value!r}"
        )
    return int(value)


def _say(line: str) -> None:
    _screen().print(styled(line, _screen()), soft_wrap=True)


def _waiting(what: str) -> AbstractContextManager[object]:
    return moving(_screen(), what)


@cache
def _screen() -> Screen:
    """Return the one screen of this process, which clears the status line before it prints another."""
    from rich.console import Console

    return Console(highlight=False)
