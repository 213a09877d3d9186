"""How much memory a process has."""

from __future__ import annotations

import resource
from pathlib import Path


def bytes_of_process(column: int, pid: int | str = "self") -> int:
    """Return what a process has: its address space (0), or what of it is in memory (1); Linux, proc(5)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[column]) * resource.getpagesize()
