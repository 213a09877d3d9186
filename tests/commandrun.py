"""Calls of `idxflow` and `prefect`, each in a fork of a process that has imported what takes seconds: TensorFlow etc.

    python tests/commandrun.py SOCKET

For each connection: a line of JSON with `program`, `arguments`, `environment` and `cwd`, and three descriptors to
become the standard streams, are answered with the process id, then, when the command has ended, its exit code. A
command whose caller is gone is killed. `tests.commands` is the other side.
"""

from __future__ import annotations

import atexit
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
sys.path[0] = str(Path(__file__).resolve().parent.parent)

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
    from expectations import check
    from storage import source
    from tasks import network

    check.prepare()
    network.tensorflow()
    for step in STEPS:
        source.digests(f"tasks.{step}")
    for name in LATER:
        import_module(name)
    # Collecting all of this again in every command would also copy it.
    gc.freeze()


def serve(listener: socket.socket) -> dict[str, Any]:
    """Accept connections for ever; return, in a process of its own, what a command is called with."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        load()
        if os.fork() == 0:
            listener.close()
            return attend(connection)
        connection.close()


def attend(connection: socket.socket) -> dict[str, Any]:
    """Start the command in a child, where this returns; tell the caller how it ends, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, streams, _, _ = socket.recv_fds(connection, LARGEST_REQUEST, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(LARGEST_REQUEST)
    process = os.fork()
    if process == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        request: dict[str, Any] = json.loads(data)
        return request
    for stream in streams:
        os.close(stream)
    end = os.pidfd_open(process)
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(f"{process}\n".encode())
        if end not in select.select([end, connection], [], [])[0]:
            os.kill(process, signal.SIGKILL)
        connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}\n".encode())
    os._exit(0)


def become(request: dict[str, Any]) -> None:
    """Be the process that the caller would have started."""
    from tests import refusals

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

    from flows.settings import LOGGERS, be_quiet

    if sys.argv[0] == "idxflow" and sys.argv[1:2] and sys.argv[1] in RUNS:
        be_quiet()
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
    from flows.cli import main

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
        become(serve(listening))
    try:
        carry_out()
    except SystemExit as ended:
        end(ended.code)
