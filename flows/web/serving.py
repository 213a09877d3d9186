"""The process of `idxflow serve`: what it needs before it listens, and uvicorn until a signal."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass

from flows.service.application import listen
from flows.service.guard import LOOPBACK
from flows.service.server import checked_names
from flows.terminal.output import print_line
from storage.errors import ConfigError
from storage.opening import open_store
from storage.store import Store
from storage.words import meant

MIN_TOKEN = 16
"""Characters of a token; shorter ones can be guessed."""
_STOP_SECONDS = 1
"""How long requests may take to end after a signal."""


@dataclass(frozen=True)
class ServeOptions:
    """What `idxflow serve` was asked for."""

    datasets: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 4280
    token_from: str | None = None
    names: tuple[str, ...] = ()
    store: str | None = None


def url_of(host: str, listener: socket.socket) -> str:
    """Return where clients on this machine reach a socket that listens on `host`."""
    name, port = {"0.0.0.0": LOOPBACK[0], "::": "::1"}.get(host, host), listener.getsockname()[1]
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def serve_store(options: ServeOptions) -> int:
    """Serve a store until Ctrl-C or SIGTERM; return the exit code.

    Raises:
        ConfigError: the options cannot be used, such as a port that is taken.
        StoreError: the store cannot be opened.
    """
    store = open_store(options.store)
    _check_datasets(store, options.datasets)
    names, token = checked_names(options.names), _token(options)
    with _listening(options) as listener:
        # Only now: importing takes a second.
        from flows.web.application import application
        from flows.web.site import Site, rules

        site = Site(store, options.datasets, token, rules(options.host, names))
        _run(application(site), listener, url_of(options.host, listener))
    return 0


def _run(served: object, listener: socket.socket, url: str) -> None:
    import uvicorn

    config = uvicorn.Config(
        served,  # type: ignore[arg-type]
        lifespan="on",
        log_config=None,
        # Its lines contain URLs with their queries.
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print_line(f"serving at {url}")
                sys.stdout.flush()

    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # It sends itself each signal again at its end, for the handlers that were there before.
        Server(config).run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_datasets(store: Store, asked: tuple[str, ...]) -> None:
    known = store.datasets()
    for name in asked:
        if name not in known:
            raise ConfigError(
                f"expected a data set of {store.address}; found {name!r}{meant(name, known)}; "
                f"`{store.command('status')}` lists them"
            )


def _token(options: ServeOptions) -> str | None:
    """Return the token.

    Raises:
        ConfigError: there is none, or it is too short; or other machines could reach the server without one.
    """
    if options.token_from is None:
        if options.host not in LOOPBACK:
            raise ConfigError(
                f"expected --token-from with --host {options.host}, which other machines can reach; found none; put a "
                "token into an environment variable, and name that: --token-from VARIABLE"
            )
        return None
    token = os.environ.get(options.token_from, "")
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        found = f"{len(token)}" if token else "none"
        raise ConfigError(
            f"expected a token of at least {MIN_TOKEN} characters, ASCII without spaces, in the environment variable "
            f"{options.token_from}; found {found}; put one there, such as the output of `openssl rand -hex 32`"
        )
    return token


def _listening(options: ServeOptions) -> socket.socket:
    try:
        return listen(options.host, options.port)
    except OSError as error:
        where = f"{options.host}:{options.port}"
        raise ConfigError(
            f"expected to listen on {where}; {error.strerror or error}; choose another with --port or --host"
        ) from error
