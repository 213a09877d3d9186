"""A whole run in a process whose clock is a year ahead, and then one under the right clock."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.commands.cli import run_command
from storage.store import Store
from tests.support.clocks import clock_ahead
from tests.support.runs import run_without_prefect
from tests.support.servers import ROOT, free_port

pytestmark = pytest.mark.long

# The flow's own steps, without a server: Prefect's spins under a clock that is not its own.
# Python's own sleep fails with EINVAL under faketime, so a run that has to wait, as on a busy machine, would fail.
RUN = """
import pathlib, select, sys, time
time.sleep = lambda seconds: select.select([], [], [], seconds)
from storage.store import Store
from tests.support.runs import run_without_prefect
print(run_without_prefect(Store(pathlib.Path(sys.argv[1])))["run"])
"""


@pytest.fixture(autouse=True)
def no_server() -> Iterator[None]:
    """Not even that of the developer, at the usual port."""
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        yield


def test_a_run_under_a_wrong_clock_blinds_nobody(store: Store, capsys: pytest.CaptureFixture):
    if not shutil.which("faketime"):
        pytest.skip("needs faketime: on Debian, apt-get install faketime")

    def idxflow(*command: str) -> tuple[int, str]:
        code = run_command([*command, "--store", str(store.root)])
        return code, capsys.readouterr().out

    def problems() -> list[str]:
        code, output = idxflow("status", "--json")
        faults = json.loads(output)["datasets"][0]["problems"]
        assert code == bool(faults)
        return faults

    wrong = ["faketime", "--exclude-monotonic", "-f", "+365d", sys.executable, "-c", RUN, str(store.root)]
    ended = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    remaining = problems()
    assert len(remaining) == 1, remaining
    (problem,) = remaining
    assert "the last successful run has a time in the future" in problem

    right = run_without_prefect(store)
    assert problems() == []
    with clock_ahead(timedelta(days=9)):
        assert problems() == ["stale: the last successful run was 9 days ago; expected one at least every 8 days"]
    listed = json.loads(idxflow("runs", "list", "digits", "--json")[1])
    assert [run["run"] for run in listed] == [right["run"], ended.stdout.strip()]
    code, output = idxflow("verify")
    assert (code, output.count("remark: ")) == (0, 2)
