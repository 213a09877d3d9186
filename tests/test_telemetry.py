"""No command sends usage data, nor says that it does: in a terminal, importing Prefect is enough for that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import write_tiny
from tests.faultserver import FaultServer
from tests.servers import BIN
from tests.terminal import typed, user

COMMANDS = {
    "status": 0,
    "doctor": 0,
    # With a server of its own.
    "validate --dataset-file FOLDER/tiny.toml": 0,
    # Prefect is imported before it is seen that something else has the port, or that there is no server.
    "up --port PORT": 1,
    "watch FOLDER/tiny-source --once --dataset-file FOLDER/tiny.toml": 1,
}


@pytest.mark.flow
@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_in_a_terminal_keeps_to_itself(words: str, tmp_path: Path):
    write_tiny(tmp_path)
    with FaultServer({}) as taken:
        said = words.replace("PORT", taken.host.partition(":")[2]).replace("FOLDER", str(tmp_path))
        command = [BIN / "idxflow", *said.split(), "--store", str(tmp_path / "store")]
        ended = typed(command, user(tmp_path), tmp_path)
    assert ended.code == COMMANDS[words], ended.said
    assert "usage data" not in ended.said
    assert ended.asked == frozenset()
    # A flow run is noted in that folder all the same, and stays there.
    assert words.startswith("validate") or not (tmp_path / ".prefect" / ".sdk_telemetry").exists()


def test_what_is_said_and_asked_would_be_seen(tmp_path: Path):
    code = (
        "import prefect, urllib.request\n"
        "try: urllib.request.urlopen('http://192.0.2.1:9', timeout=0.1)\n"
        "except OSError: pass\n"
    )
    ended = typed([sys.executable, "-c", code], user(tmp_path), tmp_path)
    assert "usage data" in ended.said
    assert "192.0.2.1 9" in ended.asked
