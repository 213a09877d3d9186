"""The file of Prefect's SQLite database: its path, its identity, and problems with it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

LEAST_FREE_BYTES = 10_000_000
_BUSY_SECONDS = 5
_MAGIC = b"SQLite format 3\x00"

Identity = tuple[int, int]
"""Device and inode."""


def database_file(url: str) -> Path | None:
    """Return the file that a connection URL names; None for another kind of database, or an in-memory one."""
    parts = urlsplit(url)
    path = parts.path[1:]
    return Path(path) if parts.scheme.startswith("sqlite") and path and ":memory:" not in path else None


def configured(url: str | None = None) -> Path | None:
    """Return the file of the database that Prefect is configured with, or that `url` names instead."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    return database_file(url or PREFECT_API_DATABASE_CONNECTION_URL.value())


def identity(path: Path) -> Identity | None:
    """Return the identity that distinguishes a file from another of the same name; None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def journal(path: Path) -> Path:
    """Return the write-ahead log: the file with changes that are not in the database's own file yet."""
    return path.with_name(f"{path.name}-wal")


def forget_journal(path: Path, opened: Identity | None) -> None:
    """Remove the journal of a lost database, if it is still the file with the identity `opened`.

    SQLite would apply it to the file that has the database's name now, and corrupt that: see
    https://www.sqlite.org/howtocorrupt.html, "mispairing database files and hot journals".
    """
    if opened and identity(journal(path)) == opened:
        journal(path).unlink()
        path.with_name(f"{path.name}-shm").unlink(missing_ok=True)


def trouble(path: Path, gc: str) -> str | None:
    """Return one sentence on the problem that keeps a server from using a database, with its remedy, or None.

    An empty or missing file is not a problem: the server creates a database.

    Args:
        gc: the command that removes old results from the store.
    """
    if not os.access(path.parent, os.R_OK | os.W_OK | os.X_OK):
        return f"{path.parent}, the folder of Prefect's database, cannot be written to; give it to this user (chown)"
    if path.is_dir():
        return f"{path} is a folder, expected Prefect's database; {_aside(path)}"
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return f"{path}, Prefect's database, cannot be read and written; give it to this user (chown, chmod 600)"
    if full := full_disk(path, gc):
        return full
    broken = _broken(path) if path.exists() else None
    return f"{path}, Prefect's database, is broken ({broken}); {_aside(path)}" if broken else None


def full_disk(path: Path, gc: str) -> str | None:
    """Return one sentence, with a remedy, if the database's disk is almost full; otherwise None."""
    if shutil.disk_usage(path.parent).free >= LEAST_FREE_BYTES:
        return None
    least = f"{LEAST_FREE_BYTES / 1e6:,.0f} MB"
    return f"{path}, Prefect's database, has less than {least} free on its disk; free some, for instance with `{gc}`"


def _aside(path: Path) -> str:
    return (
        f"move it aside (mkdir {path.parent}/broken && mv {path}* {path.parent}/broken) and start again: a new one is "
        "created, and `idxflow up` deploys to it; the history of runs and your own automations are lost"
    )


def _broken(path: Path) -> str | None:
    with path.open("rb") as stream:
        magic = stream.read(len(_MAGIC))
    if magic and magic != _MAGIC:
        return "it is not an SQLite database"
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_BUSY_SECONDS)) as connection:
            verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        # For example locked, because a server is using it.
        return str(error) if "malformed" in str(error) else None
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if verdict == "ok" else " ".join(verdict.split())[:200]
