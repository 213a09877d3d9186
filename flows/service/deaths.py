"""The cause of a process's death, as far as the kernel reports it."""

from __future__ import annotations

import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_COUNTERS = (("memory", "memory", "memory.oom_control"), ("", "", "memory.events"))
"""For each version of control groups: the controller, its mount point, and the file with the counter."""
_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_KERNEL_LOG_SECONDS = 5


def counter(pid: int) -> Path | None:
    """Return the file in which the kernel counts kills in a process's control group, or None.

    See https://docs.kernel.org/admin-guide/cgroup-v2.html, `memory.events`; version 1 has `memory.oom_control`.
    """
    with suppress(OSError):
        groups = [line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
        for controller, mount, name in _COUNTERS:
            for path in (path for names, path in groups if controller in names.split(",")):
                # In a container the group's own folder may be the root of the mount.
                for folder in (_CGROUPS / mount / path.lstrip("/"), _CGROUPS / mount):
                    if (folder / name).is_file():
                        return folder / name
    return None


def kills_for_memory(counter: Path | None) -> int:
    """Return the number of processes that the kernel killed there for lack of memory; 0 if unknown."""
    with suppress(OSError):
        match = _KILLS.search(counter.read_text()) if counter else None
        return int(match[1]) if match else 0
    return 0


def by_signal(number: int, memory: bool) -> str:
    """Return a phrase saying that a signal ended a process, and its likely sender.

    Args:
        number: the signal's number.
        memory: whether the kernel killed a process for lack of memory at that time.
    """
    numbers = {signal.value for signal in signal.Signals}
    name = signal.Signals(number).name if number in numbers else f"signal {number}"
    if number != signal.SIGKILL:
        return f"was ended by {name}"
    if memory:
        return f"was killed by {name}: the kernel sent it because memory ran out"
    return f"was killed by {name}; nothing says that memory ran out, so a user or a program sent it"


def in_kernel_log(pid: int) -> bool:
    """Return whether the kernel's log, if readable, says that it killed the process for lack of memory."""
    with suppress(OSError, subprocess.SubprocessError):
        process = subprocess.run(["dmesg"], capture_output=True, text=True, timeout=_KERNEL_LOG_SECONDS, check=False)
        return f"Killed process {pid} " in process.stdout
    return False
