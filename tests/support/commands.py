"""`idxflow`, and `prefect`, as their users call them, in a process of its own, without the seconds that imports take.

The process is a fork of one that has imported what a run imports (`preparation.py`), and reads Prefect's settings
again; all else is as with the installed command. Tests of starting, and of imports, start that one. Prefect's server,
and the flow runs of a worker, can be such forks, too (`tests.support.servers`, `tests.support.operated`).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import refusals
from tests.support.forkserver import Forked, ForkServer

ADDRESS = "IDXFLOW_TESTS_COMMANDS"
"""Where calls are taken, for the processes that share the tests among them."""


def listen() -> ForkServer | None:
    """Start the process that others are forked from, once for all that run tests; it imports at the first call."""
    if ADDRESS in os.environ:
        return None
    server = ForkServer(str(Path(__file__).with_name("forked_command.py")))
    os.environ[ADDRESS] = os.fsdecode(server.address.removeprefix(b"\0"))
    return server


def listening() -> bool:
    """Return whether there is a process to fork from: in tests, not in benchmarks."""
    return ADDRESS in os.environ


def flow_run_command() -> str:
    """Return what a worker may call in place of `python -m prefect.engine`: its flow run is such a fork (`calling`)."""
    return calling("flow run")


def worker_of_tests() -> str:
    """Return what pytest-xdist may call in place of Python, to run tests in such a fork."""
    return calling("tests")


def python() -> list[str]:
    """Return what may be called in place of Python by a test that waits for the end, with `-c` or `-m`.

    What is called only stands for a fork that does the work: if it is killed, that may live a moment longer, and if it
    is stopped, that goes on.
    """
    return shlex.split(calling("python"))


def calling(program: str) -> str:
    """Return a command that stands for a fork with a program of `forked_command.py`."""
    script, root = Path(__file__).with_name("calling.py"), Path(__file__).parents[2]
    return shlex.join([sys.executable, "-I", "-S", str(script), os.environ[ADDRESS], str(root), program])


class Command(Forked):
    """A call of `idxflow` that has been started; with the block, it ends at the latest."""

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str],
        cwd: Path | None = None,
        program: str = "idxflow",
        streams: Sequence[int] | None = None,
        user: int | None = None,
    ) -> None:
        environment = {**env, **refusals.environment()}
        called = {"program": program, "arguments": arguments, "environment": environment, "cwd": str(cwd or Path.cwd())}
        if user is not None:
            called["user"] = user
        super().__init__(b"\0" + os.fsencode(os.environ[ADDRESS]), called, streams)


def idxflow(
    *arguments: str,
    env: Mapping[str, str],
    cwd: Path | None = None,
    timeout: float = 240,
    program: str = "idxflow",
    user: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Call `idxflow` and wait for its end."""
    with Command(*arguments, env=env, cwd=cwd, program=program, user=user) as command:
        out, errors = command.communicate(timeout)
    return subprocess.CompletedProcess([program, *arguments], command.wait(), out, errors)


def prefect(*arguments: str, env: Mapping[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Call Prefect's own command and wait for its end."""
    return idxflow(*arguments, env=env, cwd=cwd, program="prefect")
