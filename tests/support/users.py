"""Other users of this machine, whom tests that are run by root can be."""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path

_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 4, 8, 47, 2
_CAP_DAC_READ_SEARCH = 2
_CAPABILITIES_3 = 0x20080522


def become(user: int) -> None:
    """Have this process, and what it starts, be of another user for good; it may read what only root may, if root may.

    Otherwise it could not go on where Python, or this checkout, is in a folder that only root can enter.
    """
    if user == os.getuid():
        return
    _call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    # In some containers root has not got it.
    kept = _permitted() & 1 << _CAP_DAC_READ_SEARCH
    # linux/capability.h: the version and the process; then effective, permitted and inheritable, twice 32 bits.
    _call("capset", (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)(kept, kept, kept))
    if kept:
        _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_READ_SEARCH, 0, 0)
    # As for a process that this user has started: its files in /proc are its own.
    _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)
    # That of the environment may be another one now.
    tempfile.tempdir = None


def _permitted() -> int:
    """Return the capabilities that this process may have, a bit for each (proc(5))."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("CapPrm:")[2].split()[0], 16)


def _call(name: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}{arguments}")
