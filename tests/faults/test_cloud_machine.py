"""Any order of requests of runs, decisions and `gc`, with kills, pauses and lost answers: a store stays whole."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storage.errors import StoreError
from storage.ledger import Ledger
from storage.objects.leases import LIFE_SECONDS
from storage.records import FolderEntry
from storage.registry import Overtaken, Registry
from storage.retention import collect
from storage.runtime import cancellation
from storage.store import ENTRY, FOLDERS, Plan
from storage.verify import verify
from tests.support.cloud_machines import Clock, machine
from tests.support.crashes import in_memory, lay_out
from tests.support.interleaved import TICK, Process, Work
from tests.support.memory_objects import MemoryObjects, Stopped
from tests.support.stores import DATASET, Thing, decide

STEPS = ("decode", "train", "evaluate")
NUMBERS = st.integers(1, 3)
WORK = ("run", "run", "promoted", "decision", "gc", "gc")
MOST = 4
"""Processes at the same time."""
PATIENCE = 4_000
"""Steps in which all processes that live have ended."""
NEVER_CHANGED = (f"{DATASET}/registry/versions/", f"{DATASET}/ledger/")


def files_of(folder: Path) -> dict[str, bytes | None]:
    """Return the files below a folder, by path; of folders, None."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in found}


def plan_of(step: str, number: int) -> Plan:
    return Plan(DATASET, step, "train" if step == "decode" else "", parameters={"number": number})


def a_run(name: str, number: int, promoted: bool) -> Callable[[Process], object]:
    """Return what a run does: equal numbers are the same model."""

    def make(folder: Path) -> Thing:
        (folder / "data.bin").write_bytes(f"data {number}".encode())
        (folder / "more.bin").write_bytes(b"more")
        return Thing(FolderEntry(folder), f"weights {number}")

    def work(process: Process) -> object:
        store = process.store
        registry = Registry(store, DATASET)
        with store.in_use(DATASET):
            for step in STEPS:
                process.uses.append(store.get_or_make(plan_of(step, number), Thing, make, str).record.entry)
            version = registry.register(
                model=plan_of("train", number).key,
                evaluation=plan_of("evaluate", number).key,
                weights_digest=f"weights {number}",
                test_digest="rows",
                test_accuracy=0.9,
                train_accuracy=0.9,
                classes=("a", "b"),
                image_shape=(2, 2),
                run=name,
            )
            while not decided(registry, "promoted" if promoted else "kept", version.number, name):
                pass
            Ledger(store, DATASET).append("runs", name, {"state": "kept", "steps": [], "report": None})
            for entry in process.uses:
                assert entry.path("data.bin").read_bytes() == f"data {number}".encode()
            process.uses.clear()
        return version

    return work


def decided(registry: Registry, outcome: str, number: int, name: str) -> bool:
    """Decide, unless another process does; return whether this one did."""
    standing = registry.standing()
    champion = standing.champion if outcome == "kept" else number
    decision = {"outcome": outcome, "version": number, "champion": champion, "previous": standing.champion}
    try:
        registry.carry_out(decision, name, standing.number)
    except Overtaken:
        return False
    return True


def by_hand(number: int) -> Callable[[Process], object]:
    """Return what a person does who makes a version the champion, also one before the present one."""

    def work(process: Process) -> object:
        registry = Registry(process.store, DATASET)
        if number in registry.numbers():
            try:
                decide(registry, "forced", number, "by-hand")
            except (Overtaken, StoreError) as error:
                return error
        return None

    return work


def collecting(process: Process) -> object:
    return collect(process.store, DATASET, keep_last=1)


class CloudMachine(RuleBasedStateMachine):
    """Processes on two machines, each of which is told when to go on."""

    begun: tuple[MemoryObjects, dict[str, bytes | None]] | None = None
    """What all begin with: the objects, and the files of the machines, by path; of folders, None."""

    @initialize()
    def begin(self) -> None:
        """Begin with three runs that have ended, each time the same: they are carried out once."""
        if CloudMachine.begun is None:
            self.begin_without_runs()
            # The models of the first two are not needed, and a run may want them again.
            for number in (1, 2, 3):
                self.begin_to("promoted" if number == 3 else "run", number, 0)
                while not self.step(self.processes[0]):
                    pass
            CloudMachine.begun = self.objects.copy(), files_of(self.folder)
            self.leave()
        objects, files = CloudMachine.begun
        self.begin_without_runs(objects)
        lay_out(files, self.folder)
        self.names = 3

    def begin_without_runs(self, objects: MemoryObjects | None = None) -> None:
        self.held = in_memory()
        self.folder = self.held.__enter__()
        self.clock = Clock()
        self.objects = (objects or MemoryObjects()).copy()
        self.objects.clock = self.clock
        if objects is None:
            machine(self.objects, self.clock, self.folder / "0").prepare()
        self.processes: list[Process] = []
        self.everyone: list[Process] = []
        self.records: dict[str, bytes] = {}
        self.names = 0
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(cancellation, "sleep", self.sleep)

    def leave(self) -> None:
        self.patch.undo()
        self.held.__exit__(None, None, None)

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        try:
            self.come_to_an_end()
        finally:
            for process in self.processes:
                process.kill()
            self.leave()

    def sleep(self, seconds: float) -> None:
        current = threading.current_thread()
        next(process for process in self.everyone if process.is_of(current)).sleep()

    def start(self, work: Callable[[Process], object], place: int) -> None:
        self.processes.append(Process(self.objects, self.clock, self.folder / str(place), work))
        self.everyone.append(self.processes[-1])

    @precondition(lambda self: len(self.processes) < MOST)
    @rule(
        what=st.sampled_from(("run", "run", "promoted", "decision", "gc", "gc")),
        number=NUMBERS,
        place=st.integers(0, 1),
    )
    def begin_to(self, what: str, number: int, place: int) -> None:
        self.names += 1
        if what == "gc":
            self.start(collecting, place)
        elif what == "decision":
            self.start(by_hand(number), place)
        else:
            self.start(a_run(f"run-{self.names}", number, what == "promoted"), place)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), steps=st.integers(1, 90))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        process = data.draw(st.sampled_from(self.processes))
        for _ in range(steps):
            if self.step(process):
                break
            self.nothing_is_broken()

    def step(self, process: Process) -> bool:
        """Let a process go on; return whether it has ended, then as it should."""
        process.step()
        if not process.ended:
            return False
        self.processes.remove(process)
        may_fail = (StoreError,) if process.disturbed else ()
        if process.error and not isinstance(process.error, may_fail):
            raise process.error
        return True

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.processes))
        self.processes.remove(process)
        process.kill()
        assert isinstance(process.error, Stopped)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def lose_an_answer(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.processes))
        process.lose_answer()
        if process.ended:
            self.processes.remove(process)
            assert process.error is None or isinstance(process.error, StoreError)

    @rule()
    def time_passes(self) -> None:
        self.pass_time(1)

    @precondition(lambda self: any(not sent(process) for process in self.processes))
    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        """One process stands still until others take it for dead."""
        process = data.draw(st.sampled_from([process for process in self.processes if not sent(process)]))
        process.disturbed = True
        process.uses.clear()
        self.pass_time(16, asleep=process)

    def pass_time(self, ticks: int, asleep: Process | None = None) -> None:
        for _ in range(ticks):
            self.clock.seconds += TICK
            for process in self.processes:
                if process is not asleep:
                    process.leases.renew()

    def come_to_an_end(self) -> None:
        """Whoever lives comes to an end, whatever the others have left; then the store is in order."""
        for number in range(PATIENCE):
            if not self.processes:
                break
            self.step(self.processes[number % len(self.processes)])
            if number % 50 == 0:
                self.pass_time(1)
        assert not self.processes, "somebody waits for ever"
        self.clock.seconds += 2 * LIFE_SECONDS
        store = machine(self.objects, self.clock, self.folder / "2")
        assert verify(store).damage == ()
        for place in range(2):
            assert not collect(machine(self.objects, self.clock, self.folder / str(place)), DATASET, 9).busy
        assert verify(store).findings == ()
        self.nothing_is_broken()

    @invariant()
    def nothing_is_broken(self) -> None:
        if not hasattr(self, "objects"):
            return
        contents = self.objects.contents()
        self.check_records(contents)
        for key, data in contents.items():
            if key.endswith(f"/{ENTRY}"):
                described = json.loads(data)
                folder = f"{key.removesuffix(ENTRY)}{described['attempt']}"
                missing = [name for name in described["files"] if f"{folder}/{name}" not in contents]
                assert not missing, f"{key} has no {missing}"
        for process in self.processes:
            for entry in process.uses:
                assert f"{entry.folder}/{ENTRY}" in contents, f"{entry} is used, and removed"

    def check_records(self, contents: dict[str, bytes]) -> None:
        """Check that records stay what they are, and that decisions have no gap and name what is there."""
        for key, data in self.records.items():
            assert contents.get(key) == data, f"{key} has changed"
        self.records |= {
            key: data for key, data in contents.items() if key.startswith(NEVER_CHANGED) and "/underway/" not in key
        }
        decisions = [json.loads(data) for key, data in self.records.items() if "/decisions/" in key]
        names = sorted(key.rpartition("/")[2] for key in self.records if "/decisions/" in key)
        assert names == [f"{number:08d}.json" for number in range(1, len(names) + 1)]
        for before, after in pairwise(decisions):
            assert after["previous"] == before["champion"]
        if decisions and (champion := decisions[-1]["champion"]):
            version = json.loads(self.records[f"{DATASET}/registry/versions/{champion:08d}.json"])
            for step, key in (("train", version["model"]), ("evaluate", version["evaluation"])):
                assert f"{DATASET}/{FOLDERS[step]}/{key}/{ENTRY}" in contents, f"the champion v{champion} has no {step}"


def sent(process: Process) -> bool:
    """Return whether a process has just made sure of its lease for its next operation, which harms without it."""
    if process.next is None:
        return False
    name, key = process.next.name, process.next.key
    return name == "delete" or (name == "create" and "/registry/versions/" in key)


def test_any_order_of_requests_leaves_a_store_that_keeps_its_promises():
    run_state_machine_as_test(
        CloudMachine,
        settings=settings(
            max_examples=50,
            stateful_step_count=30,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


MEETINGS = {
    "a run meets gc": (a_run("first", 1, True), collecting),
    "gc meets a run": (collecting, a_run("second", 1, True)),
    "a run meets an equal one": (a_run("first", 1, True), a_run("second", 1, True)),
    "gc meets a decision": (collecting, by_hand(1)),
    "a decision meets gc": (by_hand(1), collecting),
}


@pytest.mark.parametrize("name", MEETINGS)
def test_at_any_request_of_one_process_another_may_do_all_it_can(name: str):
    """The second one goes on until it ends or waits, whether or not the first one has ended then."""
    number, ended = 0, False
    while not ended:
        number += 1
        world = CloudMachine()
        world.begin()
        try:
            ended = met(world, *MEETINGS[name], number)
        finally:
            world.teardown()


def met(world: CloudMachine, first: Work, second: Work, number: int) -> bool:
    """Let one process do a number of requests, and another all it can then; return whether the first ended before."""
    world.start(first, 0)
    if any(world.step(world.processes[0]) for _ in range(number)):
        return True
    world.start(second, 1)
    while not world.step(world.processes[1]) and world.processes[1].next:
        world.nothing_is_broken()
    world.nothing_is_broken()
    while not world.step(world.processes[0]):
        world.nothing_is_broken()
    return False
