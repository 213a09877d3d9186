"""The process of the site that `idxflow up` starts: `idxflow serve` on an inherited socket.

The parent listens, so that no other process of this machine can take the port while the site restarts: runs link to it.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flows.service.guard import LOOPBACK
from flows.service.processes import Command, Service
from flows.settings import ROOT
from storage.errors import ConfigError

TOKEN = "IDXFLOW_SITE_TOKEN"
"""Variable that has the site's token, if it has one."""


@dataclass(frozen=True)
class SitePlan:
    """The options of the site. Everyone can see them on the command line; the token is in the environment."""

    host: str
    names: tuple[str, ...] = ()
    """Host names that the user added to those of this machine."""
    store: str | None = None
    has_token: bool = False

    def command(self, environment: Mapping[str, str], folder: Path, log: Path, listener: socket.socket) -> Command:
        """Return the command of the process."""
        # -P: import no modules from the current folder.
        arguments = (sys.executable, "-P", "-m", __name__, str(listener.fileno()), json.dumps(asdict(self)))
        return Command("site", arguments, environment, folder, log, (listener.fileno(),))


class Started:
    """The site of one `idxflow up`."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "site.log"
        self.service: Service | None = None
        """None if it was not started, or could not be kept alive."""
        self.url: str | None = None
        """Where clients on this machine reach it; None if it was not started."""
        self._listener: socket.socket | None = None
        """Kept open, so that no other process can take the port while the site restarts."""

    def start(self, plan: SitePlan, port: int, auth: str | None, environment: Mapping[str, str]) -> None:
        """Start it; it answers within seconds.

        Args:
            auth: the auth string of the Prefect server, `user:password`.
            environment: that of a client of the server.

        Raises:
            ConfigError: the port is taken, or it could be used by other machines without a password.
        """
        from flows.web.serving import listening, url_of

        token = _token(plan.host, auth)
        self._listener = listening(plan.host, port, "--site-port")
        secret = {TOKEN: token} if token else {}
        plan = replace(plan, has_token=token is not None)
        self.service = Service(plan.command({**environment, **secret}, ROOT, self.log, self._listener))
        self.url = url_of(plan.host, self._listener)
        self.service.start()

    @property
    def pid(self) -> int | None:
        """Process id, or None if it is not running."""
        return self.service.pid if self.service else None

    def stop(self, seconds: float) -> None:
        """End it, within `seconds`."""
        if self.service:
            self.service.stop(seconds)
        self.give_up()

    def give_up(self) -> None:
        """Free its port, after it has died too often."""
        self.service = None
        if self._listener:
            self._listener.close()


def _token(host: str, auth: str | None) -> str | None:
    """Return the token of a site that listens on `host`: None on loopback, otherwise the password of the server.

    Raises:
        ConfigError: it has none, or one that can be guessed.
    """
    from flows.web.serving import MIN_TOKEN

    if host in LOOPBACK:
        return None
    password = (auth or "").partition(":")[2]
    if len(password) < MIN_TOKEN:
        raise ConfigError(
            f"expected a password of at least {MIN_TOKEN} characters in the server's auth string, which is also that "
            f"of the pages at {host}; found {len(password)}; use a longer one, or add --no-site"
        )
    return password


def serve(listener: int, plan: SitePlan) -> None:
    """Serve the store at a socket that listens, by its descriptor, until SIGTERM."""
    from flows.web.serving import ServeOptions, serve_store

    token_from = TOKEN if plan.has_token else None
    options = ServeOptions(host=plan.host, token_from=token_from, names=tuple(plan.names), store=plan.store)
    serve_store(options, socket.socket(fileno=listener))


if __name__ == "__main__":
    serve(int(sys.argv[1]), SitePlan(**json.loads(sys.argv[2])))
