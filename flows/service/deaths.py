"""What killed a process, as far as the kernel tells."""

from __future__ import annotations

import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_COUNTERS = (("memory", "memory", "memory.oom_control"), ("", "", "memory.events"))
"""Of each version of control groups: controller, where it is mounted, and the file that counts."""
_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_KERNEL_LOG_SECONDS = 5


def counter(pid: int) -> Path | None:
    """Return the file in which the kernel counts whom it killed of a process's control group; None without one.

    See https://docs.kernel.org/admin-guide/cgroup-v2.html, `memory.events`; version 1 has `memory.oom_control`.
    """
    with suppress(OSError):
        groups = [line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
        for controller, mount, name in _COUNTERS:
            for path in (path for names, path in groups if controller in names.split(",")):
                # In a container the group's own folder may be the root of what is mounted.
                for folder in (_CGROUPS / mount / path.lstrip("/"), _CGROUPS / mount):
                    if (folder / name).is_file():
                        return folder / name
    return None


def kills_for_memory(counter: Path | None) -> int:
    """Return how many processes the kernel has killed there for lack of memory; 0 if unknown."""
    with suppress(OSError):
        found = _KILLS.search(counter.read_text()) if counter else None
        return int(found[1]) if found else 0
    return 0


def by_signal(number: int, memory: bool) -> str:
    """Say that a signal ended a process, and what is known about who sent it.

    Args:
        number: of the signal.
        memory: whether the kernel has ended a process for lack of memory at that time.
    """
    known = {signal.value for signal in signal.Signals}
    name = signal.Signals(number).name if number in known else f"signal {number}"
    if number != signal.SIGKILL:
        return f"was ended by {name}"
    if memory:
        return f"was killed by {name}: the kernel sent it because memory ran out"
    return f"was killed by {name}; nothing says that memory ran out, so a user or a program sent it"


def in_kernel_log(pid: int) -> bool:
    """Return whether the kernel's log, where it may be read, says that it killed a process for lack of memory."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["dmesg"], capture_output=True, text=True, timeout=_KERNEL_LOG_SECONDS, check=False)
        return f"Killed process {pid} " in done.stdout
    return False
