"""Whole runs of the installed command under a clock that is a year ahead, and then under the right one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.servers import BIN, clean_environment

pytestmark = pytest.mark.flow


def test_a_run_under_a_wrong_clock_blinds_nobody(tmp_path: Path):
    if not shutil.which("faketime"):
        pytest.skip("expected faketime, which gives a command another clock; found none")
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"))

    def idxflow(*command: str, clock: str = "") -> subprocess.CompletedProcess:
        wrong = ["faketime", "-f", clock] if clock else []
        return subprocess.run(
            [*wrong, str(BIN / "idxflow"), *command], env=environment, capture_output=True, text=True, timeout=300
        )

    def status(clock: str = "") -> tuple[int, list[str]]:
        done = idxflow("status", "--json", clock=clock)
        return done.returncode, json.loads(done.stdout)["datasets"][0]["problems"]

    ahead = idxflow("run", "digits", "--set", "epochs=1", "--json", clock="+365d")
    assert ahead.returncode in (0, 5), ahead.stderr
    code, problems = status()
    assert code == 1
    assert any("a time that is still to come" in problem for problem in problems)

    right = json.loads(idxflow("run", "digits", "--set", "epochs=3", "--json").stdout)
    assert right["state"] in ("promoted", "kept")
    assert status() == (0, [])
    newest = json.loads(idxflow("runs", "list", "digits", "--json").stdout)
    assert newest[0]["run"] == right["run"]
    code, problems = status(clock="+9d")
    assert code == 1
    assert problems == ["stale: the last good run was 9 days ago, expected one at least every 8 days"]
    checked = idxflow("verify")
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("remark: ") == 2
