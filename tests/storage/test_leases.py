"""A lease tells others that its owner lives; an owner that was away for too long notices that before they act."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from storage import underway
from storage.cloud_store import USERS
from storage.errors import StoreError
from storage.files import sealed
from storage.objects import leases as leases_module
from storage.objects import sealed as sealed_json
from storage.objects.folder import Folder
from storage.objects.leases import LIFE_SECONDS, Leases
from storage.runtime import cancellation
from tests.support.cloud_machines import Clock, StillLeases, machine
from tests.support.memory_objects import MemoryObjects, Operation, nothing
from tests.support.servers import ROOT
from tests.support.stores import DATASET

KEY = "tiny/leases/mine.json"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def objects(clock: Clock) -> MemoryObjects:
    return MemoryObjects(clock=clock)


@pytest.fixture
def mine(objects: MemoryObjects, clock: Clock) -> Leases:
    return StillLeases(objects, clock=clock)


@pytest.fixture
def others(objects: MemoryObjects, clock: Clock) -> Leases:
    return StillLeases(objects, clock=clock)


def fail(operation: Operation) -> None:
    if operation.name in ("put", "delete"):
        raise StoreError("expected an answer; found none; run again")


def test_a_lease_is_dead_from_its_age(mine: Leases, others: Leases, clock: Clock):
    mine.hold(KEY)
    clock.seconds += LIFE_SECONDS
    assert not others.is_dead(KEY)
    assert [found.key for found in others.survey("tiny/leases").living] == [KEY]
    clock.seconds += 1
    assert others.is_dead(KEY)
    assert [found.key for found in others.survey("tiny/leases").dead] == [KEY]


def test_a_lease_that_is_renewed_lives_on(mine: Leases, others: Leases, clock: Clock):
    mine.hold(KEY)
    for _ in range(9):
        clock.seconds += LIFE_SECONDS / 2
        mine.renew()
        mine.check(KEY)
    clock.seconds += LIFE_SECONDS
    assert not others.is_dead(KEY)


def test_a_lease_that_does_not_exist_is_dead(others: Leases):
    assert others.is_dead(KEY)
    assert others.survey("tiny/leases") == leases_module.Survey((), ())


@pytest.mark.remedies("storage.objects.leases:check")
def test_a_lost_lease_is_noticed_before_others_may_act_and_stays_lost(
    objects: MemoryObjects, mine: Leases, others: Leases, clock: Clock
):
    mine.hold(KEY)
    clock.seconds += LIFE_SECONDS / 2 + 1
    assert not others.is_dead(KEY)
    with pytest.raises(StoreError, match="at least every 60 seconds; this process was paused .*; run again"):
        mine.check(KEY)
    objects.forget()
    mine.renew()
    assert objects.operations == []
    clock.seconds -= LIFE_SECONDS
    with pytest.raises(StoreError):
        mine.check(KEY)
    # To run again is enough.
    mine.hold(KEY)
    mine.check(KEY)


def test_what_was_never_held_is_not_held(mine: Leases):
    with pytest.raises(StoreError):
        mine.check(KEY)


def test_a_renewal_that_takes_too_long_is_none(objects: MemoryObjects, mine: Leases, clock: Clock):
    mine.hold(KEY)

    def slow(_: Operation) -> None:
        clock.seconds += LIFE_SECONDS

    objects.before = slow
    mine.renew()
    with pytest.raises(StoreError):
        mine.check(KEY)


def test_renewals_that_fail_are_made_up_for(objects: MemoryObjects, mine: Leases, others: Leases, clock: Clock):
    mine.hold(KEY)
    objects.before = fail
    clock.seconds += LIFE_SECONDS / 4
    mine.renew()
    mine.check(KEY)
    objects.before = nothing
    clock.seconds += LIFE_SECONDS / 8
    mine.renew()
    clock.seconds += LIFE_SECONDS / 2
    mine.check(KEY)
    objects.before = fail
    mine.renew()
    clock.seconds += 1
    with pytest.raises(StoreError):
        mine.check(KEY)


def test_a_lease_that_is_released_while_it_is_renewed_does_not_come_back(objects: MemoryObjects, mine: Leases):
    mine.hold(KEY)

    def release(operation: Operation) -> None:
        if operation.name == "put":
            objects.before = nothing
            mine.release(KEY)

    objects.before = release
    mine.renew()
    assert objects.contents() == {}


def test_a_lease_that_cannot_be_removed_ends_by_its_age(
    objects: MemoryObjects, mine: Leases, others: Leases, clock: Clock
):
    mine.hold(KEY)
    objects.before = fail
    mine.release(KEY)
    objects.before = nothing
    mine.renew()
    clock.outlive()
    assert others.is_dead(KEY)


def test_only_one_gets_a_lease_and_the_next_one_when_it_is_released_or_dead(mine: Leases, others: Leases, clock: Clock):
    assert mine.acquire(KEY)
    assert not others.acquire(KEY)
    mine.release(KEY)
    assert others.acquire(KEY)
    assert not mine.acquire(KEY)
    clock.outlive()
    assert mine.acquire(KEY)


def test_a_survey_that_takes_long_takes_nobody_for_dead(
    objects: MemoryObjects, mine: Leases, others: Leases, clock: Clock
):
    mine.hold(KEY)

    def renew_meanwhile(operation: Operation) -> None:
        if operation.name in ("list", "now"):
            for _ in range(9):
                clock.seconds += LIFE_SECONDS / 2
                mine.renew()

    objects.before = renew_meanwhile
    assert [found.key for found in others.survey("tiny/leases").living] == [KEY]


def test_a_thread_renews_leases_while_there_are_any(objects: MemoryObjects):
    """By the clock of the owner no time passes, so that a busy machine does not lose the lease."""
    leases = Leases(objects, life=0.01, clock=lambda: 0)
    leases.hold(KEY)
    while objects.counts["put"] < 4:
        os.sched_yield()
    thread = leases._renewing
    leases.release(KEY)
    thread.join()
    assert objects.contents() == {}
    leases.hold(KEY)
    while objects.counts["put"] < 8:
        os.sched_yield()
    leases.release(KEY)


OWNER = """
import os, sys
from pathlib import Path
from storage.objects.folder import Folder
from storage.objects.leases import Leases
Leases(Folder(Path(sys.argv[1]))).hold("tiny/leases/mine.json", {"run": "1"})
print("held", flush=True)
sys.stdin.readline()
os._exit(1)
"""


def test_a_process_of_this_machine_that_has_ended_is_dead_at_once(tmp_path: Path):
    others = Leases(Folder(tmp_path))
    command = [sys.executable, "-S", "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}, text=True
    ) as owner:
        assert owner.stdout.readline() == "held\n"
        assert not others.is_dead(KEY)
        owner.stdin.close()
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
        assert others.is_dead(KEY), "although its parent has not yet asked how it ended"
    assert others.is_dead(KEY)
    assert [found.key for found in others.survey("tiny/leases").dead] == [KEY]


@pytest.mark.parametrize(
    ("change", "is_dead"),
    [
        ({}, False),
        ({"started": 1}, True),
        ({"started": 1, "machine": "another"}, False),
        ({"pid": "1"}, False),
    ],
    ids=["this process", "another process with its number", "of another machine", "of no known kind"],
)
def test_the_process_that_a_lease_names_tells(
    objects: MemoryObjects, mine: Leases, others: Leases, change: dict[str, object], is_dead: bool
):
    mine.hold(KEY)
    about = sealed_json.read(objects, KEY)
    objects.put(KEY, sealed({**about, "owner": {**about["owner"], **change}}))
    assert others.is_dead(KEY) is is_dead


def test_a_lease_that_cannot_be_understood_lives_until_it_is_old(objects: MemoryObjects, others: Leases, clock: Clock):
    objects.put(KEY, b"{}")
    assert not others.is_dead(KEY)
    clock.outlive()
    assert others.is_dead(KEY)


def test_where_a_machine_cannot_be_told_from_another_only_age_counts(
    monkeypatch: pytest.MonkeyPatch, mine: Leases, others: Leases
):
    monkeypatch.setattr(leases_module, "_machine", lambda: "")
    mine.hold(KEY)
    monkeypatch.setattr(leases_module, "_started", lambda pid: -1)
    assert not others.is_dead(KEY)


def test_the_end_of_a_run_is_recorded_although_who_was_to_record_it_was_killed(
    objects: MemoryObjects, clock: Clock, tmp_path: Path
):
    underway.begin(machine(objects, clock, tmp_path / "a"), DATASET, "run-1", {"started": "then"})
    clock.outlive()
    for _ in underway.abandoned(machine(objects, clock, tmp_path / "b"), DATASET):
        # The second process is gone here: nothing more of it reaches the store.
        left = objects.copy()
        break
    clock.outlive()
    third = machine(left, clock, tmp_path / "c")
    ended = []
    for trace, values in underway.abandoned(third, DATASET):
        ended.append(values["run"])
        trace.end()
    assert ended == ["run-1"]
    assert left.contents() == {}


def test_threads_share_the_use_of_a_data_set_until_the_last_of_them_ends_it(
    objects: MemoryObjects, clock: Clock, tmp_path: Path
):
    store = machine(objects, clock, tmp_path)
    first, second = store.in_use(DATASET), store.in_use(DATASET)
    with first:
        second.__enter__()
    store.check_in_use(DATASET)
    assert len(store.leases.survey(f"{DATASET}/{USERS}").living) == 1
    second.__exit__(None, None, None)
    assert objects.contents() == {}


def test_a_use_that_could_not_begin_keeps_no_lease(objects: MemoryObjects, clock: Clock, tmp_path: Path):
    store = machine(objects, clock, tmp_path)

    def refuse(operation: Operation) -> None:
        if operation.name == "list":
            raise StoreError("expected an answer; found none; run again")

    objects.before = refuse
    with pytest.raises(StoreError, match="expected an answer"), store.in_use(DATASET):
        pass
    objects.before = nothing
    store.leases.renew()
    assert objects.contents() == {}
    with store.in_use(DATASET):
        store.check_in_use(DATASET)


class Waiting(MemoryObjects):
    """Objects that take a while to remove, which ends if the run is being stopped."""

    def delete(self, keys: Sequence[str]) -> None:
        cancellation.check()
        super().delete(keys)


def test_a_lease_of_what_was_stopped_is_removed_though_the_process_lives(clock: Clock):
    objects = Waiting(clock=clock)
    mine = StillLeases(objects, clock=clock)
    mine.hold(KEY)
    with cancellation.stoppable() as stop:
        stop()
        with pytest.raises(cancellation.Cancelled):
            mine.release(KEY)
    while objects.list("tiny/leases").objects:
        time.sleep(0.001)
