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

from flows.service.deaths import by_signal, counter, in_kernel_log, kills_for_memory
from storage.errors import PrefectFailed

START_SECONDS = 600
"""What may pass until a process that was started answers: with a tenth of a processor a server takes four minutes.
That one has died is noticed at once, so only what hangs takes so long."""
MAX_DEATHS = 5
"""So many deaths in a row, each within `SETTLED_SECONDS` of the start, are no accident any more."""
SETTLED_SECONDS = 60
_LONGEST_PAUSE = 30
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Refused|NotFound)\b.*: \S")
_LOG_BYTES = 10_000_000
_LAST_LINES = 60
"""What a process says of its death is among its last lines: a trace with what its libraries add to it."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Command:
    """What to run: a name for messages, the argument vector, its environment, its folder, a file for its output, and
    the open files that it inherits by number."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    inherited: tuple[int, ...] = ()


class Service:
    """One process that is to stay alive. It leads a session of its own, so Ctrl-C in the terminal does not reach it.

    On Linux it gets SIGTERM when the process that started it dies in whatever way; elsewhere it may outlive that.
    """

    def __init__(self, command: Command, now: Callable[[], float] = time.monotonic) -> None:
        self.command = command
        self._now = now
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._counter: Path | None = None
        self._kills = (0, 0)
        self._log_start = 0
        self._deaths = 0
        self._not_before = 0.0

    @property
    def pid(self) -> int | None:
        """Process id, or None where none runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def age(self) -> float:
        """Seconds since it was started last."""
        return self._now() - self._started

    def start(self) -> None:
        log = self.command.log
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                self.command.arguments,
                env=self.command.environment,
                cwd=self.command.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=self.command.inherited,
                preexec_fn=end_with_parent(),
            )
        self._started = self._now()
        self._counter = counter(self._process.pid)
        self._kills = (kills_for_memory(self._counter),) * 2

    def revive(self) -> str | None:
        """Start the process again if it has died and its pause is over; say so in one sentence, else None.

        Raises:
            PrefectFailed: it died `MAX_DEATHS` times in a row soon after its start.
        """
        if self.pid:
            # What was counted before the last look: in that one, this very death may be counted already.
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
        """Return what ended the process: a signal, or what it said last itself."""
        process = self._process
        if process and process.returncode and process.returncode < 0:
            # Whatever it had said before has not ended it.
            memory = kills_for_memory(self._counter) > self._kills[0] or in_kernel_log(process.pid)
            return f"{self.command.name} {by_signal(-process.returncode, memory)}"
        words = self.last_words()
        how = f"ended with exit code {process.returncode if process else None}"
        return f"{self.command.name} {how}" + (f": {words}" if words else "")

    def last_words(self) -> str:
        """Return the error that the process said last, in at most 300 characters; nothing if it did not end on one."""
        with self.command.log.open("rb") as stream:
            stream.seek(self._log_start)
            said = stream.read().decode(errors="replace").splitlines()
        lines = [line.strip() for line in said if line.strip()][-_LAST_LINES:]
        # What an exception says tells more than what was logged about it.
        raised = [line for line in lines if _EXCEPTION.match(line)]
        logged = [line for line in lines if "ERROR" in line or "error:" in line.lower()]
        return (raised or logged or [""])[-1][:300]

    def stop(self, seconds: float) -> None:
        """End the process and all of its session: politely, and after `seconds` by force."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        # What is left of the session, such as a grandchild that ignored its parent's end.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def end_with_parent() -> Callable[[], None] | None:
    """Return what has the kernel send SIGTERM to the new process when this one dies, where it can (Linux: prctl(2))."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
