"""Any order of runs, crashes, damage, rollbacks and collecting: the store is always what a plain model says it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storage.errors import DamagedEntry, StoreError
from storage.registry import NO_RUN, Registry, line
from storage.retention import collect
from storage.store import FOLDERS, Plan, Store
from storage.verify import verify
from tests.support.stores import DATASET, Thing, add, decide, retrain

STEPS = ("decode", "train", "evaluate", "publish")
SUBJECTS = {"decode": "train"}
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where flushing to the disk costs nothing: a power loss is not what this is about."""
NUMBERS = st.integers(1, 4)


def plan_of(step: str, number: int) -> Plan:
    """Return the plan of an entry, as `tests.support.stores.retrain` has it."""
    name = f"run-{number}" if step == "publish" else ""
    return Plan(DATASET, step, SUBJECTS.get(step, ""), parameters={"number": number}, name=name)


class Crash(BaseException):
    """A process that ends in the middle, as far as one process can show it."""


def crashing(folder: Path) -> Thing:
    (folder / "half.bin").write_bytes(b"half")
    raise Crash


class StoreMachine(RuleBasedStateMachine):
    """Runs are named by a number: the same number is the same configuration and the same model."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="idxflow-machine-", dir=MEMORY))
        self.store = Store(self.folder / "store")
        self.store.prepare()
        self.registry = Registry(self.store, DATASET)
        self.versions: dict[int, int] = {}
        """Version of each number, in the order they were registered."""
        self.champions: list[int] = []
        """The numbers of the champions that led to the present one."""
        self.runs: list[int] = []
        """The number of each run, oldest first."""
        self.whole: set[tuple[str, int]] = set()
        """Entries that are there and undamaged: step and number."""
        self.damaged: set[tuple[str, int]] = set()
        self.left_over: set[tuple[str, int]] = set()
        self.collected: set[int] = set()
        """The numbers of the versions whose model was removed, and not made again by a run that came to a decision."""

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @property
    def champion(self) -> int | None:
        return self.champions[-1] if self.champions else None

    @property
    def entries(self) -> set[tuple[str, int]]:
        return self.whole | self.damaged

    @rule(number=NUMBERS, promoted=st.booleans())
    def run(self, number: int, promoted: bool) -> None:
        """A run from the beginning to the end, the first or the same again: it mends whatever it needs."""
        version = retrain(self.store, number, promoted)
        self.versions.setdefault(number, len(self.versions) + 1)
        assert version.number == self.versions[number]
        self._mark_whole(number, STEPS)
        self.collected.discard(number)
        self.runs.append(number)
        if promoted and number != self.champion:
            self.champions.append(number)

    @rule(number=NUMBERS, steps=st.integers(0, 3))
    def crash(self, number: int, steps: int) -> None:
        """A run that ends while it makes its next step; what it did before is kept."""
        for step in STEPS[:steps]:
            add(self.store, step, number, SUBJECTS.get(step, ""))
        self._mark_whole(number, STEPS[:steps])
        step = STEPS[steps]
        try:
            self.store.get_or_make(plan_of(step, number), Thing, crashing, str)
        except Crash:
            assert (step, number) not in self.whole
            self.left_over.add((step, number))
        else:
            assert (step, number) in self.whole

    def _mark_whole(self, number: int, steps: tuple[str, ...]) -> None:
        entries = {(step, number) for step in steps}
        self.left_over -= entries
        self.whole |= entries
        self.damaged -= entries

    @precondition(lambda self: self.whole)
    @rule(data=st.data(), how=st.sampled_from(("flip", "cut", "remove", "add", "empty entry.json")))
    def damage(self, data: st.DataObject, how: str) -> None:
        step, number = data.draw(st.sampled_from(sorted(self.whole)))
        folder = self._folder(step, number)
        path = folder / ("entry.json" if how == "empty entry.json" else "data.bin")
        path.chmod(0o644)
        if how == "flip":
            path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
        elif how == "remove":
            path.unlink()
        elif how == "add":
            (folder / "foreign.bin").touch()
        else:
            path.write_bytes(path.read_bytes()[:-1] if how == "cut" else b"")
        self.whole.remove((step, number))
        self.damaged.add((step, number))

    @precondition(lambda self: len(self.champions) > 1)
    @rule()
    def roll_back(self) -> None:
        """To the champion before, as the command does."""
        self._decide("rolled back", self.champions[-2])
        self.champions.pop()

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def force(self, data: st.DataObject) -> None:
        """By hand, whatever the gate said; refused where the model was collected."""
        number = data.draw(st.sampled_from(sorted(self.versions)))
        if number in self.collected:
            with pytest.raises(StoreError, match="removed by `idxflow gc`"):
                decide(self.registry, "forced", self.versions[number], NO_RUN)
        elif number != self.champion:
            self._decide("forced", number)
            self.champions.append(number)

    def _decide(self, outcome: str, number: int) -> None:
        with self.registry.deciding():
            decide(self.registry, outcome, self.versions[number], NO_RUN)

    @precondition(lambda self: self.runs)
    @rule(keep_last=st.integers(1, 2))
    def collect(self, keep_last: int) -> None:
        collection = collect(self.store, DATASET, keep_last)
        assert not collection.busy
        models = {*self.champions, *list(self.versions)[-keep_last:]}
        kept_runs = models | set(self.runs[-keep_last:])
        removed = {(step, number) for step, number in self.entries if number not in kept_runs}
        retired = {n for step, n in removed if step in ("train", "evaluate") and n in self.versions}
        assert {(entry.name.folder, entry.name.key) for entry in collection.entries} == {
            self._place(*entry) for entry in removed
        }
        assert set(collection.retired) == {self.versions[n] for n in retired}
        self.collected |= retired
        self.whole -= removed
        self.damaged -= removed
        self.left_over.clear()

    def _folder(self, step: str, number: int) -> Path:
        return self.store.dataset(DATASET).joinpath(*self._place(step, number))

    def _place(self, step: str, number: int) -> tuple[str, str]:
        return FOLDERS[step], plan_of(step, number).folder

    @invariant()
    def the_champion_is_the_one_of_the_model(self) -> None:
        champion = self.registry.champion()
        assert (champion and champion.number) == self.versions.get(self.champion)
        assert line(self.registry.history()) == [self.versions[number] for number in self.champions]

    @invariant()
    def versions_are_never_renumbered(self) -> None:
        numbers = {version.run: version.number for version in self.registry.versions()}
        assert numbers == {f"run-{number}": version for number, version in self.versions.items()}

    @invariant()
    def verify_finds_what_was_damaged_and_nothing_else(self) -> None:
        verdict = verify(self.store)
        assert {Path(finding.where) for finding in verdict.damage} == {self._folder(*entry) for entry in self.damaged}
        places = {self._place(*entry) for entry in self.left_over}
        assert {(Path(f.where).parent.name, Path(f.where).name) for f in verdict.leftovers} == {
            (part, f".{name}.partial") for part, name in places
        }
        assert verdict.versions == len(self.versions)
        assert verdict.entries == len(self.entries)

    @invariant()
    def what_is_whole_is_found_again_and_what_is_damaged_is_not_used(self) -> None:
        for step, number in self.whole:
            assert self.store.get(DATASET, step, self._folder(step, number).name, Thing).entry.folder.is_dir()
        for step, number in self.damaged:
            with pytest.raises(DamagedEntry):
                self.store.get(DATASET, step, self._folder(step, number).name, Thing)


def test_any_order_of_events_leaves_the_store_that_the_model_predicts():
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
