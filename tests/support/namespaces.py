"""Programs that mount file systems which nobody else sees."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def in_namespace(code: str, *arguments: str, alone: bool = True) -> subprocess.CompletedProcess:
    """Run Python code where it may mount file systems, and nobody else sees them; `alone`, it has no other packages."""
    python = [sys.executable, *(["-I", "-S", "-B"] if alone else [])]
    command = ["unshare", "--map-root-user", "--mount", *python, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def mount_point(folder: Path) -> Path:
    """Return a new folder to mount on; skip the test where that is not possible."""
    probe = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs user namespaces that may mount: unshare (util-linux), kernel.unprivileged_userns_clone=1")
    (folder / "mount").mkdir()
    return folder / "mount"
