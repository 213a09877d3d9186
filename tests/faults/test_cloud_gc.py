"""`gc` beside runs on other machines, on a server: nothing that is in use goes, also if processes die or are paused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from storage.cloud_store import CloudStore
from storage.registry import Registry
from storage.retention import collect
from storage.store import ENTRY
from storage.verify import verify
from tests.support.cloud_programs import NUMBERS, is_whole, machine
from tests.support.object_servers import ObjectServer
from tests.support.servers import ROOT
from tests.support.stores import DATASET, add, retrain

pytestmark = pytest.mark.long

Start = Callable[..., subprocess.Popen[str]]
SECONDS = 240
"""Only what hangs takes so long."""


@pytest.fixture
def server(object_storage: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> ObjectServer:
    """A place of the test's own, with the credentials in the environment."""
    for name, value in object_storage.environment.items():
        monkeypatch.setenv(name, value)
    return object_storage.fresh()


@pytest.fixture
def store(server: ObjectServer, tmp_path: Path) -> CloudStore:
    """With a champion, so that there is something to keep."""
    store = machine(server.address, tmp_path / "here")
    with store.in_use(DATASET):
        retrain(store, 1)
    return store


@pytest.fixture
def start(server: ObjectServer, tmp_path: Path) -> Iterator[Start]:
    """Start a program of `tests.support.cloud_programs` on a machine of its own; all end with the test."""
    with ExitStack() as started:

        def program(command: str, name: str, *arguments: object) -> subprocess.Popen[str]:
            words = [command, server.address, str(tmp_path / name), *map(str, arguments)]
            process = started.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.support.cloud_programs", *words],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            started.callback(process.kill)
            return process

        yield program


def await_line(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout
    assert any(words in line for line in process.stdout), f"the program ended without saying {words!r}"


def paused(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), status


def resumed(process: subprocess.Popen[str]) -> list[str]:
    """Let a program go on; return what it says until its end."""
    process.send_signal(signal.SIGCONT)
    output = process.communicate("\n", timeout=SECONDS)[0]
    assert process.returncode == 0, output
    return output.splitlines()


def in_time(happens: Callable[[], bool]) -> None:
    while not happens():
        time.sleep(0.2)


def published(store: CloudStore) -> list[str]:
    keys = [found.key for found in store.objects.walk(DATASET)]
    return [key for key in keys if key.endswith(f"/{ENTRY}") or "/registry/" in key or "/ledger/" in key]


def test_no_result_is_lost_that_a_process_uses(store: CloudStore, start: Start, tmp_path: Path):
    stop = tmp_path / "stop"
    workers = [start("work", f"worker-{number}", stop) for number in range(3)]
    doomed = start("work", "doomed", stop)
    await_line(doomed, "holding")
    doomed.kill()
    output = start("gather", "gc", stop, len(NUMBERS)).communicate(timeout=SECONDS)[0]
    assert int(output.split()[1]) >= len(NUMBERS), output
    outputs = [worker.communicate(timeout=SECONDS)[0] for worker in workers]
    assert [line for output in outputs for line in output.splitlines() if line.startswith("lost")] == []
    assert sum(int(output.rsplit("done", 1)[1].split()[0]) for output in outputs) > 0
    assert verify(store).damage == ()
    # What the killed one left: its lease, its claim, files of an entry.
    in_time(lambda: not collect(store, DATASET, keep_last=1).busy and verify(store).findings == ())
    assert Registry(store, DATASET).champion().number == 1


def test_a_run_that_was_paused_notices_and_publishes_nothing_more(store: CloudStore, start: Start):
    user = start("use", "user")
    await_line(user, "holding")
    assert collect(store, DATASET).busy
    paused(user)
    in_time(lambda: not collect(store, DATASET).busy)
    before = published(store)
    for line in resumed(user):
        assert line.startswith("refused expected to renew "), line
        assert line.endswith("others may have removed or changed what it uses; run again"), line
    assert published(store) == before
    # Run again.
    with store.in_use(DATASET):
        retrain(store, 2)
    assert verify(store).damage == ()


def test_gc_that_was_paused_removes_nothing_that_was_made_meanwhile(store: CloudStore, start: Start):
    with store.in_use(DATASET):
        for number in NUMBERS:
            add(store, "decode", number + 10, "train")
    gc = start("halt", "gc")
    await_line(gc, "halfway")
    paused(gc)
    with store.in_use(DATASET):
        for number in NUMBERS:
            add(store, "decode", number + 10, "train")
        (line,) = resumed(gc)
        assert line.startswith("refused expected to renew "), line
        other = machine(store.address, store.root / "other")
        assert all(is_whole(other, number + 10) for number in NUMBERS)
    assert verify(store).damage == ()
