"""A process that is a fork of this one instead of a new program: it need not import again what this one has.

A fork has only the thread that made it, and the locks of the others as they were. So it gets its own streams, signal
handlers and log handlers, and never returns to what this process was doing.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from flows.settings import LOGGERS

NAME = "idxflow-server"
"""What `ps -o comm` shows; the arguments are those of the process that it was forked from."""
_POLL_SECONDS = 0.01
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_NAME = 15


class Fork:
    """A process that makes `calls` in place of a program; like `subprocess.Popen` in what `Service` uses of it."""

    def __init__(
        self,
        calls: Iterable[Callable[[], object]],
        environment: Mapping[str, str],
        folder: Path,
        output: int,
        inherited: Iterable[int],
    ) -> None:
        self.returncode: int | None = None
        with warnings.catch_warnings():
            # Python 3.12 warns if there are other threads, as that of a spinner on a terminal.
            warnings.simplefilter("ignore", DeprecationWarning)
            # Until it has handlers of its own, the new process would do what this one does on a signal.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
            try:
                self.pid = os.fork()
                if not self.pid:
                    _end(_code(calls, environment, folder, output, inherited))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> int | None:
        """Return the exit code (minus the signal that ended it), or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended within `timeout` seconds.
        """
        deadline = time.monotonic() + (timeout or 0)
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(NAME, timeout)
            time.sleep(_POLL_SECONDS)
        return code

    def terminate(self) -> None:
        """Send SIGTERM, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def show_as(name: str) -> None:
    """Have `ps -o comm` show this process under another name (Linux: prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())


def _code(
    calls: Iterable[Callable[[], object]],
    environment: Mapping[str, str],
    folder: Path,
    output: int,
    inherited: Iterable[int],
) -> int:
    """Make `calls` in this process, a new one, and return its exit code."""
    try:
        _become_own(environment, folder, output, inherited)
        for call in calls:
            call()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _become_own(environment: Mapping[str, str], folder: Path, output: int, inherited: Iterable[int]) -> None:
    """Let go of all that belongs to the process that this one was forked from."""
    os.setsid()
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, usual)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    _open_streams(output)
    _close_others(inherited)
    for name in LOGGERS:
        logging.getLogger(name).handlers.clear()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    show_as(NAME)


def _open_streams(output: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, source in enumerate((nothing, output, output)):
        os.dup2(source, number)
    # Not the objects of before: another thread may have held their locks.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (
        open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        for number in (1, 2)
    )


def _close_others(inherited: Iterable[int]) -> None:
    """Close what is open but the standard streams and `inherited`: a lock is held until nobody has its file open."""
    start = 3
    for descriptor in sorted(inherited):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def _end(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
