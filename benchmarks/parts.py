"""What parts do that workers are measured with: nothing, or sleep. Workers import this module by its name."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from storage.runtime import cancellation

_MEAN_SECONDS = 0.05
_SPREAD = 0.4
"""Standard deviation of the logarithm of the sizes."""
_STRAGGLES, _TIMES = 0.005, 20
"""How probable it is that a part takes so many times as long."""
_LOST = 0.01
_KILLED = 4
"""So many of the lost tries end with their worker."""


@dataclass(frozen=True)
class Part:
    """What one part does instead of computing."""

    number: int
    seconds: float
    lost: Literal["", "stopped", "killed"] = ""
    """How its first try ends, if not well."""
    folder: str = ""
    """Where the first try leaves a mark."""


def nothing(part: int) -> int:
    """Be a part that costs nothing."""
    return part


def sleep(part: Part) -> int:
    """Be a part of the simulation."""
    time.sleep(part.seconds)
    if part.lost and _is_first(part):
        if part.lost == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        # As a part that notices that its worker is being shut down.
        raise cancellation.Cancelled
    return part.number


def _is_first(part: Part) -> bool:
    try:
        Path(part.folder, str(part.number)).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def parts_of(count: int, folder: str) -> list[Part]:
    """Return the parts of a simulation, the same each time: seconds that are log-normal, and what goes wrong."""
    chance = random.Random(1)
    seconds = [
        _MEAN_SECONDS * chance.lognormvariate(0, _SPREAD) * (_TIMES if chance.random() < _STRAGGLES else 1)
        for _ in range(count)
    ]
    lost = chance.sample(range(count), max(1, int(_LOST * count)))
    killed = set(lost[:_KILLED])
    stopped = set(lost[_KILLED:])
    return [
        Part(n, s, "killed" if n in killed else "stopped" if n in stopped else "", folder)
        for n, s in enumerate(seconds)
    ]
