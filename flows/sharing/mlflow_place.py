"""Where MLflow keeps runs: a tracking server or a database; how it is reached, and what its errors mean.

MLflow reads its settings and credentials from its own variables. Those that are not set get values here: MLflow alone
sends usage data to its makers, prints addresses to standard output, and tries a server that is gone for minutes.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flows.sharing.extras import check_installed
from storage.errors import ConfigError, SharingFailed

if TYPE_CHECKING:
    from mlflow import MlflowClient

VARIABLE = "MLFLOW_TRACKING_URI"
_SERVERS = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "300",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    # Of libpq, the client of PostgreSQL.
    "PGCONNECT_TIMEOUT": "10",
}
"""Seconds, but for the number of tries."""
_DRIVERS = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""What to install for a module that SQLAlchemy looks for, where that has another name."""
_KNOWN = (
    *("Connection refused", "timed out", "Name or service not known", "unable to open database file"),
    *("file is not a database", "database is locked", "attempt to write a readonly database"),
)
"""What the text of an error can say that has no credentials in it."""
_LONGEST = 200
"""Characters of a message of MLflow that are shown."""


@dataclass(frozen=True)
class Place:
    """A tracking server or a database."""

    address: str
    """May have credentials: never shown."""

    @property
    def shown(self) -> str:
        """The address without user, password and query, for people.

        A password that is not escaped can have any of `/?#@` in it, so all before the last @ is left out.
        """
        kind, separator, rest = self.address.partition("://")
        if not separator:
            return kind.rpartition("@")[2]
        if rest.startswith("/"):
            # A path, in which an @ is only an @.
            return f"{kind}{separator}{rest.partition('?')[0]}"
        return f"{kind}{separator}{re.split('[?#]', rest.rpartition('@')[2])[0]}"

    @property
    def is_server(self) -> bool:
        return self.address.startswith(tuple(f"{kind}://" for kind in _SERVERS))

    @property
    def files(self) -> str | None:
        """Where the files of runs go if nobody says: beside the file of SQLite; None: the server knows."""
        found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", self.address)
        # A database in memory ends with the command.
        if not found or ":memory:" in found[1]:
            return None
        return str(Path(found[1]).absolute().parent / "mlartifacts")


def place(at: str | None) -> Place:
    """Return the place that `--at` names, or MLflow's own variable.

    Raises:
        ConfigError: no place was given, it is of another kind, or `--at` has credentials in it.
    """
    scheme, separator, rest = (at or os.environ.get(VARIABLE) or "").partition("://")
    # MLflow knows only the lower case.
    address = f"{scheme.lower() if separator else scheme}{separator}{rest}"
    found = Place(address)
    kind = _kind(address)
    if kind not in (*_SERVERS, *_DATABASES):
        raise ConfigError(
            f"expected --at to be the address of an MLflow server or database, such as http://127.0.0.1:5000 or "
            f"sqlite:///mlflow.db; found {found.shown or 'none'}; give one (MLflow no longer writes to plain folders)"
        )
    if at and kind != "sqlite" and found.shown != address:
        raise ConfigError(
            "expected --at without user, password and query, because others can see the command line; found one in the "
            f"address of {found.shown}; put the whole address into the variable {VARIABLE} and leave --at out, or use "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if kind == "sqlite" and found.files is None:
        raise ConfigError(
            f"expected a file in the address of a database of SQLite; found {found.shown}; write it as "
            "sqlite:///mlflow.db, or sqlite:////data/mlflow.db with the whole path"
        )
    return found


def _kind(address: str) -> str:
    """Return the kind of an address; empty if it is none."""
    try:
        return urlsplit(address).scheme.split("+")[0]
    except ValueError:
        # Such as an IPv6 address without its bracket.
        return ""


@contextmanager
def connected(where: Place) -> Iterator[MlflowClient]:
    """Yield MLflow's client for a place, for as long as the block runs; a new database gets its tables.

    Raises:
        ConfigError: MLflow is not installed.
        SharingFailed: the place cannot be reached, or refuses something in the block.
    """
    check_installed("mlflow", "idxflow share mlflow", "mlflow")
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _failures(where):
        if not where.is_server:
            _try_database(where)
        # It takes seconds to import.
        from mlflow import MlflowClient

        with _as_default(where):
            yield MlflowClient(tracking_uri=where.address, registry_uri=where.address)


@contextmanager
def _as_default(where: Place) -> Iterator[None]:
    """Have MLflow look for models at a place: a client finds them only there, whatever its own address is."""
    import mlflow

    before = os.environ.get(VARIABLE)
    mlflow.set_tracking_uri(where.address)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before or "")
        os.environ.pop(VARIABLE, None)
        if before:
            os.environ[VARIABLE] = before


def _try_database(where: Place) -> None:
    """Connect to the database once: MLflow's own ten tries take minutes."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(where.address)
    try:
        with engine.connect():
            pass
    finally:
        engine.dispose()


@contextmanager
def _failures(where: Place) -> Iterator[None]:
    """Turn the errors of MLflow, and of what it stands on, into one sentence."""
    import requests
    import sqlalchemy.exc

    try:
        yield
    except ImportError as error:
        package = _DRIVERS.get(str(error.name), error.name)
        raise SharingFailed(
            f"expected the package {package} to reach {where.shown}; found none; install it "
            f"(`{sys.executable} -m pip install {package}`), or choose another place"
        ) from error
    except (requests.RequestException, sqlalchemy.exc.SQLAlchemyError) as error:
        raise _unreachable(where, error) from error
    except Exception as error:
        known = _of_mlflow(where, error)
        if known is None:
            raise
        raise known from error


def _of_mlflow(where: Place, error: Exception) -> SharingFailed | None:
    """Return what an error means that MLflow has raised; None if it is not MLflow's."""
    if not type(error).__module__.startswith("mlflow."):
        return None
    text = str(error)
    status: Any = getattr(error, "get_http_status_code", lambda: None)()
    if status in (401, 403):
        return SharingFailed(
            f"expected to be allowed to write at {where.shown}; the server refused that ({status}); set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, and repeat the command"
        )
    if "out-of-date database schema" in text:
        return SharingFailed(
            f"expected the tables of MLflow {metadata.version('mlflow-skinny')} at {where.shown}; found those of "
            f"another version; make a copy of the database and upgrade it (`{sys.executable} -m mlflow db upgrade "
            "ADDRESS`), or, if that is refused because they are of a later version, install that one"
        )
    if "failed with exception" in text:
        return _unreachable(where, error)
    return SharingFailed(
        f"expected {where.shown} to take the runs; it answered: {_brief(where, text)}; correct that, and repeat the "
        "command, which sends what is missing"
    )


def _unreachable(where: Place, error: Exception) -> SharingFailed:
    what = "server" if where.is_server else "database"
    return SharingFailed(
        f"expected an MLflow {what} at {where.shown}; it cannot be reached ({_reason(error)}); start it or correct the "
        "address, and repeat the command, which sends what is missing"
    )


def _reason(error: BaseException) -> str:
    """Return the name of an error, or what is known about it; its text may have credentials in it."""
    text = str(error)
    known = (known for known in _KNOWN if known in text)
    return next(known, type(error.__cause__ or error).__name__)


def _brief(where: Place, text: str) -> str:
    plain = " ".join(text.replace(where.address, where.shown).split())
    first = re.sub(r"//\S*@", "//", plain)
    return first if len(first) <= _LONGEST else f"{first[:_LONGEST]}…"
