"""`idxflow`, and `prefect`, as their users call them, in a process of its own, without the seconds that imports take.

The process is a fork of one that has imported what a run imports (`tests.support.commandrun`), and reads Prefect's
settings again; all else is as with the installed command. Tests of starting, and of imports, start that one.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Self

from flows.service.processes import end_with_parent
from tests.support import commandrun, refusals

_SOCKET = "IDXFLOW_TESTS_COMMANDS"
"""Where calls are taken, for the processes that share the tests among them."""


def listen() -> subprocess.Popen[bytes] | None:
    """Start the process that others are forked of, once for all that run tests; it imports at the first call."""
    if _SOCKET in os.environ:
        return None
    os.environ[_SOCKET] = f"idxflow-tests-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(_address())
        listener.listen()
        return subprocess.Popen([sys.executable, commandrun.__file__], stdin=listener, preexec_fn=end_with_parent())


def _address() -> str:
    """Return a name that needs no file (abstract, unix(7))."""
    return f"\0{os.environ[_SOCKET]}"


class Command:
    """A call of `idxflow` that has been started; with the block, it ends at the latest."""

    def __init__(
        self, *arguments: str, env: Mapping[str, str], cwd: Path | None = None, program: str = "idxflow"
    ) -> None:
        self._code: int | None = None
        with ExitStack() as opened:
            self._out = opened.enter_context(tempfile.TemporaryFile())
            self._errors = opened.enter_context(tempfile.TemporaryFile())
            self._connection = opened.enter_context(socket.socket(socket.AF_UNIX))
            self._connection.connect(_address())
            # Without a buffer, what has not been read yet can be waited for.
            self._answers = opened.enter_context(self._connection.makefile("rb", buffering=0))
            environment = {**env, **refusals.environment()}
            called = {"program": program, "arguments": arguments, "environment": environment}
            self.pid = self._start({**called, "cwd": str(cwd or Path.cwd())})
            self._kept = opened.pop_all()

    def _start(self, called: Mapping[str, object]) -> int:
        request = f"{json.dumps(called)}\n".encode()
        with Path(os.devnull).open() as nothing:
            streams = [stream.fileno() for stream in (nothing, self._out, self._errors)]
            sent = socket.send_fds(self._connection, [request], streams)
        self._connection.sendall(request[sent:])
        return int(self._answers.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        self._kept.close()

    def poll(self) -> int | None:
        """Return the exit code (minus the signal that ended it), or None while it runs."""
        if self._code is None and select.select([self._connection], [], [], 0)[0]:
            self._code = int(self._answers.readline())
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code.

        Raises:
            TimeoutError: it has not ended within so many seconds; what it said, and where its threads are.
        """
        if self._code is None and not select.select([self._connection], [], [], timeout)[0]:
            self.send_signal(signal.SIGUSR2)
            # Until it has written them.
            time.sleep(1)
            raise TimeoutError(f"still running after {timeout} s; it said {self.said!r}\n{self.errors}")
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return what standard output and standard error have got."""
        self.wait(timeout)
        return self.said, self.errors

    @property
    def said(self) -> str:
        """What standard output has got so far."""
        return _content(self._out)

    @property
    def errors(self) -> str:
        """What standard error has got so far."""
        return _content(self._errors)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _content(file: IO[bytes]) -> str:
    # Without moving the place where the command writes on.
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


def idxflow(
    *arguments: str, env: Mapping[str, str], cwd: Path | None = None, timeout: float = 240, program: str = "idxflow"
) -> subprocess.CompletedProcess[str]:
    """Call `idxflow` and wait for its end."""
    with Command(*arguments, env=env, cwd=cwd, program=program) as command:
        out, errors = command.communicate(timeout)
    return subprocess.CompletedProcess([program, *arguments], command.wait(), out, errors)


def prefect(*arguments: str, env: Mapping[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Call Prefect's own command and wait for its end."""
    return idxflow(*arguments, env=env, cwd=cwd, program="prefect")
