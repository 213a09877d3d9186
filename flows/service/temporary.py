"""A temporary Prefect server for one run, if no permanent server is configured.

Prefect can start one itself, but imports its whole server into the run's process and waits for it before anything
else. Here both start at the same time: the server in its own process, the run's imports in this one.

The server requires a secret that is created for it and known only to this process. It has a port, not a socket in a
private folder: Prefect's clients connect, for requests and for events, by URL, and have no setting for a socket.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import select
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from flows.service import database, sqlite
from flows.service.application import AUTH, TIMINGS, Plan, listen
from flows.service.processes import START_SECONDS, Service
from flows.service.server import without_credentials
from storage.errors import PrefectFailed
from storage.runtime import timings

# Prefect: temporary-server.
_VARIABLE = "IDXFLOW_TEMPORARY_SERVER"
_HOST = "127.0.0.1"
_STOP_SECONDS = 5
_LOOK_SECONDS = 0.05
_PREFIX = "idxflow-prefect-"
_TIMINGS = "timings.json"
_YOUNG_SECONDS = 60
_NO_BLOCKS = {
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
}
"""A run uses no block, and to see which there are, the server would import all that is installed for Prefect, such as
what the extra `kubernetes` brings."""
_NO_LOOPBACK = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN)


class TemporaryServer:
    """A temporary server, from its start."""

    def __init__(self, home: Path, folder: Path, more: Mapping[str, str], gc: str) -> None:
        self._home, self._folder, self._gc = home, folder, gc
        listener = listen(_HOST, 0)
        port = listener.getsockname()[1]
        self.api, self.secret = f"http://{_HOST}:{port}/api", f"idxflow:{secrets.token_urlsafe(24)}"
        # Logging of this process is off, but the server must be able to log why it died.
        kept = without_credentials(os.environ)
        loud = {name: value for name, value in kept.items() if not name.startswith("PREFECT_LOGGING_")}
        closed = {AUTH: self.secret, "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true", **_NO_BLOCKS}
        if timings.running():
            closed[TIMINGS] = str(folder / _TIMINGS)
        log = folder / "server.log"
        self._starting = ExitStack()
        if database.DATABASE not in more:
            self._starting.enter_context(database.starting(home))
        self._service = Service(Plan(_HOST).command({**loud, **closed, **more}, Path.cwd(), log, listener))
        self._service.start()
        # Only the server holds the socket now, so if it dies, a waiting client gets a connection error.
        listener.close()
        self._connection = HTTPConnection(_HOST, port, timeout=START_SECONDS)
        self._answered = False

    def _has_answered(self, seconds: float) -> bool:
        """Return whether it answers within `seconds`. Its port accepts the request before the server can answer.

        Raises:
            PrefectFailed: this machine cannot reach itself.
        """
        if self._answered:
            return True
        try:
            if not self._connection.sock:
                self._connection.request("GET", "/api/health")
            if select.select([self._connection.sock], [], [], seconds)[0]:
                self._answered = self._connection.getresponse().status == HTTPStatus.OK
                self._connection.close()
                if self._answered:
                    self._starting.close()
        except (OSError, HTTPException) as error:
            self._connection.close()
            if isinstance(error, OSError) and error.errno in _NO_LOOPBACK:
                raise PrefectFailed(
                    f"expected to reach this machine's own address, {_HOST}; {error.strerror}; "
                    "switch the loopback interface on: ip link set lo up"
                ) from error
        return self._answered

    def is_decided(self) -> bool:
        """Return whether it is up or has ended."""
        return self._has_answered(0) or self._service.pid is None

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            PrefectFailed: it ended, does not answer within ten minutes, or cannot be reached.
        """
        deadline = time.monotonic() + START_SECONDS
        while (remaining := deadline - time.monotonic()) > 0:
            if self._has_answered(remaining):
                timings.add_elsewhere("Prefect's server, until it answers", self._folder / _TIMINGS)
                return database.keep_empty(self._home, self._folder)
            if self._service.pid is None:
                file = sqlite.configured()
                remedy = (sqlite.trouble(file, self._gc) if file else None) or "try again"
                raise PrefectFailed(f"expected a Prefect server for this run; the {self._service.epitaph()}; {remedy}")
            # A dying server releases its port before it exits.
            time.sleep(_LOOK_SECONDS)
        raise PrefectFailed(
            f"expected a Prefect server for this run to answer within {START_SECONDS} s; it did not; free CPU time or "
            "memory, then run again"
        )

    def stop(self) -> None:
        """Stop it, after sending it all pending logs and events of this process."""
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        self._connection.close()
        self._starting.close()
        # Prefect: drained. Prefect stops its own server without waiting for what is still to be sent.
        if self._service.pid:
            with timings.span("sending Prefect the last logs and events"):
                APILogWorker.instance().drain()
                EventsWorker.drain_all()
        with timings.span("stopping Prefect's server"):
            self._service.stop(_STOP_SECONDS)


@contextmanager
def _folder() -> Iterator[Path]:
    """Yield a private folder that is removed at the end, and remove folders that killed runs left."""
    for abandoned in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        _remove_if_abandoned(abandoned)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            # The kernel releases the lock when this process ends for any reason.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def _remove_if_abandoned(folder: Path) -> None:
    with suppress(OSError):
        status = folder.lstat()
        # Another user may have created it, or a run may just be starting.
        is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if not is_own or time.time() - status.st_mtime < _YOUNG_SECONDS:
            return
        descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(descriptor)


def in_use() -> bool:
    """Return whether the server of this process ends with it, regardless of what started the server."""
    from prefect.settings import PREFECT_API_URL

    return _VARIABLE in os.environ or not PREFECT_API_URL.value()


@contextmanager
def temporary_server(gc: str) -> Iterator[TemporaryServer]:
    """Start a server, and make Prefect use it in this process while the block runs. It may not answer yet.

    Args:
        gc: the command that removes old results from the store, for messages about a full disk.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    with ExitStack() as stack:
        with database.home_errors():
            home = database.private_home()
            folder = stack.enter_context(_folder())
            environment = stack.enter_context(database.alone(home, folder))
            server = TemporaryServer(home, folder, environment, gc)
        os.environ[_VARIABLE] = "1"
        try:
            with temporary_settings({PREFECT_API_URL: server.api, PREFECT_API_AUTH_STRING: server.secret}):
                try:
                    yield server
                finally:
                    server.stop()
        finally:
            del os.environ[_VARIABLE]
