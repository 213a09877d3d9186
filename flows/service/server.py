"""A Prefect server on this machine: is one there, and with which closed settings is one started?"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from flows.settings import quiet_environment
from storage.errors import ConfigError, PrefectFailed

AUTH = "PREFECT_SERVER_API_AUTH_STRING"
CLIENT_AUTH = "PREFECT_API_AUTH_STRING"
DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEFAULT_PORT = 4200
_DRIVERS = ("postgresql+asyncpg", "sqlite+aiosqlite")
_HEALTH_SECONDS = 20


@dataclass(frozen=True)
class Address:
    """Where the server listens (`host`, `port`), and the URL of its API as clients on this machine reach it."""

    host: str
    port: int
    api: str

    @property
    def ui(self) -> str:
        return self.api.removesuffix("/api")

    @property
    def local(self) -> bool:
        """Whether a server started here would answer at this URL."""
        parts = urlsplit(self.api)
        return parts.scheme == "http" and parts.hostname in LOOPBACK and parts.path == "/api"


def address(host: str, port: int | None, configured: str | None) -> Address:
    """Return the server's address: `port` if given, else the API URL Prefect is configured with, else port 4200."""
    if port is None and configured:
        parts = urlsplit(configured)
        return Address(host, parts.port or (443 if parts.scheme == "https" else 80), configured.rstrip("/"))
    number = port or DEFAULT_PORT
    return Address(host, number, f"http://127.0.0.1:{number}/api")


def is_up(where: Address, auth: str | None = None) -> bool:
    """Return whether a Prefect server answers there.

    Raises:
        PrefectFailed: something answers that is no Prefect server, or one that wants another auth string.
    """
    import httpx

    credentials = httpx.BasicAuth(*auth.split(":", 1)) if auth else None
    try:
        with httpx.Client(timeout=_HEALTH_SECONDS) as client:
            health = client.get(f"{where.api}/health")
            version = client.get(f"{where.api}/admin/version", auth=credentials)
    except httpx.ConnectError:
        return False
    except (httpx.HTTPError, ValueError) as error:
        raise PrefectFailed(_taken(where, type(error).__name__)) from error
    if health.status_code == 200 and version.status_code == 401:
        raise PrefectFailed(
            f"the Prefect server at {where.api} wants an auth string, and found {'another' if auth else 'none'}; "
            f"put it into the environment variable {CLIENT_AUTH}"
        )
    if health.text.strip() != "true" or version.status_code != 200:
        raise PrefectFailed(_taken(where, f"HTTP {health.status_code}"))
    return True


def refuse_if_taken(where: Address) -> None:
    """Raise PrefectFailed if the port cannot be listened on."""
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((where.host, where.port))
        except OSError as error:
            raise PrefectFailed(_taken(where, error.strerror or str(error))) from error


def _taken(where: Address, found: str) -> str:
    return (
        f"expected a Prefect server or a free port at {where.ui}, found something else ({found}); "
        "choose another with --port"
    )


def auth_string(folder: Path) -> str:
    """Return the auth string of the environment; else the one kept in `folder`, made at random the first time.

    The file is readable by its owner only. Raises ConfigError where the string is not of the form user:password.
    """
    given = os.environ.get(AUTH)
    path = auth_file(folder)
    if not given and path.exists():
        given = path.read_text(encoding="utf-8").strip()
    if not given:
        given = f"idxflow:{secrets.token_urlsafe(24)}"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            stream.write(given + "\n")
    if ":" not in given:
        raise ConfigError(f"expected {AUTH} to be of the form user:password, found no colon in it")
    return given


def auth_file(folder: Path) -> Path:
    """Return where a made auth string is kept."""
    return folder / "auth-string"


def checked_database(url: str | None) -> str | None:
    """Return the connection URL of `--database`, or None.

    Raises:
        ConfigError: its driver is not one that Prefect's server works with, or it holds a password, which every
            user of the machine could read in the list of processes.
    """
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in _DRIVERS:
        raise ConfigError(
            f"expected --database to begin with {_DRIVERS[0]}:// or {_DRIVERS[1]}://, found {parts.scheme!r}"
        )
    if parts.password:
        raise ConfigError(
            f"expected no password in --database, where every user of this machine sees it; put the whole URL into "
            f"{DATABASE}, or the password into PGPASSWORD or ~/.pgpass"
        )
    return url


def shown_database(url: str | None) -> str:
    """Return the database without user and password, for messages."""
    if not url:
        return "SQLite"
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def server_environment(where: Address, database: str | None, auth: str | None, csrf: bool) -> dict[str, str]:
    """Return the whole environment of the server. What the user has set goes first, except for where it listens."""
    closed = {
        # A page of another origin must not be able to talk to the API; the UI may be opened by either name.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{where.ui},http://localhost:{where.port}",
        # Prefect keeps runs for ever otherwise.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        # In memory, the slots of running flows would be forgotten by a restart, and the runs ended for it.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "120",
        # Seconds that SQLite waits for its one writer; the default of 10 gives "database is locked" on a busy machine.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": str(csrf).lower(),
    }
    chosen = {
        # Without it the UI looks for the API at the default port.
        "PREFECT_API_URL": where.api,
        "PREFECT_SERVER_API_HOST": where.host,
        "PREFECT_SERVER_API_PORT": str(where.port),
        **({DATABASE: database} if database else {}),
        **({AUTH: auth, CLIENT_AUTH: auth} if auth else {}),
    }
    return {**quiet_environment(), **closed, **os.environ, **chosen}


def client_environment(where: Address, auth: str | None, store: str | None) -> dict[str, str]:
    """Return the whole environment of the worker and of `prefect deploy`."""
    chosen = {
        "PREFECT_API_URL": where.api,
        **({CLIENT_AUTH: auth} if auth else {}),
        **({"IDXFLOW_STORE": str(Path(store).expanduser().resolve())} if store else {}),
    }
    quick = {"PREFECT_WORKER_QUERY_SECONDS": "5"}
    # Neither needs what opens the server or its database.
    inherited = {key: value for key, value in os.environ.items() if key not in (AUTH, DATABASE)}
    return {**quiet_environment(), **quick, **inherited, **chosen}


def prefect(*arguments: str) -> tuple[str, ...]:
    """Return the argument vector of a Prefect command, of the same Python as this."""
    return (sys.executable, "-m", "prefect", *arguments)
