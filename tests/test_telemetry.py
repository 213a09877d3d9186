"""No command sends usage data, nor says that it does: in a terminal, importing Prefect is enough for that."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.servers import BIN


@pytest.mark.parametrize("words", [["status"], ["doctor"]], ids=" ".join)
def test_a_command_in_a_terminal_keeps_to_itself(words: list[str], tmp_path: Path):
    # As of a new user: Prefect asks CI and whoever says so not to be tracked.
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TERM": "xterm"}
    ours, theirs = pty.openpty()
    command = [BIN / "idxflow", *words, "--store", str(tmp_path / "store")]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while block := os.read(ours, 1 << 16):
            said += block
    except OSError:
        # The last process has closed the terminal.
        pass
    os.close(ours)
    process.wait()
    assert said
    assert b"usage data" not in said
    assert not (tmp_path / ".prefect" / ".sdk_telemetry").exists()
