"""A Prefect server on this machine: whether it is running, and the secure settings with which to start it."""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from flows.service import configuration
from flows.service.application import AUTH, listen
from flows.service.guard import ANY_ADDRESS, LOOPBACK, split
from flows.settings import quiet_environment
from flows.terminal.output import remark
from storage.errors import ConfigError, PrefectFailed
from storage.files import locked
from storage.objects.address import CREDENTIALS
from storage.store import STORE_VARIABLE, store_address

if TYPE_CHECKING:
    import httpx

CLIENT_AUTH = "PREFECT_API_AUTH_STRING"
DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
DEFAULT_PORT = 4200
LOG = "server.log"
"""In the folder of `idxflow up`."""
_DRIVERS = ("postgresql+asyncpg", "sqlite+aiosqlite")
_HEALTH_SECONDS = 20
_SOON_SECONDS = 2
"""Time without an answer after which a line says what is being waited for."""
_LISTENING = "0A"
_SERVER_ONLY = ("PREFECT_SERVER_", "PREFECT_API_DATABASE_", "PREFECT_ORION_", "PG")
"""Prefixes of the variables that give access to the server or its database."""


@dataclass(frozen=True)
class Address:
    """The address on which the server listens (`host`, `port`), and the URL of its API for clients on this machine."""

    host: str
    port: int
    api: str

    @property
    def ui(self) -> str:
        return self.api.removesuffix("/api")

    @property
    def shown(self) -> str:
        """The URL for messages, without possible secrets."""
        from tasks.sources.download import redacted

        return redacted(self.api)

    @property
    def name(self) -> str:
        """The host name or IP address that clients on this machine use."""
        return urlsplit(self.api).hostname or self.host

    @property
    def local(self) -> bool:
        """Whether a server started here would answer at this URL."""
        parts = urlsplit(self.api)
        return parts.scheme == "http" and parts.hostname in (*LOOPBACK, self.host) and parts.path == "/api"


class Unexpected(PrefectFailed):
    """The program that answers is not a usable Prefect server; `remedy` is what a client can do."""

    def __init__(self, where: Address, actual: str, remedy: str) -> None:
        super().__init__(
            f"expected a Prefect server or a free port at {where.ui}, found something else ({actual}); "
            "choose another with --port"
        )
        self.actual, self.remedy = actual, remedy


def address(host: str, port: int | None, configured: str | None) -> Address:
    """Return the server's address from `port`, or the configured URL of Prefect's API, or port 4200, in this order.

    A server started for a URL of this machine listens on `host` and is reached there; a URL that leads there is kept.
    """
    if port is None and configured:
        parts = urlsplit(configured)
        number = parts.port or (443 if parts.scheme == "https" else 80)
        candidate = Address(host, number, configured.rstrip("/"))
        if not candidate.local or _leads(parts.hostname, host):
            return candidate
        return Address(host, number, f"http://{_name(host)}:{number}/api")
    number = port or DEFAULT_PORT
    return Address(host, number, f"http://{_name(host)}:{number}/api")


def _name(host: str) -> str:
    """Return the host name for a URL that reaches a server listening on `host`."""
    reached = {"0.0.0.0": LOOPBACK[0], "::": "::1"}.get(host, host)
    return f"[{reached}]" if ":" in reached else reached


def _leads(name: str | None, host: str) -> bool:
    """Return whether a client that connects to `name`, trying each of its addresses, reaches a server on `host`."""
    return name in (host, _name(host)) or (name == "localhost" and host in (LOOPBACK[0], *ANY_ADDRESS))


def is_up(where: Address, auth: str | None = None, seconds: float | None = None) -> bool:
    """Return whether a Prefect server answers there within `seconds`; without them, print what is being waited for.

    Raises:
        Unexpected: the program that answers is not a Prefect server.
        PrefectFailed: the server requires another auth string.
    """
    import httpx

    try:
        try:
            answers = _responses(where, auth, seconds or min(_SOON_SECONDS, _HEALTH_SECONDS))
        except httpx.TimeoutException:
            if seconds:
                raise
            _say_awaited(where.shown)
            answers = _responses(where, auth, _HEALTH_SECONDS)
    except httpx.ConnectError:
        return False
    except httpx.TimeoutException as error:
        problem = f"no answer within {seconds or _HEALTH_SECONDS} s"
        raise Unexpected(where, problem, "correct the address, or find out why it does not answer") from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, ImportError) as error:
        raise Unexpected(where, type(error).__name__, "correct the address") from error
    _check(where, auth, *answers)
    return True


def _responses(where: Address, auth: str | None, seconds: float) -> tuple[httpx.Response, httpx.Response]:
    """Return the responses to a health check and to a request that requires the auth string."""
    with session(where, auth, seconds) as client:
        # Without the auth string, which must not reach another program that has the port.
        health = client.get("/health", auth=None)
        return health, client.get("/admin/version")


def session(where: Address, auth: str | None, seconds: float) -> httpx.Client:
    """Return an authenticated HTTP client of the API with a timeout of `seconds`."""
    import httpx

    from tasks.sources.download import certificates

    key = None if auth else configuration.api_key(where.api)
    return httpx.Client(
        base_url=where.api,
        verify=certificates(where.api),
        timeout=seconds,
        auth=httpx.BasicAuth(*auth.split(":", 1)) if auth else None,
        headers={"Authorization": f"Bearer {key}"} if key else None,
    )


def _check(where: Address, auth: str | None, health: httpx.Response, version: httpx.Response) -> None:
    codes = (health.status_code, version.status_code)
    if codes == (200, 401):
        raise PrefectFailed(
            f"the Prefect server at {where.api} requires {'a different' if auth else 'an'} auth string; "
            f"put it into the environment variable {CLIENT_AUTH}"
        )
    if codes[0] in (401, 403):
        raise Unexpected(where, f"HTTP {codes[0]}", "put the key that it requires into PREFECT_API_KEY")
    if (health.text.strip() != "true" or codes[1] != 200) and not configuration.is_hosted(where.api):
        api = "correct the address" if where.api.endswith("/api") else "an address of Prefect's API ends in /api"
        raise Unexpected(where, f"HTTP {codes[0]}", api)


@cache
def _say_awaited(shown: str) -> None:
    remark(f"waiting for {shown} to answer, for at most {_HEALTH_SECONDS} s")


def listening(where: Address) -> socket.socket:
    """Return a socket that listens there. Raises PrefectFailed if that is not possible."""
    try:
        return listen(where.host, where.port)
    except OSError as error:
        raise Unexpected(where, error.strerror or str(error), "choose another with --port") from error


def auth_string(folder: Path) -> str:
    """Return the auth string of a server started here, created at random the first time and kept in `folder`.

    The file is readable only by its owner. Raises ConfigError if the string is not of the form user:password.
    """
    secret = kept_auth_string(folder) or _new_auth_string(auth_file(folder))
    if ":" not in secret or not secret.isascii():
        problem = "no colon in it" if secret.isascii() else "a non-ASCII character, which Prefect cannot compare"
        origin, take_away = (AUTH, "unset it") if os.environ.get(AUTH) else (auth_file(folder), "remove it")
        raise ConfigError(
            f"expected {origin} to be of the form user:password, found {problem}; correct it, or {take_away}, "
            "and one is generated"
        )
    return secret


def _new_auth_string(path: Path) -> str:
    """Create the file atomically: an empty file, as a full disk leaves it, would be no secret and block a new one."""
    partial = path.with_name(f".{path.name}.partial")
    with locked(path.with_name(f".{path.name}.lock"), passing=True):
        # Another `idxflow up` may have created it first.
        if not (secret := kept_auth_string(path.parent)):
            secret = f"idxflow:{secrets.token_urlsafe(24)}"
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
                stream.write(secret + "\n")
            partial.replace(path)
    return secret


def kept_auth_string(folder: Path) -> str | None:
    """Return the auth string from the environment, or the one kept in `folder`, or None."""
    secret, path = os.environ.get(AUTH), auth_file(folder)
    if not secret and path.is_file():
        secret = path.read_text(encoding="utf-8").strip()
    return secret or None


def auth_file(folder: Path) -> Path:
    """Return the path of the file with a created auth string."""
    return folder / "auth-string"


def known_auth_string(where: Address, folder: Path) -> str | None:
    """Return the auth string for a server that may run there: the configured one, or the kept one.

    The kept one is never sent to a server of another user or on another machine.
    """
    if configured := configuration.auth_string():
        return configured
    return kept_auth_string(folder) if where.local and is_ours(where, folder) else None


def is_ours(where: Address, folder: Path) -> bool:
    """Return whether only this user, root or the owner of `folder` listens on the port; True if unknown."""
    trusted = {os.geteuid(), 0} | ({folder.stat().st_uid} if folder.exists() else set())
    return _listeners(where.port) <= trusted


def _listeners(port: int) -> set[int]:
    """Return the ids of the users that listen on a port of this machine. See proc(5), `/proc/net/tcp`."""
    users = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        lines = table.read_text().splitlines()[1:] if table.exists() else []
        for _, local, _, state, _, _, _, user, *_ in (line.split() for line in lines):
            if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                users.add(int(user))
    return users


def login(auth: str | None, folder: Path) -> str | None:
    """Return a shell command that gives Prefect's own commands the auth string without showing it."""
    if auth is None:
        return None
    if os.environ.get(CLIENT_AUTH) == auth:
        return f'export {CLIENT_AUTH}="${CLIENT_AUTH}"'
    if os.environ.get(AUTH) == auth:
        return f'export {CLIENT_AUTH}="${AUTH}"'
    return f'export {CLIENT_AUTH}="$(cat {shlex.quote(str(auth_file(folder)))})"'


def opened(auth: bool, csrf: bool) -> Iterator[str]:
    """Yield a description of each protection that the user turned off."""
    if not auth:
        yield "--no-auth: every user of this machine can run code as you through this server"
    if not csrf:
        yield (
            "--no-csrf: changes need no token; a request without an Origin header is assumed not to come from a web "
            "page"
        )


def checked_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of `--allow-host`. Raises ConfigError if one is not a host name."""
    for name in names:
        if not split(name.lower())[1]:
            raise ConfigError(
                f"expected --allow-host to be a name such as prefect.example.org, found {name!r}; give a host name"
            )
    return tuple(names)


def checked_database(url: str | None) -> str | None:
    """Return the connection URL of `--database`, or None.

    Raises:
        ConfigError: Prefect's server does not support its driver, or it contains a password, which every user of the
            machine could read in the list of processes.
    """
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in _DRIVERS:
        raise ConfigError(
            f"expected --database to begin with {_DRIVERS[0]}:// or {_DRIVERS[1]}://, "
            f"found {parts.scheme!r}; give one that does"
        )
    if parts.password:
        raise ConfigError(
            f"expected no password in --database, where every user of this machine can see it; put the whole URL into "
            f"{DATABASE}, or the password into PGPASSWORD or ~/.pgpass"
        )
    return url


def shown_database(url: str | None) -> str:
    """Return the database URL without user and password, for messages."""
    if not url:
        return "SQLite"
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def server_environment(where: Address, database: str | None, auth: str | None, csrf: bool) -> dict[str, str]:
    """Return the whole environment of the server. The user's settings take precedence, except for where it listens."""
    closed = {
        # The guard refuses pages of other origins, so no response may permit them.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": where.ui,
        # Prefect: address-of-the-ui. The API has the same host name and port with which the UI was opened.
        "PREFECT_UI_API_URL": "/api",
        # Prefect: vacuum. Otherwise Prefect keeps runs forever.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        # Prefect: leases. In memory, the slots of running flows would be lost in a restart, and their runs ended.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "120",
        # Prefect: locked. Seconds to wait for SQLite's only writer; with the default of 10, a busy machine causes
        # "database is locked".
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": str(csrf).lower(),
    }
    chosen = {
        "PREFECT_API_URL": where.api,
        "PREFECT_SERVER_API_HOST": where.host,
        "PREFECT_SERVER_API_PORT": str(where.port),
        **({DATABASE: database} if database else {}),
        **({AUTH: auth, CLIENT_AUTH: auth} if auth else {}),
    }
    return {**quiet_environment(), **closed, **without_credentials(os.environ), **chosen}


def without_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables without those of object storage: the server has no business in a store."""
    return {name: value for name, value in environment.items() if not name.startswith(CREDENTIALS)}


def client_environment(where: Address, auth: str | None, store: str | None) -> dict[str, str]:
    """Return the whole environment of the worker and of `prefect deploy`."""
    chosen = {
        "PREFECT_API_URL": where.api,
        **({CLIENT_AUTH: auth} if auth else {}),
        **({STORE_VARIABLE: store_address(store)} if store else {}),
    }
    quick = {"PREFECT_WORKER_QUERY_SECONDS": "5"}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(_SERVER_ONLY)}
    return {**quiet_environment(), **quick, **inherited, **chosen}


def prefect(*arguments: str) -> tuple[str, ...]:
    """Return the argument vector of a Prefect command, run with this Python."""
    return (sys.executable, "-m", "prefect", *arguments)
