"""The process of a Prefect server that idxflow starts: Prefect's application behind a guard, on an inherited socket.

`prefect server start` cannot wrap its application, and listens only after importing all of it. Here the parent
listens from the beginning, so that no other process of this machine can take the port, now or during a restart of
the server, and receive the auth string from clients.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from flows.service import entry
from flows.service.guard import Application, Guard, Rules
from flows.service.processes import Command
from flows.settings import relax_garbage_collection
from storage.runtime import timings

AUTH = "PREFECT_SERVER_API_AUTH_STRING"
TIMINGS = "IDXFLOW_SERVER_TIMINGS"
"""Variable that names the file for where the seconds of the server's start went."""
_BACKLOG = 2048
"""The most connections that wait while a server starts or restarts; uvicorn's own default."""
_QUICKEST = 1
"""The level of gzip that takes the least time."""
_LOOK_INTERVAL = timedelta(seconds=2)
"""How often the server looks for background work that is due."""


@dataclass(frozen=True)
class Plan:
    """The options of the server. Everyone can see them on the command line; secrets are in the environment."""

    host: str
    names: tuple[str, ...] = ()
    """Host names that the user added to those of this server."""
    links: str = ""
    """Folder of the links that let a browser in; empty if there is no UI."""

    @property
    def temporary(self) -> bool:
        """Whether the server is for one run, without UI and scheduler."""
        return not self.links

    def command(self, environment: Mapping[str, str], folder: Path, log: Path, listener: socket.socket) -> Command:
        """Return the command of the process. A temporary server is forked: its parent has just imported Prefect."""
        # -P: import no modules from the current folder.
        arguments = (sys.executable, "-P", "-m", __name__, str(listener.fileno()), json.dumps(asdict(self)))
        inherited = (listener.fileno(),)
        if not self.temporary:
            return Command("server", arguments, environment, folder, log, inherited)
        fork = partial(_serve_forked, listener.fileno(), self)
        return Command("Prefect server", arguments, environment, folder, log, inherited, fork)


def application(plan: Plan) -> Application:
    """Return the ASGI application that answers the requests."""
    from prefect.server.api.server import create_app

    from flows.service import trimming
    from flows.service.writers import queue_writers

    queue_writers()
    look_less_often()
    write_settings_once()
    compress_quickly()
    auth = os.environ.get(AUTH)
    own = {entry.PATH: entry.entrance(Path(plan.links), auth)} if plan.links and auth else {}
    inner: Any = create_app(ephemeral=plan.temporary, final=True)
    inner.api_app.include_router(trimming.router())
    return Guard(inner, Rules.listening(plan.host, plan.names), own)


def look_less_often() -> None:
    """Have Prefect's background worker look for due work every two seconds; four times a second, it is never idle."""
    from docket import Worker
    from prefect.server.api import background_workers

    # Prefect: restless.
    patient = partial(Worker, minimum_check_interval=_LOOK_INTERVAL, scheduling_resolution=_LOOK_INTERVAL)
    setattr(background_workers, "Worker", patient)  # noqa: B010


def compress_quickly() -> None:
    """Have Prefect compress its answers with the quickest level, not the highest.

    For a script of the UI of 4 MB it takes a quarter of the time, and the result is 18 % larger.
    """
    from prefect.server.api import server
    from starlette.middleware.gzip import GZipMiddleware

    # Prefect: hard-pressed.
    setattr(server, "GZipMiddleware", partial(GZipMiddleware, compresslevel=_QUICKEST))  # noqa: B010


def write_settings_once() -> None:
    """Have Prefect write its settings as variables once, which takes 45 ms.

    Its server does that eight times while it starts, and again for each client that it makes for itself.
    """
    from prefect.settings import Settings

    write = Settings.to_environment_variables
    written: list[tuple[Settings, dict[frozenset[tuple[str, bool]], dict[str, str]]]] = []

    def once(settings: Settings, **how: bool) -> dict[str, str]:
        # They never change, but others may take their place.
        if not written or written[0][0] is not settings:
            written[:] = [(settings, {})]
        kinds, kind = written[0][1], frozenset(how.items())
        if kind not in kinds:
            kinds[kind] = write(settings, **how)
        return dict(kinds[kind])

    # Prefect: hashed-settings.
    setattr(Settings, "to_environment_variables", once)  # noqa: B010


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises OSError if the port is taken or the host is not this machine."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def serve(listener: int, plan: Plan) -> None:
    """Answer requests at a socket that listens, by its descriptor, until SIGTERM."""
    clock = timings.start() if TIMINGS in os.environ else None
    import uvicorn
    from prefect.settings import get_current_settings

    with timings.span("making Prefect's application"):
        served = application(plan)
    settings = get_current_settings().server
    config = uvicorn.Config(
        served,
        lifespan="on",
        log_level="error" if plan.temporary else settings.logging_level.lower(),
        # Its lines contain URLs with their queries.
        access_log=False,
        server_header=False,
        # As in `prefect server start`.
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            with timings.span("its database and services"):
                await super().startup(sockets)
            if clock:
                clock.save(Path(os.environ[TIMINGS]))

    Server(config).run(sockets=[socket.socket(fileno=listener)])


def _serve_forked(listener: int, plan: Plan) -> None:
    """Serve in a process that has imported Prefect with other settings than its own."""
    from prefect.context import refresh_global_settings_context
    from prefect.logging.configuration import setup_logging

    refresh_global_settings_context()
    setup_logging(incremental=False)
    serve(listener, plan)


if __name__ == "__main__":
    relax_garbage_collection()
    serve(int(sys.argv[1]), Plan(**json.loads(sys.argv[2])))
