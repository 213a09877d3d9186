"""Why a process that was to stay alive has ended, as `idxflow up` says it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from flows.service.deaths import by_signal, counter
from flows.service.processes import Command, Service
from tests.support.memory import GROUP_BYTES, control_group
from tests.support.operated import until

OLD = "print('sqlalchemy.exc.OperationalError: database is locked', flush=True)"


def started(folder: Path, program: str) -> Service:
    """Start a program that waits for a file `go` in its folder after its first line."""
    wait = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"
    arguments = (sys.executable, "-c", f"{OLD}\n{wait}\n{program}")
    service = Service(Command("server", arguments, os.environ, folder, folder / "log"))
    service.start()
    until(lambda: (folder / "log").read_text())
    return service


def cause_of_death(service: Service) -> str:
    """What is said, with a look every now and then while it is alive."""
    return until(service.revive)


def test_a_signal_is_named_and_no_old_line_of_the_log_blamed(tmp_path: Path):
    service = started(tmp_path, "")
    os.kill(service.pid, signal.SIGKILL)
    message = cause_of_death(service)
    assert message.startswith("the server was killed by SIGKILL; nothing says that memory ran out, so ")
    assert "database is locked" not in message


@pytest.mark.parametrize(
    ("number", "message"), [(signal.SIGSEGV, "was ended by SIGSEGV"), (signal.SIGRTMIN + 3, "was ended by signal 37")]
)
def test_other_signals_are_named_too(number: int, message: str):
    assert by_signal(number, memory=True) == message


def test_the_kernels_kill_for_memory_is_named_as_such(tmp_path: Path):
    service = started(tmp_path, f"held = b'x' * {3 * GROUP_BYTES}")
    group = control_group(service.pid)
    # It has been in another group when it was started.
    service._counter = counter(service.pid) if group else tmp_path / "memory.events"
    try:
        if group:
            (tmp_path / "go").touch()
        else:
            # Where control groups may not be made, this is how the kernel's kill would look.
            service._counter.write_text("oom_kill 1\n")
            os.kill(service.pid, signal.SIGKILL)
        assert "killed by SIGKILL: the kernel sent it because memory ran out" in cause_of_death(service)
    finally:
        if group:
            group.rmdir()


def test_an_error_at_the_end_is_the_reason_and_an_early_one_is_not(tmp_path: Path):
    (tmp_path / "go").touch()
    late = started(tmp_path, "raise ValueError('expected a port')")
    assert "ended with exit code 1: ValueError: expected a port" in cause_of_death(late)
    early = started(tmp_path, "print('INFO fine\\n' * 200, flush=True)\nraise SystemExit(3)")
    assert cause_of_death(early).startswith("the server ended with exit code 3; starting it again in ")
