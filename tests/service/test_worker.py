"""The worker of `idxflow up` ends with it, even if it never gets round to stopping."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.operated import until
from tests.support.servers import ROOT

STUCK = """
import os, signal
from flows.service import worker
signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker.end_with(os.getppid(), 0.1)
print(os.getpid(), flush=True)
while True: pass
"""
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    """Return whether it runs; one that has ended may still wait for its new parent to notice."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_one_that_does_not_stop_is_killed_after_its_parent_has_died():
    command = [sys.executable, "-c", PARENT, STUCK]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    until(lambda: not is_running(pid))
