"""This user's SQLite database of Prefect: used by one server of idxflow at a time.

A temporary server uses it only if no other process does; otherwise it gets a temporary database. An empty database
with all tables is kept for that purpose, because creating one takes ten seconds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO

from storage.errors import PrefectFailed
from storage.files import locked

DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
_NAME = "prefect.db"
_SQLITE = "sqlite+aiosqlite:///"
_OPEN_BYTE = 128
"""Offset in the file `-shm`: every process with the database open holds a shared lock on it (DMS in SQLite's wal.c)."""
_GETLK = "hhqqi"
_UNUSABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def private_home() -> Path:
    """Return Prefect's home, readable only by its owner: database, logs and results hold parameters and paths.

    Raises:
        PrefectFailed: it cannot be created or written.
    """
    from prefect.settings import PREFECT_HOME

    home: Path = PREFECT_HOME.value()
    try:
        for folder in (home, home / "idxflow"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Leave the permissions of another user's folder alone.
            if folder.stat().st_uid == os.geteuid():
                folder.chmod(0o700)
        # Permissions, read-only file systems, quotas: try to write rather than check each.
        tempfile.TemporaryFile(dir=home / "idxflow").close()
    except OSError as error:
        raise _unusable(error, home) from error
    return home


def hold(home: Path) -> IO[bytes] | None:
    """Return a lock on the database for a server of idxflow, held until closed; None if another server holds it."""
    stream = (home / "idxflow" / "database.lock").open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


def starting(home: Path) -> AbstractContextManager[None]:
    """Hold a lock while a server starts on the configured database: two that create its tables at once both fail."""
    return locked(home / "idxflow" / "start.lock")


def in_use(database: Path) -> bool:
    """Return whether any process has the SQLite database open, even a server that idxflow did not start (Linux)."""
    shared = database.with_name(f"{database.name}-shm")
    if not sys.platform.startswith("linux") or not shared.exists():
        return False
    with shared.open("rb") as stream:
        lock_request = struct.pack(_GETLK, fcntl.F_WRLCK, os.SEEK_SET, _OPEN_BYTE, 1, 0)
        kind: int = struct.unpack_from(_GETLK, fcntl.fcntl(stream, fcntl.F_GETLK, lock_request.ljust(64, b"\0")))[0]
    return kind != fcntl.F_UNLCK


@contextmanager
def home_errors() -> Iterator[None]:
    """Turn an `OSError` about Prefect's home into a `PrefectFailed` with a remedy."""
    from prefect.settings import PREFECT_HOME

    try:
        yield
    except OSError as error:
        if error.errno not in _UNUSABLE:
            raise
        raise _unusable(error, PREFECT_HOME.value()) from error


def _unusable(error: OSError, home: Path) -> PrefectFailed:
    return PrefectFailed(
        f"Prefect's folder cannot be used: {error.strerror} at {error.filename or home}; free space or correct "
        "the permissions there, or choose another with PREFECT_HOME"
    )


@contextmanager
def alone(home: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of a temporary server: empty if no other process uses the configured database.

    Otherwise it names a database in `folder`. A configured database that is not a file is not checked.
    """
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    url = str(PREFECT_API_DATABASE_CONNECTION_URL.value())
    if not url.startswith(_SQLITE) or ":memory:" in url:
        yield {}
        return
    held = hold(home)
    try:
        taken = held is None or in_use(Path(url.removeprefix(_SQLITE).partition("?")[0]))
        yield _own(home, folder) if taken else {}
    finally:
        if held:
            held.close()


def keep_empty(home: Path, folder: Path) -> None:
    """Keep the database in `folder`, if it exists and is still empty, for the next temporary server that needs one."""
    database, saved = folder / _NAME, _saved_file(home)
    if saved.exists() or not database.exists():
        return
    partial = saved.with_suffix(f".{os.getpid()}.partial")
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(partial)) as target:
        source.backup(target)
    partial.replace(saved)


def _own(home: Path, folder: Path) -> dict[str, str]:
    if _saved_file(home).exists():
        shutil.copyfile(_saved_file(home), folder / _NAME)
    return {DATABASE: f"{_SQLITE}{folder / _NAME}"}


def _saved_file(home: Path) -> Path:
    return home / "idxflow" / f"empty-{version('prefect')}.db"
