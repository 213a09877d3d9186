"""A PostgreSQL cluster of a test's own: fresh, on loopback, with a password, ended with the test."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.servers import free_port

_DEBIAN = Path("/usr/lib/postgresql")
USER = "prefect"


@dataclass(frozen=True)
class Cluster:
    port: int
    password: str
    binaries: Path

    @property
    def url(self) -> str:
        """The URL without the password, as it may stand on a command line."""
        return f"postgresql+asyncpg://{USER}@127.0.0.1:{self.port}/postgres"

    def ask(self, query: str) -> str:
        return self._called("psql", "-Atc", query).strip()

    def dump(self) -> str:
        """Return all that is in the database."""
        return self._called("pg_dump")

    def _called(self, program: str, *arguments: str) -> str:
        place = ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER]
        command = [self.binaries / program, *place, *arguments, "postgres"]
        environment = {**os.environ, "PGPASSWORD": self.password}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=240).stdout


@contextmanager
def postgres(password: str) -> Iterator[Cluster]:
    binaries = _binaries()
    # Not below pytest's folder, which only its owner may enter: the server refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="idxflow-postgres-"))
    try:
        prefix = _as_ordinary_user(folder)
        secret = folder / "password"
        secret.write_text(password, encoding="utf-8")
        data = folder / "data"
        cluster = Cluster(free_port(), password, binaries)
        options = ["--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync", "-U", USER, "-D", str(data)]
        subprocess.run([*prefix, binaries / "initdb", *options], check=True, capture_output=True, timeout=120)
        arguments = ["-D", str(data), "-h", "127.0.0.1", "-p", str(cluster.port), "-k", str(folder), "-F"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen([*prefix, binaries / "postgres", *arguments], stdout=log, stderr=log)
        try:
            ready = [binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(cluster.port), "-t", "1"]
            while True:
                if subprocess.run(ready, check=False, timeout=240).returncode == 0:
                    break
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
            yield cluster
        finally:
            # "Fast" ends sessions rather than wait for them, "immediate" is for a server that does not answer.
            for how in (signal.SIGINT, signal.SIGQUIT):
                server.send_signal(how)
                with suppress(subprocess.TimeoutExpired):
                    server.wait(20)
                    break
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path:
    programs = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parent.parent.name.split(".")[0]))
    on_path = shutil.which("initdb")
    if not on_path and not programs:
        pytest.skip("needs PostgreSQL: on Debian, apt-get install postgresql")
    # A name on the path may be a link to one program of the folder.
    return (programs[-1] if programs else Path(on_path or "").resolve()).parent


def _as_ordinary_user(folder: Path) -> list[str]:
    if os.getuid() != 0:
        return []
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
