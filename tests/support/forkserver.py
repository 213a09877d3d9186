"""Processes that are forked from one that has loaded what takes seconds.

    python tests/support/forkserver.py SCRIPT < a listening socket

The script has a function `call(request)`, which each new process calls and whose result is its exit code, and perhaps
`load()`, which is called once, before the first fork. A connection brings a request, as a line of JSON, and three
descriptors to become the standard streams; it is answered with the process id and, when the process has ended, with
its exit code. A process whose caller is gone is killed. `ForkServer` and `Forked` are the callers' side.

It imports the standard library only: all else that is in a process, its script has put there.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, NoReturn, Self

ROOT = Path(__file__).resolve().parents[2]
LARGEST_REQUEST = 1 << 20
_PR_SET_PDEATHSIG = 1
_MADV_COLLAPSE = 25
_LARGE = 1 << 21


class ForkServer:
    """A server for `script`, with these options of Python; it ends with the block, and with this process."""

    def __init__(self, script: str, *options: str, env: Mapping[str, str] | None = None) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            # The kernel chooses an abstract name, which needs no file (unix(7)).
            listener.bind("")
            listener.listen()
            self.address: bytes = listener.getsockname()
            # What libraries print when they are imported is nobody's.
            self._process = subprocess.Popen(
                [sys.executable, *options, __file__, script], stdin=listener, stdout=subprocess.DEVNULL, env=env
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server, and with it all that it has forked."""
        self._process.kill()
        self._process.wait()


class Forked:
    """A process of the server at an address; with the block, it ends at the latest."""

    def __init__(self, address: bytes, request: Mapping[str, object], streams: Sequence[int] | None = None) -> None:
        """Start it; `streams` are the descriptors of its standard streams, if its output is not to be read here."""
        self._code: int | None = None
        with ExitStack() as opened:
            self._out = opened.enter_context(tempfile.TemporaryFile())
            self._errors = opened.enter_context(tempfile.TemporaryFile())
            self._connection = opened.enter_context(socket.socket(socket.AF_UNIX))
            self._connection.connect(address)
            # Without a buffer, what has not been read yet can be waited for.
            self._answers = opened.enter_context(self._connection.makefile("rb", buffering=0))
            nothing = opened.enter_context(Path(os.devnull).open())
            own = [stream.fileno() for stream in (nothing, self._out, self._errors)]
            self.pid = self._start(request, streams or own)
            self._resources = opened.pop_all()

    def _start(self, request: Mapping[str, object], streams: Sequence[int]) -> int:
        line = f"{json.dumps(request)}\n".encode()
        sent = socket.send_fds(self._connection, [line], streams)
        self._connection.sendall(line[sent:])
        return self._answer()

    def _answer(self) -> int:
        line = self._answers.readline()
        assert line, "the fork server has ended: see what it wrote to standard error"
        return int(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        self._resources.close()

    def poll(self) -> int | None:
        """Return the exit code (minus the signal that ended it), or None while it runs."""
        if self._code is None and select.select([self._connection], [], [], 0)[0]:
            self._code = self._answer()
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
            raise TimeoutError(f"still running after {timeout} s; it said {self.output!r}\n{self.errors}")
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return what standard output and standard error have got."""
        self.wait(timeout)
        return self.output, self.errors

    @property
    def output(self) -> str:
        """What standard output has got so far."""
        return _content(self._out)

    @property
    def errors(self) -> str:
        """What standard error has got so far."""
        return _content(self._errors)

    def send_signal(self, number: int) -> None:
        # It may have ended just now.
        with suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _content(file: IO[bytes]) -> str:
    # Without moving the place where the process writes on.
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


class _Server:
    """Forks for each request, and tells the callers how their processes end."""

    def __init__(self, listener: socket.socket, load: Callable[[], object]) -> None:
        self._listener = listener
        self._load: Callable[[], object] | None = load
        self._running: dict[int, tuple[int, socket.socket]] = {}
        """By the descriptors of the processes: their ids, and where their callers wait."""

    def serve(self) -> dict[str, Any]:
        """Serve for ever; return, in a process of its own, what is asked for."""
        while True:
            callers = [connection for _, connection in self._running.values()]
            ready = select.select([self._listener, *self._running, *callers], [], [])[0]
            for end in list(self._running):
                self._attend(end, ready)
            if self._listener in ready and (request := self._accept()) is not None:
                return request

    def _attend(self, end: int, ready: list[Any]) -> None:
        process, connection = self._running[end]
        if end in ready:
            _send(connection, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
            connection.close()
            os.close(end)
            del self._running[end]
        elif connection in ready:
            # Its caller is gone.
            os.kill(process, signal.SIGKILL)

    def _accept(self) -> dict[str, Any] | None:
        """Start a process; return its request there, and nothing here."""
        connection, _ = self._listener.accept()
        if self._load:
            self._load()
            _use_large_pages()
            self._load = None
        try:
            request, streams = _received(connection)
        except EOFError:
            connection.close()
            return None
        process = os.fork()
        if process == 0:
            self._leave(connection, streams)
            return request
        for stream in streams:
            os.close(stream)
        self._running[os.pidfd_open(process)] = process, connection
        _send(connection, process)
        return None

    def _leave(self, connection: socket.socket, streams: list[int]) -> None:
        """Let go, in a new process, of all that is not its own."""
        end_with_parent()
        for end, (_, running) in self._running.items():
            os.close(end)
            running.close()
        connection.close()
        self._listener.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        # One that hangs is asked where (`Forked.wait`).
        faulthandler.register(signal.SIGUSR2)


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return a request, and the descriptors of its standard streams.

    Raises:
        EOFError: the caller is gone before it has sent all of it.
    """
    data, streams, _, _ = socket.recv_fds(connection, LARGEST_REQUEST, 3)
    while not data.endswith(b"\n"):
        if not (more := connection.recv(LARGEST_REQUEST)):
            raise EOFError
        data += more
    return json.loads(data), list(streams)


def _send(connection: socket.socket, number: int) -> None:
    """Send a number to a caller, who may be gone."""
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(f"{number}\n".encode())


def _use_large_pages() -> None:
    """Have the kernel keep the memory of this process in pages of 2 MB, where it can (Linux 6.1: madvise(2)).

    A fork gets a copy of the table of pages, which takes the system 20 ms for a gigabyte in pages of 4 kB.
    """
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, rights, *_, inode = line.split()[:5]
        start, end = (int(address, 16) for address in place.split("-"))
        if rights == "rw-p" and inode == "0":
            # Of memory that nothing was written to yet, there is nothing to keep: the kernel refuses, and goes on.
            for page in range(-(-start // _LARGE) * _LARGE, end // _LARGE * _LARGE, _LARGE):
                advise(page, _LARGE, _MADV_COLLAPSE)


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, in whatever way (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(code: int | None) -> NoReturn:
    """End as Python does, but leave what was imported as it is: to take it apart would copy all of it."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code or 0)


def _main(script: str) -> NoReturn:
    end_with_parent()
    # Not the folder of this file: its modules have names of others'.
    sys.path[:] = [str(ROOT), *(path for path in sys.path if path != str(Path(__file__).parent))]
    served = runpy.run_path(script)
    with socket.socket(fileno=os.dup(0)) as listener:
        request = _Server(listener, served.get("load", lambda: None)).serve()
    try:
        code = served["call"](request)
    except SystemExit as ended:
        code = ended.code
    _end(code)


if __name__ == "__main__":
    _main(*sys.argv[1:])
