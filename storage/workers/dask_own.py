"""The cluster of `--workers N`: a scheduler in this process, and workers that are processes of this run.

It listens on loopback, with a certificate that this process makes and gives to its workers only: without one, every
user of the machine could run code as this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from storage.runtime.code_digests import ROOT
from storage.workers.dask_worker import GRACE_SECONDS, without_folder

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.security import Security

SEND_SECONDS = 0.001
"""For how long messages are collected before they are sent. Dask takes 5 or 10 ms, in which a worker may be idle."""
_ROLES = ("tls_ca_file", "tls_worker_cert", "tls_worker_key")
_WORDS = 300


class OwnCluster:
    """A scheduler in the event loop that this is used in, and processes that compute.

    Args:
        count: of processes.
        modules: what they import before they are asked to compute anything.
    """

    def __init__(self, count: int, modules: tuple[str, ...] = ()) -> None:
        self.count = count
        self._modules = modules
        self._processes: list[subprocess.Popen[bytes]] = []
        self._errors: list[IO[bytes]] = []
        self._told = set[int]()
        self.last = ""
        """How the last process ended that has."""
        self._scheduler: Scheduler | None = None
        self._end = 0.0

    @property
    def alive(self) -> int:
        """How many of the processes have not ended."""
        return sum(process.poll() is None for process in self._processes)

    async def open(self) -> tuple[str, Security]:
        """Start everything; return the address of the scheduler in this process, and what to connect to it with."""
        from distributed.diagnostics.plugin import SchedulerPlugin
        from distributed.scheduler import Scheduler
        from distributed.security import Security

        class Prompt(SchedulerPlugin):  # type: ignore[misc]
            """Has the scheduler send workers what is for them at once."""

            def add_worker(self, scheduler: Scheduler, worker: str) -> None:
                scheduler.stream_comms[worker].interval = SEND_SECONDS

        class Quiet(Scheduler):  # type: ignore[misc]
            """Without the web server that shows what it does: it would ask nobody for a certificate."""

            def start_http_server(self, *_: object, **__: object) -> None:
                """Open nothing."""

        security = Security.temporary()
        with without_folder() as folder:
            self._scheduler = Quiet(
                # The second is for this process alone: what goes there is neither pickled nor encrypted.
                host=["127.0.0.1", None],
                port=[0, None],
                protocol=["tls://", "inproc://"],
                security=security,
                dashboard=False,
                # The run itself counts them: Dask would count an item that only waited for the worker that died.
                allowed_failures=0,
                plugins=[Prompt()],
                **folder,
            )
        await self._scheduler
        for_workers, for_this = (listener.contact_address for listener in self._scheduler.listeners)
        for number in range(1, self.count + 1):
            self._start(str(number), for_workers, security)
        return for_this, security

    def _start(self, name: str, scheduler: str, security: Any) -> None:
        errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._errors.append(errors)
        process = subprocess.Popen(
            [sys.executable, "-m", "storage.workers.dask_worker"],
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            # Ctrl-C is for the run.
            start_new_session=True,
        )
        self._processes.append(process)
        tls = {role: getattr(security, role) for role in _ROLES}
        request = {"scheduler": scheduler, "name": name, "tls": tls, "modules": self._modules}
        if process.stdin:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()

    def endings(self) -> Iterator[str]:
        """Yield how processes ended that have done so since the last call, and with which last words."""
        for number, process in enumerate(self._processes, 1):
            code = process.poll()
            if code is not None and number not in self._told:
                self._told.add(number)
                self.last = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                if words := self._last_words(number) if code > 0 else "":
                    self.last += f": {words}"
                yield f"worker {number} {self.last}"

    def _last_words(self, number: int) -> str:
        errors = self._errors[number - 1]
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        return next((line for line in reversed(lines) if "Error" in line), "")[:_WORDS]

    def let_go(self) -> None:
        """Tell the processes that the run is over: they stop what they compute at their next check, and end."""
        self._end = time.monotonic() + GRACE_SECONDS
        for process in self._processes:
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]

    async def close(self) -> None:
        """End the scheduler."""
        if self._scheduler:
            await self._scheduler.close()

    def end(self) -> None:
        """Wait for the processes, and kill those that take longer than they may since they were let go."""
        for process in self._processes:
            try:
                process.wait(max(self._end - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for errors in self._errors:
            errors.close()


def _environment() -> dict[str, str]:
    """Return the environment of a process that computes."""
    # The same code as here, wherever it may be installed.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # The processes share the processors: with a thread each for all of these, they would wait for each other.
    return {"OPENBLAS_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}
