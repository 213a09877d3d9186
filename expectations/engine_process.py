"""A process that imports Great Expectations and evaluates suites, while this one imports and decodes.

    python -m expectations.engine_process [descriptor of a socket] < requests > answers

A run then waits less for that import, and trains without the library in its memory. A request is a line of JSON with
the columns of objects and the number of bytes that follow: a NumPy archive with the columns of numbers. The answer is a
line of JSON. The process ends with its standard input, so at the latest with the process that started it.

Other processes of this machine, which are workers of the run, connect to the socket. Each connection gets a fork of the
process that answers it until it is closed: several workers then wait for one import, and their memory holds one copy.
"""

from __future__ import annotations

import gc
import io
import json
import os
import secrets
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import asdict
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

import numpy as np

from expectations import engine
from expectations.engine import Result
from expectations.suites import Expectation, Suite
from expectations.summary import Table

_ROOT = Path(__file__).resolve().parent.parent

_PEER = struct.Struct("3i")
"""Process, user and group at the other end of a socket (unix(7), SO_PEERCRED)."""
_BACKLOG = 128

_SELDOM = ("altair", "boto3", "scipy.stats")
"""What Great Expectations imports for expectations and sources of data that no suite has: a third of its import."""

_turn = threading.Lock()
_process: subprocess.Popen[bytes] | None = None
_address = ""


class _Line(NamedTuple):
    """What requests go into, and answers come out of."""

    requests: IO[bytes]
    answers: IO[bytes]


_line: ContextVar[_Line | None] = ContextVar("idxflow_engine", default=None)
"""To the process of another one."""


def begin() -> None:
    """Start the process, unless there is one, or this process has imported Great Expectations already."""
    global _process, _address
    with _turn:
        if _process is None and not engine.is_loaded():
            listener, name = _listening()
            passed = [listener.fileno()] if listener else []
            with listener or nullcontext():
                _process = subprocess.Popen(
                    [sys.executable, "-m", __name__, *map(str, passed)],
                    cwd=_ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    pass_fds=passed,
                    # Ctrl-C is for the run.
                    start_new_session=True,
                )
            _address = name


def end() -> None:
    """End the process; what is evaluated later, this one evaluates itself."""
    global _process, _address
    with _turn:
        if _process:
            _process.kill()
            _process.communicate()
            _process, _address = None, ""


def address() -> str:
    """Return what other processes of this machine reach the process by; empty if they cannot."""
    return _address


def _listening() -> tuple[socket.socket | None, str]:
    """Return a socket that has a name but no file, which would outlive a run that is killed; only Linux has such."""
    if sys.platform != "linux":
        return None, ""
    name = f"idxflow-engine-{secrets.token_hex(16)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0{name}")
    listener.listen(_BACKLOG)
    return listener, name


@contextmanager
def shared(name: str) -> Iterator[None]:
    """Have suites be evaluated by the process with the address `name` in the block, if it can be reached.

    Not if this process evaluates suites already.
    """
    connection = None if _process or engine.is_loaded() or not name else _connected(name)
    if connection is None:
        yield
        return
    with connection, _line_of(connection) as line:
        token = _line.set(line)
        try:
            yield
        finally:
            _line.reset(token)


def _connected(name: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(f"\0{name}")
    except OSError:
        # On another machine, or it has ended.
        connection.close()
        return None
    if _is_own(connection):
        return connection
    connection.close()
    return None


@contextmanager
def _line_of(connection: socket.socket) -> Iterator[_Line]:
    with connection.makefile("rb") as answers:
        requests = connection.makefile("wb")
        try:
            yield _Line(requests, answers)
        finally:
            # It may have part of a request left that nobody will read.
            with suppress(OSError):
                requests.close()


def _is_own(connection: socket.socket) -> bool:
    """Return whether a process of the same user is at the other end: the names of sockets are not secret."""
    _, user, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return bool(user == os.getuid())


def evaluate(suite: Suite, table: Table) -> dict[int, Result]:
    """Return the result of each expectation by its index in the suite, from the process if there is one."""
    if line := _line.get():
        answer = _answer(line, suite, table)
    else:
        with _turn:
            answer = _answer(_Line(_process.stdin, _process.stdout), suite, table) if _process else None  # type: ignore[arg-type]
    return engine.evaluate(suite, table) if answer is None else answer


def _answer(line: _Line, suite: Suite, table: Table) -> dict[int, Result] | None:
    """Return the answer of the process; None if it has ended, as when there is too little memory for both."""
    try:
        _send(line.requests, suite, table)
        answer = line.answers.readline()
    except (OSError, ValueError):
        return None
    return {int(number): Result(**values) for number, values in json.loads(answer).items()} if answer else None


def _send(stream: IO[bytes], suite: Suite, table: Table) -> None:
    numbers, others = {}, {}
    for name, values in table.items():
        if values.dtype == object:
            others[name] = values.tolist()
        else:
            numbers[name] = values
    archive = io.BytesIO()
    np.savez(archive, allow_pickle=False, **numbers)
    request = {"suite": asdict(suite), "names": [*table], "others": others, "bytes": archive.getbuffer().nbytes}
    stream.write(json.dumps(request).encode() + b"\n")
    stream.write(archive.getbuffer())
    stream.flush()


def main() -> None:
    """Answer requests until standard input ends."""
    # Nothing that a library prints may come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # The import leaves no garbage. Each fork would look through all of it once.
    gc.disable()
    sys.meta_path.insert(0, _WhenUsed())
    engine.prepare()
    gc.freeze()
    gc.enable()
    own = _Line(sys.stdin.buffer, answers)
    if not sys.argv[1:]:
        _answer_all(own)
        return
    # Forks are not waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as listener, selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        is_open = True
        while is_open:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    _fork_for(listener.accept()[0], (listener, *own))
                else:
                    is_open = _answer_one(own)


class _WhenUsed(MetaPathFinder):
    """Finds what is seldom used, and has it loaded when its first attribute is asked for."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path, target) if name in _SELDOM else None
        if found and found.loader:
            found.loader = LazyLoader(found.loader)
        return found


def _fork_for(connection: socket.socket, others: Iterable[IO[bytes] | socket.socket]) -> None:
    """Have a fork of this process answer a connection until it is closed, and let go of all others."""
    with connection:
        if not _is_own(connection) or os.fork():
            return
        try:
            for other in others:
                other.close()
            with connection.makefile("rb") as requests, connection.makefile("wb") as answers:
                _answer_all(_Line(requests, answers))
        finally:
            os._exit(0)


def _answer_all(line: _Line) -> None:
    while _answer_one(line):
        pass


def _answer_one(line: _Line) -> bool:
    """Answer a request; return whether there was one."""
    text = line.requests.readline()
    if not text:
        return False
    request = json.loads(text)
    table = _table(request, line.requests.read(request["bytes"]))
    results = engine.evaluate(_suite(request["suite"]), table)
    line.answers.write(json.dumps({number: asdict(result) for number, result in results.items()}).encode() + b"\n")
    line.answers.flush()
    return True


def _suite(values: dict[str, Any]) -> Suite:
    expectations = tuple(Expectation(**each) for each in values.pop("expectations"))
    return Suite(expectations=expectations, **values)


def _table(request: dict[str, Any], archive: bytes) -> Table:
    with np.load(io.BytesIO(archive), allow_pickle=False) as numbers:
        columns = {name: numbers[name] for name in numbers.files}
    for name, values in request["others"].items():
        # Elements may be lists, of which `np.array` would make another dimension.
        columns[name] = np.empty(len(values), object)
        columns[name][:] = values
    return {name: columns[name] for name in request["names"]}


if __name__ == "__main__":
    main()
