"""The process of `idxflow serve`: what it needs before it listens, and uvicorn until a signal."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flows.service.application import listen
from flows.service.guard import LOOPBACK
from flows.service.server import checked_names
from flows.settings import SITE_PORT
from flows.terminal.output import print_line, remark
from flows.web.limits import RequestLimits
from storage.errors import ConfigError
from storage.opening import open_store
from storage.prediction_log import LogOptions, PredictionLog
from storage.store import Store
from storage.words import meant

if TYPE_CHECKING:
    from flows.web.served import Site

MIN_TOKEN = 16
"""Characters of a token; shorter ones can be guessed."""
_STOP_SECONDS = 1
"""How long requests may take to end after a signal."""


@dataclass(frozen=True)
class ServeOptions:
    """What `idxflow serve` was asked for."""

    datasets: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = SITE_PORT
    token_from: str | None = None
    names: tuple[str, ...] = ()
    store: str | None = None
    limits: RequestLimits = field(default_factory=RequestLimits)
    log: LogOptions | None = None
    """How predictions are kept; None: not at all."""


def url_of(host: str, listener: socket.socket) -> str:
    """Return where clients on this machine reach a socket that listens on `host`."""
    name, port = {"0.0.0.0": LOOPBACK[0], "::": "::1"}.get(host, host), listener.getsockname()[1]
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def serve_store(options: ServeOptions, listener: socket.socket | None = None) -> int:
    """Serve a store until Ctrl-C or SIGTERM; return the exit code.

    Args:
        listener: a socket that listens already, at the host of the options; None: one is made.

    Raises:
        ConfigError: the options cannot be used, such as a port that is taken.
        StoreError: the store cannot be opened.
    """
    store = open_store(options.store)
    _check_datasets(store, options.datasets)
    names, token = checked_names(options.names), _token(options)
    with listener or listening(options.host, options.port) as listener:
        # Only now: importing takes a second. Pillow by this thread, because no two may import at the same time.
        import PIL.Image

        from flows.web.application import application
        from flows.web.served import Site, rules

        PIL.Image.preinit()
        log = PredictionLog(store, options.log) if options.log else None
        site = Site(store, options.datasets, token, rules(options.host, names), options.limits, log)
        _run(application(site), listener, lambda: _say_ready(site, url_of(options.host, listener), options))
    return 0


def _run(served: object, listener: socket.socket, say_ready: Callable[[], None]) -> None:
    import uvicorn

    config = uvicorn.Config(
        served,  # type: ignore[arg-type]
        lifespan="on",
        log_config=None,
        # Its lines contain URLs with their queries.
        access_log=False,
        server_header=False,
        # Anyone on this machine could send another address in a header, and so escape the limit on requests from one.
        proxy_headers=False,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                say_ready()

    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # It sends itself each signal again at its end, for the handlers that were there before.
        Server(config).run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_ready(site: Site, url: str, options: ServeOptions) -> None:
    """Print where it is and what to try; what is printed works."""
    models = {name: site.champions.followed(name).model for name in site.champions.names}
    shown = ", ".join(
        f"{name} ({f'v{model.version.number}' if model else 'no champion yet'})" for name, model in models.items()
    )
    print_line(f"serving {shown or 'nothing yet'} at {url} until Ctrl-C")
    ready = next((name for name, model in models.items() if model), None)
    if ready:
        token = f' -H "Authorization: Bearer ${options.token_from}"' if options.token_from else ""
        image, ask = f"{url}/v1/{ready}/mean.png", f"{url}/v1/{ready}/predict"
        print_line(f"try: curl -s{token} {image} | curl{token} -H 'Content-Type: image/png' --data-binary @- {ask}")
    for problem in site.champions.problems().values():
        remark(f"warning: {problem}")
    sys.stdout.flush()


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


def listening(host: str, port: int, option: str = "--port") -> socket.socket:
    """Return a socket that listens there.

    Args:
        option: what chooses the port, for messages.

    Raises:
        ConfigError: the port is taken, or the host is not this machine.
    """
    try:
        return listen(host, port)
    except OSError as error:
        raise ConfigError(
            f"expected to listen on {host}:{port}; {error.strerror or error}; choose another with {option} or --host"
        ) from error
