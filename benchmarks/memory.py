"""The most memory that a run of MNIST holds at once, in GB: `python -m benchmarks.memory runs`.

Its memory includes the pages of libraries that it maps. How many those are depends on how their files came into the
system's cache: just after an installation, a run counts 0.1 GB more than after the machine has started. So they are
read anew from the disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchmarks import subjects
from benchmarks.job import epochs, run_command
from benchmarks.subjects import Measured
from flows.service.fork import NAME

SERVER = "Prefect's server, of each"
ROWS = ("first run of MNIST", "unchanged run of MNIST", SERVER)
_LOOK_SECONDS = 0.02


def runs() -> Measured:
    """Run the same command twice; return the peak of each, without other processes, and of the Prefect server."""
    command = run_command(subjects.new_folder("store"), epochs())
    _forget_libraries()
    peaks = [_peaks(command) for _ in range(2)]
    own = {row: own for row, (own, _) in zip(ROWS, peaks, strict=False)}
    return Measured(own | {SERVER: max(server for _, server in peaks)})


def _forget_libraries() -> None:
    """Have the system forget the files of libraries that nobody has mapped: Linux, posix_fadvise(2)."""
    for path in Path(np.__file__).parents[1].rglob("*.so*"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _peaks(command: list[str]) -> tuple[float, float]:
    """Return the peaks of a command and of the Prefect server that it starts."""
    own = server = 0
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    while process.poll() is None:
        with suppress(OSError):
            own = max(own, _peak(process.pid))
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            server = max([server, *(_peak(int(child)) for child in children if _name(int(child)) == NAME)])
        time.sleep(_LOOK_SECONDS)
    if process.returncode:
        sys.exit(f"idxflow run ended with {process.returncode}")
    return own / 1e9, server / 1e9


def _name(process: int) -> str:
    return Path(f"/proc/{process}/comm").read_text().strip()


def _peak(process: int) -> int:
    """Return the most memory that a process has held so far, in bytes: Linux, proc_pid_status(5)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    # One that has just ended has no memory.
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


VARIANTS: subjects.Variants = {"runs": runs}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
