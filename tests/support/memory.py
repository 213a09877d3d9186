"""How much memory a process has, and may have."""

from __future__ import annotations

import resource
import tracemalloc
from collections.abc import Callable
from pathlib import Path

GROUP_BYTES = 100_000_000
"""What a process may take in a control group: more than an idle one needs, less than training does."""
CGROUPS = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
LIMITS = "memory.limit_in_bytes", "memory.max"


def peak(work: Callable[[], object]) -> int:
    """Return the most bytes that Python's and NumPy's objects take while `work` runs."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bytes_of_process(column: int, pid: int | str = "self") -> int:
    """Return what a process has: its address space (0), or what of it is in memory (1); Linux, proc(5)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[column]) * resource.getpagesize()


def control_group(pid: int) -> Path | None:
    """Put `pid` into a control group that may take `GROUP_BYTES` bytes more; None where that is not allowed."""
    for place, limit in zip(CGROUPS, LIMITS, strict=True):
        group = place / f"idxflow-tests-{pid}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for name, value in ((limit, GROUP_BYTES), ("cgroup.procs", pid)):
                # Only if it is there: elsewhere than in a control group it would become a file.
                with (group / name).open("r+") as stream:
                    stream.write(str(value))
            return group
        except OSError:
            group.rmdir()
    return None
