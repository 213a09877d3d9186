"""Memory that was freed goes back to the system, so that a long training does not grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import numpy as np
from storage.runtime import memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

# From now on, glibc does not ask the system for blocks of this size.
np.ones(16 << 20, np.uint8)
before = resident()
freed = np.ones(15 << 20, np.uint8)
needed = np.ones(100_000, np.uint8)
del freed
memory.give_back()
print((resident() - before) >> 20)
"""


def test_what_was_freed_goes_back_to_the_system() -> None:
    """Also if something that is still needed lies after it."""
    found = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    assert int(found.stdout) < 2
