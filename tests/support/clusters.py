"""Dask clusters for tests: a real scheduler and real workers, each a process, on loopback."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.workers import dask_own
from tests.support import commands
from tests.support.servers import ROOT, free_port, running, running_fork


def wait_until(true: Callable[[], object]) -> None:
    """Wait, however busy the machine is: pytest ends a test that hangs."""
    while not true():
        time.sleep(0.02)


Process = commands.Command | subprocess.Popen[bytes]


def fork_own_workers(patch: pytest.MonkeyPatch) -> None:
    """Have the processes of `--workers N` be forks of a process that has imported what they do."""
    # Before somebody waits for workers: at the first call, all is imported.
    commands.idxflow(env=os.environ, program="nothing")
    words = shlex.split(commands.calling("dask worker"))
    start = partial(subprocess.Popen, words)
    patch.setattr(
        dask_own, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": lambda _, **how: start(**how)})
    )


@contextmanager
def scheduler(folder: Path, *options: str, protocol: str = "tcp") -> Iterator[tuple[str, Process]]:
    """Run a scheduler as people do; yield its address and its process."""
    port = free_port()
    arguments = ("scheduler", "--host", f"{protocol}://127.0.0.1", "--port", str(port), "--no-dashboard")
    with _dask(
        folder, "scheduler", (*arguments, "--dashboard-address", "127.0.0.1:0", *options), "Scheduler at:"
    ) as process:
        yield f"{protocol}://127.0.0.1:{port}", process


@contextmanager
def worker(folder: Path, address: str, *options: str, code: Path = ROOT, name: str = "worker") -> Iterator[Process]:
    """Run a worker as docs/how-to/workers.md says, with the code of a folder."""
    arguments = ("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(folder))
    with _dask(folder, name, (*arguments, *options), "Registered to:", code) as process:
        yield process


@contextmanager
def _dask(folder: Path, name: str, arguments: Sequence[str], words: str, code: Path = ROOT) -> Iterator[Process]:
    """Run one of Dask's commands with the code of a folder, from when it has said these words.

    With the code of these tests it is a fork of a process that has imported it (`tests.support.commands`).
    """
    log = folder / f"{name}.log"
    environment = {**os.environ, "PYTHONPATH": str(code)}
    called = running((sys.executable, "-m", "dask", *arguments), environment, code, log)
    with running_fork("dask", arguments, environment, code, log) if code == ROOT else called as process:
        while words not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield process


@dataclass(frozen=True)
class Certificates:
    """An authority, and a certificate of its with a key."""

    ca: Path
    cert: Path
    key: Path

    @property
    def options(self) -> tuple[str, ...]:
        """What Dask's commands take."""
        return ("--tls-ca-file", str(self.ca), "--tls-cert", str(self.cert), "--tls-key", str(self.key))


def certificates(folder: Path) -> Certificates:
    """Make certificates with the commands of docs/how-to/workers.md."""
    folder.mkdir()
    page = (ROOT / "docs" / "how-to" / "workers.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(openssl .*?)```", page, re.DOTALL)
    subprocess.run(["bash", "-ec", block], cwd=folder, check=True, capture_output=True)
    return Certificates(folder / "ca.pem", folder / "workers.pem", folder / "workers-key.pem")
