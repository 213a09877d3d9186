"""Long-running processes: started with a log of their own, restarted when they die, ended by their process id."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flows.service.deaths import by_signal, counter, in_kernel_log, kills_for_memory
from flows.service.fork import Fork
from storage.errors import PrefectFailed

START_SECONDS = 600
"""Timeout for a started process to answer: with a tenth of a processor a server takes four minutes.

A dead process is noticed at once, so only one that hangs takes this long.
"""
MAX_DEATHS = 5
"""Give up after this many deaths in a row, each within `SETTLED_SECONDS` of the start."""
SETTLED_SECONDS = 60
_LONGEST_PAUSE = 30
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Refused|NotFound)\b.*: \S")
_LOG_BYTES = 10_000_000
_LAST_LINES = 60
"""Number of last lines searched for the cause of a death: a traceback, with lines that libraries add."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Command:
    """A process to start: name for messages, arguments, environment, folder, output file, inherited descriptors."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    inherited: tuple[int, ...] = ()
    fork: Callable[[], object] | None = None
    """What a fork of this process does in place of the program, which has to import everything first (Linux)."""


class Service:
    """One process to keep alive. It has its own session, so Ctrl-C in the terminal does not reach it.

    On Linux it gets SIGTERM when its parent process dies for any reason; elsewhere it may outlive its parent.
    """

    def __init__(self, command: Command, now: Callable[[], float] = time.monotonic) -> None:
        self.command = command
        self._now = now
        self._process: subprocess.Popen[bytes] | Fork | None = None
        self._started = 0.0
        self._counter: Path | None = None
        self._kills = (0, 0)
        self._log_start = 0
        self._deaths = 0
        self._not_before = 0.0

    @property
    def pid(self) -> int | None:
        """Process id, or None if it is not running."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def age(self) -> float:
        """Seconds since the last start."""
        return self._now() - self._started

    def start(self) -> None:
        log = self.command.log
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._process = _process(self.command, output)
        self._started = self._now()
        self._counter = counter(self._process.pid)
        self._kills = (kills_for_memory(self._counter),) * 2

    def revive(self) -> str | None:
        """Restart the process if it has died and its pause is over; return a message about it, or None.

        Raises:
            PrefectFailed: it died `MAX_DEATHS` times in a row soon after its start.
        """
        if self.pid:
            # Keep the count before the last check, because the last one may already include this death.
            self._kills = (self._kills[1], kills_for_memory(self._counter))
            return None
        if self._process:
            return self._note_death()
        if self._now() < self._not_before:
            return None
        self.start()
        return f"{self.command.name} started again, process {self.pid}"

    def _note_death(self) -> str:
        self._deaths = self._deaths + 1 if self._now() - self._started < SETTLED_SECONDS else 1
        if self._deaths >= MAX_DEATHS:
            raise PrefectFailed(
                f"the {self.epitaph()}, {self._deaths} times in a row; correct what {self.command.log} names, then "
                "start again"
            )
        pause = min(2 ** (self._deaths - 1), _LONGEST_PAUSE)
        epitaph = self.epitaph()
        self._process = None
        self._not_before = self._now() + pause
        return f"the {epitaph}; starting it again in {pause} s; see {self.command.log}"

    def epitaph(self) -> str:
        """Return the cause of the process's end: a signal, or its own last error."""
        process = self._process
        if process and process.returncode and process.returncode < 0:
            # A signal ended it, not an error that it logged earlier.
            memory = kills_for_memory(self._counter) > self._kills[0] or in_kernel_log(process.pid)
            return f"{self.command.name} {by_signal(-process.returncode, memory)}"
        words = self.last_words()
        how = f"ended with exit code {process.returncode if process else None}"
        return f"{self.command.name} {how}" + (f": {words}" if words else "")

    def last_words(self) -> str:
        """Return the process's last error, in at most 300 characters; empty if it did not end with an error."""
        with self.command.log.open("rb") as stream:
            stream.seek(self._log_start)
            output = stream.read().decode(errors="replace").splitlines()
        lines = [line.strip() for line in output if line.strip()][-_LAST_LINES:]
        # An exception's message is more informative than a log line about it.
        raised = [line for line in lines if _EXCEPTION.match(line)]
        logged = [line for line in lines if "ERROR" in line or "error:" in line.lower()]
        return (raised or logged or [""])[-1][:300]

    def stop(self, seconds: float) -> None:
        """End the process and its whole session: with SIGTERM, and after `seconds` with SIGKILL."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        # The rest of the session, such as a grandchild that outlived its parent.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _process(command: Command, output: IO[bytes]) -> subprocess.Popen[bytes] | Fork:
    ends_with_parent, fork = end_with_parent(), command.fork
    if fork and ends_with_parent:
        calls = (ends_with_parent, fork)
        return Fork(calls, command.environment, command.folder, output.fileno(), command.inherited)
    return subprocess.Popen(
        command.arguments,
        env=command.environment,
        cwd=command.folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=command.inherited,
        preexec_fn=ends_with_parent,
    )


def end_with_parent() -> Callable[[], None] | None:
    """Return a function that makes the kernel send SIGTERM to the new process when this one dies (Linux: prctl(2))."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
