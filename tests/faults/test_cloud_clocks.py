"""Machines whose clocks are hours apart share a store: nobody is taken for dead, and the order stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from storage.cloud_store import USERS, CloudStore
from storage.ledger import Ledger
from storage.objects.opening import opened
from storage.registry import Registry
from storage.retention import collect
from storage.verify import verify
from tests.support.object_servers import ObjectServer
from tests.support.servers import ROOT
from tests.support.stores import DATASET, retrain

# Python's own sleep fails with EINVAL under faketime.
PROGRAM = """
import select, sys, time
time.sleep = lambda seconds: select.select([], [], [], seconds)
from tests.support.racing_programs import main
sys.exit(main())
"""
HOURS = 3600


def started(clock: str, *words: object) -> subprocess.Popen[str]:
    wrong = ["faketime", "--exclude-monotonic", "-f", clock] if clock else []
    command = [*wrong, sys.executable, "-c", PROGRAM, *map(str, words)]
    # Else its threads do not wait for one another, but ask again and again, for fifty times the processor time.
    environment = {**os.environ, "FAKETIME_FORCE_MONOTONIC_FIX": "0"}
    program = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout.readline() == "ready\n"
    return program


def told(program: subprocess.Popen[str]) -> list[str]:
    """Let a program go on; return the words it says then."""
    program.stdin.write("go\n")
    program.stdin.flush()
    return program.stdout.readline().split()


def test_clocks_that_are_hours_apart_change_nothing(
    object_storage: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if not shutil.which("faketime"):
        pytest.skip("needs faketime: on Debian, apt-get install faketime")
    for name, value in object_storage.environment.items():
        monkeypatch.setenv(name, value)
    store = CloudStore(opened(object_storage.address), cache=tmp_path / "right")
    store.prepare()
    for number in (1, 2):
        retrain(store, number, promoted=False)
    clocks = {"+5h": 10, "-5h": 20, "": 30}
    with ExitStack() as ending:
        programs = {
            clock: ending.enter_context(
                started(clock, "hold", object_storage.address, tmp_path / str(number), number, 2)
            )
            for clock, number in clocks.items()
        }
        shown = {clock: float(told(program)[1]) - time.time() for clock, program in programs.items()}
        assert {clock: round(ahead / HOURS) for clock, ahead in shown.items()} == {"+5h": 5, "-5h": -5, "": 0}
        survey = store.leases.survey(f"{DATASET}/{USERS}")
        assert (len(survey.living), survey.dead) == (3, ())
        assert collect(store, DATASET, keep_last=1).busy
        for clock, program in programs.items():
            assert told(program) == ["held", "weights", str(clocks[clock] + 1)]
        assert [program.wait() for program in programs.values()] == [0] * 3
    ledger = Ledger(store, DATASET)
    assert ledger.names("decisions") == [f"{number:08d}.json" for number in range(1, 9)]
    assert all(after["previous"] == before["champion"] for before, after in pairwise(ledger.read("decisions")))
    last = ledger.read("decisions")[-1]["champion"]
    assert Registry(store, DATASET).champion() == Registry(store, DATASET).version(last)
    assert verify(store).damage == verify(store).leftovers == ()
    collected = collect(store, DATASET, keep_last=1)
    assert not collected.busy
    assert {1, 2} <= {*collected.retired}
    assert verify(store).damage == verify(store).leftovers == ()
