"""Killed or failed at every request that a store in object storage makes: nothing is harmed, and again is enough."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.cloud_store import CloudStore
from storage.errors import DamagedEntry, IdxflowError, StoreError
from storage.records import TrainedModel
from storage.registry import Overtaken, Registry
from storage.retention import collect
from storage.store import ENTRY, Store
from storage.verify import verify
from tests.support import store_scenarios
from tests.support.cloud_machines import Clock, machine
from tests.support.crashes import in_memory, problems, problems_after_again, state
from tests.support.memory_objects import MemoryObjects, Operation, Stopped, nothing
from tests.support.store_scenarios import DATASET, FILES, Story, make_model, train_plan


def damage_description(store: Store) -> None:
    store.objects.put(f"{store.entry_key(DATASET, 'train', train_plan(1).key)}/{ENTRY}", b"{}")


def leave_attempt(store: Store) -> None:
    """Leave what a run leaves that was killed before its entry was published."""
    make_model(store)
    store.objects.delete([f"{store.entry_key(DATASET, 'train', train_plan(1).key)}/{ENTRY}"])


STORIES = {
    **{
        name: story
        for name, story in store_scenarios.STORIES.items()
        if name not in ("a damaged entry is replaced", "an interrupted entry is made", "a second set arrives")
    },
    "a damaged entry is replaced": Story("make", (make_model, damage_description), damaged=True),
    "an interrupted entry is made": Story("make", (leave_attempt,)),
}


@dataclass(frozen=True)
class Fault:
    """What one operation of the command meets."""

    kind: str
    """`killed` before it; `failed` without effect; `lost`: done, but without an answer."""
    operation: Operation

    def __str__(self) -> str:
        return f"{self.operation.name} {self.operation.number} ({self.operation.key}) {self.kind}"

    def befall(self, objects: MemoryObjects) -> None:
        """Have it happen; the operations are counted from the next one."""
        objects.forget()
        if self.kind == "killed":
            objects.before = self._stop
        else:
            setattr(objects, "before" if self.kind == "failed" else "after", self._fail)

    def _stop(self, operation: Operation) -> None:
        # Whatever a process does while it ends does not reach the store either.
        if operation.number >= self.operation.number:
            raise Stopped

    def _fail(self, operation: Operation) -> None:
        if operation.number == self.operation.number:
            raise StoreError("expected an answer; found none; run again")


@dataclass(frozen=True)
class Bench:
    """One story, told once without harm: what was there before, what is there afterwards, by which operations."""

    folder: Path
    story: Story
    before: MemoryObjects
    clock: Clock
    champions: set[object]
    expected: dict[str, object]
    operations: tuple[Operation, ...]

    @property
    def faults(self) -> list[Fault]:
        """All that can happen to any operation."""
        changes = [operation for operation in self.operations if operation.changes]
        return [
            *(Fault("killed", operation) for operation in changes),
            *(Fault("failed", operation) for operation in self.operations),
            *(Fault("lost", operation) for operation in changes),
        ]

    def tell(self, objects: MemoryObjects, place: Path) -> CloudStore:
        """Run the command on a machine that has what it had before, in a new process."""
        shutil.copytree(self.folder / "before", place)
        store = machine(objects, self.clock, place)
        store.prepare()
        with store.in_use(DATASET) if self.story.command != "tidy" else nullcontext():
            store_scenarios.COMMANDS[self.story.command](store)
        return store


def bench_of(folder: Path, story: Story) -> Bench:
    clock = Clock()
    before = MemoryObjects(clock=clock)
    first = machine(before, clock, folder / "before")
    story.prepare(first)
    clock.outlive()
    champion = Registry(first, DATASET).champion()
    objects = before.copy()
    bench = Bench(folder, story, before, clock, set(), {}, ())
    after = bench.tell(objects, folder / "after")
    operations = (*objects.operations,)
    expected = state(after)
    champions = {champion and champion.number, expected["champion"]}
    return Bench(folder, story, before, clock, champions, expected, operations)


def tried(bench: Bench, fault: Fault) -> list[str]:
    """Return what goes wrong when an operation meets a fault."""
    objects, here, elsewhere = bench.before.copy(), bench.folder / "here", bench.folder / "elsewhere"
    fault.befall(objects)
    wrong = []
    try:
        bench.tell(objects, here)
        if fault.kind == "killed":
            wrong.append("the fault was not met")
    except (Stopped, IdxflowError):
        pass
    objects.before = objects.after = nothing
    bench.clock.outlive()
    reader = machine(objects, bench.clock, elsewhere)
    wrong += problems(reader, bench.story, bench.champions)
    wrong += incomplete(reader)
    # Of two faults, one is followed by a run on the same machine, which finds what is unfinished there.
    again = machine(objects, bench.clock, here if fault.operation.number % 2 else elsewhere)
    wrong += problems_after_again(again, bench.story, bench.expected)
    for place in (here, elsewhere):
        shutil.rmtree(place, ignore_errors=True)
    return [f"{fault}: {problem}" for problem in wrong]


def incomplete(store: Store) -> list[str]:
    """Return what a reader is given that is neither whole nor absent, and what breaks the chain of decisions."""
    wrong = [f"{finding.where}: {finding.problem}" for finding in verify(store).remarks]
    for model in store_scenarios.MODELS:
        record = None
        # What the story began with may still be there; `problems` reports any other damage.
        with suppress(DamagedEntry):
            record = store.find(train_plan(model), TrainedModel)
        for size, name in enumerate(FILES, start=1):
            if record and record.entry.path(name).read_bytes() != bytes([64 + model]) * 4100 * size:
                wrong.append(f"model {model} has another {name}")
    return wrong


@pytest.fixture
def folder() -> Iterator[Path]:
    with in_memory() as path:
        yield path


@pytest.mark.parametrize("name", STORIES)
def test_a_fault_at_any_request_harms_nothing(folder: Path, name: str):
    bench = bench_of(folder, STORIES[name])
    assert bench.faults
    wrong = [problem for fault in bench.faults for problem in tried(bench, fault)]
    assert not wrong, "\n".join(wrong)


PAUSED = {
    **{name: story for name, story in STORIES.items() if not name.startswith("the champion")},
    "a second run": Story("whole-second", (store_scenarios.whole,)),
}


def meanwhile(store: CloudStore, story: Story) -> None:
    """Do what is worst for the command while its process is paused."""
    if story.command == "tidy":
        with store.in_use(DATASET):
            store_scenarios.whole(store, 2)
    else:
        collect(store, DATASET, keep_last=1)


def was_checked(operation: Operation) -> bool:
    """Return whether the process has just made sure of its lease for an operation that harms without it.

    A request that arrives minutes after it was sent is beyond any store that has no locks: what it leaves is
    reported, and mended by the next run.
    """
    removes = operation.name == "delete" and operation.key.endswith(ENTRY)
    return removes or (operation.name == "create" and "/registry/versions/" in operation.key)


def paused(bench: Bench, operation: Operation) -> list[str]:
    """Return what goes wrong when the process stops before an operation until its leases have ended."""
    objects, here, elsewhere = bench.before.copy(), bench.folder / "here", bench.folder / "elsewhere"
    other = machine(objects, bench.clock, elsewhere)
    objects.forget()

    def pause(current: Operation) -> None:
        if current.number == operation.number:
            objects.before = nothing
            bench.clock.outlive()
            meanwhile(other, bench.story)

    objects.before = pause
    with suppress(IdxflowError, Overtaken):
        bench.tell(objects, here)
    bench.clock.outlive()
    reader = machine(objects, bench.clock, elsewhere)
    wrong = [] if was_checked(operation) else problems(reader, bench.story, bench.champions | {2})
    wrong += incomplete(reader)
    store_scenarios.COMMANDS[bench.story.command](reader)
    if bench.story.command == "tidy":
        store_scenarios.whole(reader, 2)
    wrong += [f"after running again: {finding.where}: {finding.problem}" for finding in verify(reader).damage]
    for place in (here, elsewhere):
        shutil.rmtree(place, ignore_errors=True)
    return [f"{operation.name} {operation.number} ({operation.key}): {problem}" for problem in wrong]


@pytest.mark.parametrize("name", PAUSED)
def test_a_pause_at_any_request_harms_nothing(folder: Path, name: str):
    bench = bench_of(folder, PAUSED[name])
    wrong = [problem for operation in bench.operations for problem in paused(bench, operation)]
    assert not wrong, "\n".join(wrong)
