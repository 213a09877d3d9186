"""What the system refuses a process, a thread or room for a library, is said in a sentence."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import shortage

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = """
import resource
from storage.errors import shortage
import numpy
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    import tensorflow
except ImportError as error:
    print(shortage(error))
"""
THREADS = """
import resource, threading
from storage.errors import shortage
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
threading.stack_size(1 << 29)
try:
    for _ in range(9):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
except RuntimeError as error:
    print(shortage(error), flush=True)
import os
os._exit(0)
"""
MEMORY = """
import resource
from storage.errors import shortage
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    bytes(1 << 31)
except MemoryError as error:
    print(shortage(error))
"""

FILES = """
import resource, sys
from pathlib import Path
from flows.commands.cli import main
Path("store/tiny/ledger/decisions").mkdir(parents=True)
Path("store/tiny/ledger/decisions/00000001-x.json").write_text("{}")
sys.stderr = sys.stdout
import flows.commands.gc_command, storage.retention
unused = open("/dev/null")
resource.setrlimit(resource.RLIMIT_NOFILE, (unused.fileno(),) * 2)
main(["registry", "history", "tiny", "--store", "store"])
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (LIBRARY, "expected memory to load a library; "),
        (THREADS, "expected to start a thread or a "),
        (MEMORY, "expected memory to continue; "),
        (FILES, "idxflow: expected to open another file; "),
    ],
)
def test_the_error_names_what_to_raise(tmp_path: Path, code: str, message: str):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.stdout.startswith(message), result.stderr
    assert "then run again" in result.stdout


def test_other_errors_are_none():
    assert shortage(ImportError("No module named 'x'")) is None
    assert shortage(RuntimeError("x")) is None
    assert shortage(FileNotFoundError(errno.ENOENT, "x")) is None
    assert "expected memory" in (shortage(OSError(errno.ENOMEM, "x")) or "")
