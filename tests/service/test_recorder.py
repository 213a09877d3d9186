"""How `idxflow up` records ends in object storage, whose answers it does not wait for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows import endings
from flows.service.recorder import Recorder
from storage import underway
from storage.cloud_store import CloudStore
from storage.ledger import Ledger
from tests.support.memory_objects import MemoryObjects, Operation, nothing

RUN = "20260101-000000-abcd"
CLIENT: Any = None
"""No server is asked: what a run did in the store is enough."""


class Clock:
    """The clock of object storage."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def connected(_seconds: float) -> Iterator[Any]:
    yield CLIENT


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects("s3://bucket/store", clock=Clock())


@pytest.fixture
def store(objects: MemoryObjects, tmp_path: Path) -> CloudStore:
    return CloudStore(objects, cache=tmp_path)


def die(store: CloudStore, objects: MemoryObjects, run: str = RUN) -> None:
    """Leave the trace of a run that has not been heard of for long."""
    about = {"started": "2026-01-01T00:00:00.000+00:00", "asked_by": "command line", **endings.present()}
    underway.begin(store, "tiny", run, about).close()
    assert isinstance(objects.clock, Clock)
    objects.clock.now += 1000


def ended(store: CloudStore) -> list[str]:
    return [run["run"] for run in Ledger(store, "tiny").read("runs")]


def test_a_run_that_died_is_recorded_and_the_next_look_waits_a_minute(store: CloudStore, objects: MemoryObjects):
    recorder = Recorder(store, connected)
    die(store, objects)
    recorder.record(CLIENT, at_once=False)
    recorder.finish(240)
    assert ended(store) == [RUN]

    die(store, objects, "20260101-000001-abcd")
    objects.forget()
    recorder.record(CLIENT, at_once=False)
    recorder.finish(240)
    assert objects.operations == []
    # A run of this worker has just ended.
    recorder.record(CLIENT, at_once=True)
    recorder.finish(240)
    assert ended(store) == [RUN, "20260101-000001-abcd"]


def test_a_store_that_does_not_answer_is_not_waited_for(store: CloudStore, objects: MemoryObjects):
    answers = threading.Event()

    def wait(_: Operation) -> None:
        assert answers.wait(240)

    recorder = Recorder(store, connected)
    die(store, objects)
    objects.forget()
    objects.before = wait
    for _ in range(3):
        recorder.record(CLIENT, at_once=True)
    answers.set()
    recorder.finish(240)
    objects.before = nothing
    assert ended(store) == [RUN]
    assert len([each for each in objects.operations if (each.name, each.key) == ("list", "")]) == 1
