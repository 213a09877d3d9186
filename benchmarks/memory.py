"""The most memory that a process of a run holds at once, in GB: `python -m benchmarks.memory runs`."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks import subjects
from benchmarks.job import epochs, run_command
from benchmarks.subjects import Measured

ROWS = ("first run of MNIST", "unchanged run of MNIST")


def runs() -> Measured:
    """Run the same command twice; of each, return the peak of its largest process."""
    command = run_command(subjects.new_folder("store"), epochs())
    return Measured({row: _peak(command) for row in ROWS})


def _peak(command: list[str]) -> float:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"idxflow run ended with {process.returncode}")
    # Its own and that of all it has waited for; in KiB on Linux, getrusage(2).
    return usage.ru_maxrss * 1024 / 1e9


VARIANTS: subjects.Variants = {"runs": runs}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
