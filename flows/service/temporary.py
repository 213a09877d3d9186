"""A Prefect server for the time of one run, where no lasting one is configured.

Prefect can start one itself, but imports its whole server into the run for that, and waits for it before anything
else. Here the two start at the same time: the server in a process of its own, the run's imports in this one.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from flows.service.processes import Command, Service
from storage.errors import PrefectFailed

_VARIABLE = "IDXFLOW_TEMPORARY_SERVER"
_START_SECONDS = 180
"""The first start of all makes the database, which takes ten seconds on a quiet machine."""
_STOP_SECONDS = 5
_LOOK_SECONDS = 0.05


def application() -> Any:
    """Return the server's application, without its UI and its scheduler; uvicorn calls it."""
    from prefect.server.api.server import create_app

    return create_app(ephemeral=True, final=True)


class TemporaryServer:
    """The server, from the moment it is started."""

    def __init__(self, port: int, log: Path) -> None:
        self._port, self.api = port, f"http://127.0.0.1:{port}/api"
        arguments = (
            *(sys.executable, "-m", "uvicorn", "--factory", f"{__name__}:{application.__name__}"),
            *("--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"),
        )
        # This process is kept quiet; what the server says of its death is wanted.
        loud = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_LOGGING_")}
        self._service = Service(Command("Prefect server", arguments, loud, Path.cwd(), log))
        self._service.start()

    def answers(self) -> bool:
        """Return whether it is up."""
        # Not httpx, which reads all certificates for each request: this is asked again and again.
        connection = HTTPConnection("127.0.0.1", self._port, timeout=_START_SECONDS)
        try:
            connection.request("GET", "/api/health")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def is_decided(self) -> bool:
        """Return whether it is up, or has ended instead."""
        return self._service.pid is None or self.answers()

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            PrefectFailed: it ended instead, or does not answer in three minutes.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._service.pid is None:
                raise PrefectFailed(f"expected a Prefect server for this run; the {self._service.epitaph()}; try again")
            if self.answers():
                return
            time.sleep(_LOOK_SECONDS)
        raise PrefectFailed(
            f"expected a Prefect server for this run to answer within {_START_SECONDS} s; it did not; try again"
        )

    def stop(self) -> None:
        """End it, once it has all that this process has to tell it."""
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        if self._service.pid:
            APILogWorker.instance().drain()
            EventsWorker.drain_all()
        self._service.stop(_STOP_SECONDS)


def needed() -> bool:
    """Return whether Prefect is configured without a server, and so that a run may start one."""
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE

    return not PREFECT_API_URL.value() and bool(PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value())


def in_use() -> bool:
    """Return whether the server of this process ends with it, whoever started it."""
    from prefect.settings import PREFECT_API_URL

    return _VARIABLE in os.environ or not PREFECT_API_URL.value()


@contextmanager
def temporary_server() -> Iterator[TemporaryServer]:
    """Start a server, and have Prefect use it in this process while the block runs. It may not answer yet."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with tempfile.TemporaryDirectory(prefix="idxflow-prefect-") as folder:
        server = TemporaryServer(_free_port(), Path(folder) / "server.log")
        os.environ[_VARIABLE] = "1"
        try:
            with temporary_settings({PREFECT_API_URL: server.api}):
                try:
                    yield server
                finally:
                    server.stop()
        finally:
            del os.environ[_VARIABLE]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
