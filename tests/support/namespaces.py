"""Programs that mount file systems which nobody else sees."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import idxflow

_NEW_USER, _NEW_MOUNTS, _PRIVATE = 0x10000000, 0x20000, 0x44000


def in_namespace(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python code, without other packages, where it may mount file systems, and nobody else sees them."""
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-I", "-S", "-B", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def forked_in_namespace(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python code there, in a process that has imported what a run imports."""
    code = f"from tests.support import namespaces\nnamespaces.enter()\n{code}"
    return idxflow("-c", code, *arguments, env=os.environ, program="python", timeout=120)


def enter() -> None:
    """Do for this process what `unshare --map-root-user --mount` does (unshare(2), user_namespaces(7))."""
    library, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    _check(library.unshare(_NEW_USER | _NEW_MOUNTS))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)
    _check(library.mount(b"none", b"/", None, _PRIVATE, None))


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount_point(folder: Path) -> Path:
    """Return a new folder to mount on; skip the test where that is not possible."""
    probe = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs user namespaces that may mount: unshare (util-linux), kernel.unprivileged_userns_clone=1")
    (folder / "mount").mkdir()
    return folder / "mount"
