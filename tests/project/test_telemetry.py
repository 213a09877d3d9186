"""No command sends usage data, nor says that it does: in a terminal, importing Prefect is enough for that."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.conftest import write_tiny
from tests.support.faultserver import FaultServer
from tests.support.operated import until
from tests.support.servers import BIN, fill_home, free_port
from tests.support.terminal import opened, seen, typed, user

pytestmark = pytest.mark.long

COMMANDS = {
    "doctor": 0,
    # Prefect is imported before it is seen that something else has the port, or that there is no server.
    "up --port PORT": 1,
    "watch FOLDER/tiny-source --once --dataset-file FOLDER/tiny.toml": 1,
}


@pytest.mark.flow
@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_in_a_terminal_keeps_to_itself(words: str, tmp_path: Path):
    write_tiny(tmp_path)
    with FaultServer({}) as server:
        arguments = words.replace("PORT", server.host.partition(":")[2]).replace("FOLDER", str(tmp_path))
        command = [BIN / "idxflow", *arguments.split(), "--store", str(tmp_path / "store")]
        ended = typed(command, user(tmp_path), tmp_path)
    assert ended.code == COMMANDS[words], ended.output
    assert "usage data" not in ended.output
    assert ended.contacted == frozenset()
    # What a flow run notes in that folder stays there.
    assert not (tmp_path / ".prefect" / ".sdk_telemetry").exists()


@pytest.mark.flow
def test_nothing_leaves_a_machine_in_operation(tmp_path: Path):
    """A run with a server of its own, then `up` until Ctrl-C, and what its user types meanwhile."""
    fill_home(tmp_path / ".prefect")
    environment = user(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"), PREFECT_WORKER_QUERY_SECONDS="2")
    ran = typed([BIN / "idxflow", "run", "digits"], environment, tmp_path)
    assert ran.code == 0, ran.output
    assert "promoted v1" in ran.output
    with opened([BIN / "idxflow", "up", "--port", str(free_port()), "--site-port", "0"], environment, tmp_path) as up:
        until(lambda: "\nCtrl-C stops server, worker and site" in up.sent or not up.running)
        steps = re.search(r"try, in another terminal:\n((?:  .*\n)+)", up.sent)
        assert steps, up.sent
        worker = "prefect worker start --pool idxflow --type process --run-once"
        # In a fresh terminal of somebody who has never used Prefect.
        (tmp_path / "new").mkdir()
        served = typed(["bash", "-euc", f"{steps[1]}\n{worker}"], user(tmp_path / "new"), tmp_path)
        assert served.code == 0, served.output
        assert "finished successfully in 'Completed'" in served.output
        assert "digits: ok" in served.output
        assert "Worker 'ProcessWorker" in served.output
        up.interrupt()
        stopped = up.ended()
    assert stopped.code == 0, stopped.output
    assert stopped.output.endswith("stopped\n")
    for ended in (ran, served, stopped):
        assert "usage data" not in ended.output
        assert ended.contacted == frozenset()
    # What moves while that starts is gone afterwards.
    for waited_for in ("waiting for the server", "deploying prefect.yaml", "waiting for the worker"):
        assert waited_for in stopped.output
        assert not any(waited_for in line for line in seen(stopped.output))


def test_output_and_requests_would_be_seen(tmp_path: Path):
    code = (
        "import prefect, urllib.request\n"
        "try: urllib.request.urlopen('http://192.0.2.1:9', timeout=0.1)\n"
        "except OSError: pass\n"
    )
    ended = typed([sys.executable, "-c", code], user(tmp_path), tmp_path)
    assert "usage data" in ended.output
    assert "192.0.2.1 9" in ended.contacted
