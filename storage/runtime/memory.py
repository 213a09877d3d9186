"""What a process does with memory that it no longer needs."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress


def give_back() -> None:
    """Give memory that was freed back to the system.

    glibc keeps what is free between blocks that are in use, so a process that takes and frees large blocks again and
    again, such as a training on windows of rows, would grow for hours. Other C libraries do not have `malloc_trim`.
    Arrow has an allocator of its own, which keeps what is free, too.
    """
    if arrow := sys.modules.get("pyarrow"):
        arrow.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
