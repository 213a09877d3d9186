"""Calls of `idxflow` and `prefect`, each in a fork of a process that has imported what takes seconds: TensorFlow etc.

    python tests/support/commandrun.py SOCKET

For each connection: a line of JSON with `program`, `arguments`, `environment` and `cwd`, and three descriptors to
become the standard streams, are answered with the process id, then, when the command has ended, its exit code. A
command whose caller is gone is killed. `tests.support.commands` is the other side.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

# Not the folder of this file: its modules have names of others'.
sys.path[0] = str(Path(__file__).resolve().parents[2])

LARGEST_REQUEST = 1 << 20
LATER = ("flows.retrain", "matplotlib.backends.backend_svg", "matplotlib.figure", "sklearn.metrics")
"""What a run imports when it needs it, Prefect with it."""
STEPS = ("decode", "validate", "normalize", "train", "evaluate", "confirm", "decide")
"""Those whose results depend on their source, which takes a quarter of a second to read."""
RUNS = ("run", "validate")
"""The commands that run a flow of Prefect, which they keep quiet."""


@cache
def load() -> None:
    """Import what a run of `idxflow` imports, as it does itself."""
    import yaml

    from expectations import check
    from flows.settings import relax_garbage_collection
    from storage.runtime import code_digests
    from tasks.model import network

    relax_garbage_collection()
    check.prepare()
    network.tensorflow()
    for step in STEPS:
        code_digests.digests(f"tasks.{step}")
    for name in LATER:
        import_module(name)
    # Prefect reads how it logs from a file of YAML, in every command: the parser in C takes a tenth of the time.
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc,assignment]
    # Collecting all of this again in every command would also copy it.
    gc.freeze()


class Commands:
    """Starts what callers ask for, and tells them how it ends."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._running: dict[int, tuple[int, socket.socket]] = {}
        """By the descriptors of the processes: their ids, and where their callers wait."""

    def serve(self) -> dict[str, Any]:
        """Serve for ever; return, in a process of its own, what a command is called with."""
        while True:
            callers = [connection for _, connection in self._running.values()]
            ready = select.select([self._listener, *self._running, *callers], [], [])[0]
            for end in list(self._running):
                self._attend(end, ready)
            if self._listener in ready and (request := self._accept()):
                return request

    def _attend(self, end: int, ready: list[Any]) -> None:
        process, connection = self._running[end]
        if end in ready:
            answer(connection, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
            connection.close()
            os.close(end)
            del self._running[end]
        elif connection in ready:
            # Its caller is gone.
            os.kill(process, signal.SIGKILL)

    def _accept(self) -> dict[str, Any] | None:
        """Start a command; return its request in the new process, and nothing in this one."""
        connection, _ = self._listener.accept()
        load()
        try:
            request, streams = called(connection)
        except EOFError:
            connection.close()
            return None
        process = os.fork()
        if process == 0:
            self._leave(connection)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            # A command that hangs is asked where (`Command.wait`).
            faulthandler.register(signal.SIGUSR2)
            return request
        for stream in streams:
            os.close(stream)
        self._running[os.pidfd_open(process)] = process, connection
        answer(connection, process)
        return None

    def _leave(self, connection: socket.socket) -> None:
        """Let go, in a new process, of all that is not its own."""
        end_with_server()
        for end, (_, other) in self._running.items():
            os.close(end)
            other.close()
        connection.close()
        self._listener.close()


def called(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
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


def answer(connection: socket.socket, number: int) -> None:
    """Send a number to a caller, who may be gone."""
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(f"{number}\n".encode())


def end_with_server() -> None:
    """Have this command end when the process that it was forked of does."""
    from flows.service.processes import end_with_parent

    if arrange := end_with_parent():
        arrange()


def become(request: dict[str, Any]) -> None:
    """Be the process that the caller would have started."""
    from tests.support import refusals

    os.environ.clear()
    os.environ.update(request["environment"])
    refusals.note_if_asked()
    os.chdir(request["cwd"])
    sys.argv = [request["program"], *request["arguments"]]
    # As a terminal starts it: a shell's background has Ctrl-C ignored, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    read_settings_again()


def read_settings_again() -> None:
    """Have Prefect read its settings, as it does when it is imported."""
    from prefect.context import refresh_global_settings_context
    from prefect.logging import configuration

    from flows.settings import LOGGERS, silence_prefect

    if sys.argv[0] == "idxflow" and sys.argv[1:2] and sys.argv[1] in RUNS:
        silence_prefect()
    refresh_global_settings_context()
    for name in LOGGERS:
        logging.getLogger(name).handlers.clear()
    configuration.setup_logging(incremental=False)


def carry_out() -> NoReturn:
    """Do what the program does."""
    if sys.argv[0] == "prefect":
        # Not before: it looks at the environment when it is imported.
        from prefect.cli import app

        sys.exit(app())
    from flows.commands.cli import main

    main()


def end(code: int | None) -> NoReturn:
    """End as Python does, but leave what was imported as it is: to take it apart would copy all of it."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    # The listening socket, as standard input.
    with socket.socket(fileno=os.dup(0)) as listening:
        become(Commands(listening).serve())
    try:
        carry_out()
    except SystemExit as ended:
        end(ended.code)
