"""Decisions are numbered: of those who decide at once, one is first, and the others look and judge again."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from flows import promotion
from flows.dataset_in_store import DatasetInStore
from storage.errors import DamagedEntry, StoreError
from storage.files import sealed
from storage.ledger import Ledger
from storage.objects import sealed as sealed_object
from storage.registry import NO_RUN, Overtaken, Registry, Standing, line
from storage.retention import collect
from storage.store import Store
from storage.store_format import FORMAT, STORE_FILE
from storage.verify import verify
from tests.support import commands, store_scenarios
from tests.support.memory_objects import MemoryObjects, MemoryStore, Operation, Stopped, nothing
from tests.support.servers import ROOT
from tests.support.stores import DATASET, decide, decided_in_format_3, pointed_in_format_3, promote, retrain


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def remote(tmp_path: Path, objects: MemoryObjects) -> Store:
    """A store without locks, with three versions; the second is the champion."""
    store = MemoryStore(tmp_path / "store", objects)
    for number in (1, 2, 3):
        retrain(store, number, promoted=number < 3)
    objects.forget()
    return store


def assert_unbroken(store: Store, decisions: int) -> None:
    """Check that the numbers have no gap, and that each decision found the champion of the one before."""
    ledger = Ledger(store, DATASET)
    assert ledger.names("decisions") == [f"{number:08d}.json" for number in range(1, decisions + 1)]
    for before, after in pairwise(ledger.read("decisions")):
        assert after["previous"] == before["champion"]
    assert Registry(store, DATASET).standing() == Standing(decisions, ledger.read("decisions")[-1]["champion"])


def test_a_decision_names_what_it_found_and_takes_effect_at_once(remote: Store, objects: MemoryObjects):
    registry = Registry(remote, DATASET)
    registry.carry_out({"outcome": "forced", "version": 3, "previous": 2, "champion": 3}, NO_RUN, 3)
    record = Ledger(remote, DATASET).read("decisions")[-1]
    assert {name: record[name] for name in ("run", "previous", "champion", "format")} == {
        "run": NO_RUN,
        "previous": 2,
        "champion": 3,
        "format": FORMAT,
    }
    assert len({decision["nonce"] for decision in Ledger(remote, DATASET).read("decisions")}) == 4
    assert sealed_object.read(objects, registry.pointer) == {"decision": 4, "version": 3}
    assert [turn.took_effect for turn in registry.history()] == [True] * 4
    assert registry.decision_of("run-2")["version"] == 2
    assert registry.decision_of("run-9") is None
    assert_unbroken(remote, 4)


def hint_gone(objects: MemoryObjects, pointer: str) -> None:
    objects.delete([pointer])


def hint_damaged(objects: MemoryObjects, pointer: str) -> None:
    objects.put(pointer, b"{")


def hint_behind(objects: MemoryObjects, pointer: str) -> None:
    objects.put(pointer, sealed({"decision": 1, "version": 1}))


def hint_of_format_3(objects: MemoryObjects, pointer: str) -> None:
    objects.put(pointer, sealed({"version": 1, "run": "run", "time": ""}))


def hint_of_another_kind(objects: MemoryObjects, pointer: str) -> None:
    objects.put(pointer, sealed({"decision": "one", "version": 1}))


@pytest.mark.parametrize("spoil", [hint_gone, hint_damaged, hint_behind, hint_of_format_3, hint_of_another_kind])
def test_a_hint_that_is_of_no_use_costs_only_time(
    remote: Store, objects: MemoryObjects, spoil: Callable[[MemoryObjects, str], None]
):
    registry = Registry(remote, DATASET)
    spoil(objects, registry.pointer)
    assert registry.champion().number == 2
    assert [turn.after for turn in registry.outline()] == [1, 2, 2]
    promote(Registry(remote, DATASET), 3)
    assert sealed_object.read(objects, registry.pointer) == {"decision": 4, "version": 3}
    assert_unbroken(remote, 4)


@pytest.mark.remedies("storage.registry:_create")
@pytest.mark.parametrize("mend", ["restore", "remove"])
def test_a_hint_to_a_decision_that_is_gone_is_damage(remote: Store, objects: MemoryObjects, mend: str):
    registry = Registry(remote, DATASET)
    promote(registry, 3)
    key = registry.ledger.decision_key(4)
    backup = objects.get(key)
    objects.delete([key])
    with pytest.raises(DamagedEntry, match=f"restore memory://.*/{key} from a backup, or remove this file to go on"):
        promote(Registry(remote, DATASET), 1)
    if mend == "restore":
        objects.put(key, backup)
    else:
        objects.delete([registry.pointer])
    assert Registry(remote, DATASET).champion().number == (3 if mend == "restore" else 2)
    promote(Registry(remote, DATASET), 1)
    assert Registry(remote, DATASET).champion().number == 1


@pytest.mark.remedies("storage.registry:champion")
@pytest.mark.parametrize("mend", ["restore", "promote"])
def test_a_champion_that_is_gone_is_damage(store: Store, mend: str):
    for number in (1, 2):
        store_scenarios.whole(store, number)
    path = store.dataset(DATASET) / "registry" / "versions" / "00000002.json"
    backup = path.read_bytes()
    path.unlink()
    with pytest.raises(DamagedEntry, match=f"found 2; restore {path} from a backup, or .*`idxflow promote tiny NUMBER"):
        Registry(store, DATASET).champion()
    assert [finding.where for finding in verify(store).damage] == [str(path)]
    if mend == "restore":
        path.write_bytes(backup)
    else:
        promotion.promote(DatasetInStore(store, DATASET), "1", True, "version 2 is lost")
    assert Registry(store, DATASET).champion().number == (2 if mend == "restore" else 1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_that_is_overtaken_at_any_moment_decides_after_the_other(tmp_path: Path, when: str):
    """Before or after each operation of the one, the other decides; so they meet in every order there is."""
    model = MemoryObjects()
    retrain(MemoryStore(tmp_path / "store", model), 1)
    orders, moment, met = set(), 0, True
    while met:
        moment += 1
        objects = model.copy()
        store = MemoryStore(tmp_path / "store", objects)
        met, overtaken = deciding_at(store, objects, when, moment)
        outcomes = [decision["outcome"] for decision in Ledger(store, DATASET).read("decisions")]
        assert_unbroken(store, len(outcomes))
        assert outcomes in (["promoted", "mine", "other"], ["promoted", "other", "mine"]) if met else len(outcomes) == 2
        assert overtaken <= (outcomes[-1] == "mine")
        orders |= {(outcomes[-1], overtaken)}
    assert {("mine", 1), ("other", 0)} <= orders


def deciding_at(store: Store, objects: MemoryObjects, when: str, moment: int) -> tuple[bool, int]:
    """Decide, and let another process decide at an operation by its number; return if it did, and who was overtaken."""
    met, overtaken = False, 0

    def other(operation: Operation) -> None:
        nonlocal met
        if operation.number == moment:
            met, objects.before, objects.after = True, nothing, nothing
            decide(Registry(store, DATASET), "other", 1)

    setattr(objects, when, other)
    while True:
        try:
            decide(Registry(store, DATASET), "mine", 1)
            break
        except Overtaken:
            overtaken += 1
    objects.before = objects.after = nothing
    return met, overtaken


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_killed_at_any_operation_has_decided_or_has_not(tmp_path: Path, when: str):
    model = MemoryObjects()
    for number in (1, 2):
        retrain(MemoryStore(tmp_path / "store", model), number, promoted=number == 1)
    ended, number = set(), 0
    while True:
        number += 1
        objects = model.copy()
        store = MemoryStore(tmp_path / "store", objects)

        def stop(operation: Operation, number: int = number) -> None:
            if operation.number == number:
                raise Stopped

        setattr(objects, when, stop)
        try:
            promote(Registry(store, DATASET), 2)
        except Stopped:
            pass
        else:
            break
        objects.before = objects.after = nothing
        registry = Registry(store, DATASET)
        ended.add(registry.champion().number)
        assert all(turn.took_effect for turn in registry.history())
        assert verify(store).findings == ()
        assert_unbroken(store, len(registry.history()))
        promote(registry, 1)
        assert_unbroken(store, len(registry.history()))
    assert ended == {1, 2}


DECIDER = """
import sys
from contextlib import nullcontext
from pathlib import Path
from storage.registry import Overtaken, Registry
from storage.store import Store
from tests.support.stores import DATASET, decide
Store.alone = lambda *_: nullcontext()
registry, overtaken = Registry(Store(Path(sys.argv[1])), DATASET), 0
for number in range(5):
    while True:
        try:
            decide(registry, "forced", 1 + (int(sys.argv[2]) + number) % 2, f"run-{sys.argv[2]}-{number}")
            break
        except Overtaken:
            overtaken += 1
print(overtaken)
"""


def test_ten_processes_without_a_lock_make_an_unbroken_chain(store: Store):
    for number in (1, 2):
        retrain(store, number)
    command = [*commands.python(), "-c", DECIDER, str(store.root)]
    started = [
        subprocess.Popen([*command, str(n)], cwd=ROOT, stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)})
        for n in range(10)
    ]
    assert [(process.communicate(timeout=240)[1], process.returncode) for process in started] == [(None, 0)] * 10
    assert_unbroken(store, 52)
    runs = [decision["run"] for decision in Ledger(store, DATASET).read("decisions")[2:]]
    assert sorted(runs) == sorted(f"run-{n}-{number}" for n in range(10) for number in range(5))
    assert all(turn.took_effect for turn in Registry(store, DATASET).history())
    assert verify(store).findings == ()


def meanwhile(objects: MemoryObjects, act: Callable[[], object]) -> None:
    """Let something happen just before the next decision is created."""

    def before(operation: Operation) -> None:
        if operation.name == "create" and "/decisions/" in operation.key:
            objects.before = nothing
            act()

    objects.before = before


@pytest.fixture
def models(tmp_path: Path, objects: MemoryObjects) -> Store:
    """A store without locks, with three models, as tasks make them; the second is the champion, after the first."""
    store = MemoryStore(tmp_path / "models", objects)
    for model in store_scenarios.MODELS:
        store_scenarios.make_model(store, model)
        store_scenarios.make_evaluation(store, model)
    store_scenarios.register(store, 3)
    for model in (1, 2):
        store_scenarios.choose(store, model)
        store_scenarios.note_run(store)
    return store


def test_a_rollback_to_a_version_that_is_retired_meanwhile_is_refused(models: Store, objects: MemoryObjects):
    data = DatasetInStore(models, DATASET)
    # `gc` keeps the champions that a rollback can return to; a person can force any version.
    meanwhile(objects, lambda: collect(models, DATASET, keep_last=1))
    with pytest.raises(StoreError, match="that of version 1 was removed by `idxflow gc`"):
        promotion.promote(data, "1", True, "the best one")
    assert data.registry.champion().number == 3
    assert verify(models).findings == ()


def test_what_became_champion_meanwhile_is_not_retired(models: Store, objects: MemoryObjects):
    registry = Registry(models, DATASET)
    meanwhile(objects, lambda: promote(Registry(models, DATASET), 1))
    collected = collect(models, DATASET, keep_last=1)
    assert (collected.busy, collected.retired, registry.champion().number) == (False, (), 1)
    assert verify(models).findings == ()


def test_a_manual_decision_that_is_overtaken_is_judged_again(models: Store, objects: MemoryObjects, capsys):
    data = DatasetInStore(models, DATASET)
    meanwhile(objects, lambda: promote(Registry(models, DATASET), 1))
    decision = promotion.roll_back(data, "previous", "worse")
    assert (decision["previous"], decision["champion"]) == (1, 3)
    assert "tiny: another process has decided about the champion meanwhile" in capsys.readouterr().err
    assert line(Registry(models, DATASET).outline()) == [2, 3]


def test_retired_versions_are_in_the_ledger_and_in_no_history(models: Store):
    registry = Registry(models, DATASET)
    registry.retire([1], registry.standing())
    registry.retire([1], registry.standing())
    record = Ledger(models, DATASET).read("decisions")[-1]
    assert {name: record[name] for name in ("outcome", "versions", "previous", "champion", "run")} == {
        "outcome": "retired",
        "versions": [1],
        "previous": 3,
        "champion": 3,
        "run": "gc",
    }
    assert_unbroken(models, 3)
    assert [turn.outcome for turn in registry.history()] == ["promoted"] * 2
    assert [turn.outcome for turn in registry.outline()] == ["promoted"] * 2
    assert [decision["outcome"] for decision in registry.decisions()] == ["promoted"] * 2
    assert registry.retired(registry.version(1))
    registry.restore(registry.version(1), "run-9")
    registry.restore(registry.version(1), "run-9")
    assert not registry.retired(registry.version(1))
    assert_unbroken(models, 4)
    assert registry.decision_of("run-9") is None


@pytest.fixture
def earlier(store: Store) -> Store:
    """A store in which format 3 has recorded three decisions; the last one did not take effect."""
    for number in (1, 2, 3):
        retrain(store, number, promoted=False)
    for path in (store.dataset(DATASET) / "ledger" / "decisions").iterdir():
        path.unlink()
    for number in (1, 2, 3):
        record = {"outcome": "promoted", "version": number, "previous": number - 1 or None, "champion": number}
        decided_in_format_3(store, DATASET, f"run-{number}", record)
    pointed_in_format_3(store, DATASET, 2)
    (store.root / STORE_FILE).write_bytes(sealed({"format": 3, "idxflow": "0.1.0"}))
    return store


def test_the_pointer_of_format_3_counts_until_the_first_decision(earlier: Store):
    registry = Registry(earlier, DATASET)
    assert registry.standing() == Standing(6, 2)
    assert [turn.took_effect for turn in registry.outline()] == [True, True, False]
    decide(registry, "rolled back", 1)
    assert registry.standing() == Standing(7, 1)
    for history in (registry.outline(), registry.history()):
        assert [(turn.after, turn.took_effect) for turn in history] == [(1, True), (2, True), (3, False), (1, True)]
    assert sealed_object.read(earlier.objects, STORE_FILE)["format"] == FORMAT
    pointed_in_format_3(earlier, DATASET, 3)
    assert registry.champion().number == 1, "no other decision was made"
    assert {Path(finding.where).name for finding in verify(earlier).findings} == {"champion.json"}
    Ledger(earlier, DATASET).append("runs", "run-4", {})
    assert Ledger(earlier, DATASET).names("runs")[-1] == "00000007-run-4.json"


def test_a_decision_judged_after_an_older_one_is_overtaken(remote: Store):
    registry = Registry(remote, DATASET)
    decision = {"outcome": "forced", "version": 3, "previous": 2, "champion": 3}
    for after in (0, 2):
        with pytest.raises(Overtaken):
            registry.carry_out(decision, NO_RUN, after)
    assert_unbroken(remote, 3)


REQUESTS: dict[str, tuple[Callable[[Registry], object], dict[str, int], dict[str, int]]] = {
    "champion": (Registry.champion, {"get": 3}, {"get": 3}),
    "find": (lambda registry: registry.find("none", "such"), {"list": 1, "get": 3}, {"list": 1}),
    "decisions": (Registry.decisions, {"list": 1, "get": 3}, {"list": 1}),
    "manual decision": (lambda registry: registry.manual_decision_about("w"), {"list": 1, "get": 3}, {"list": 1}),
    "restore": (
        lambda registry: registry.restore(registry.version(1), "r"),
        {"list": 1, "get": 6},
        {"list": 1, "get": 3},
    ),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_how_many_requests_it_takes(tmp_path: Path, remote: Store, objects: MemoryObjects, what: str):
    ask, cold, warm = REQUESTS[what]
    for root, expected in ((tmp_path / "another machine", cold), (tmp_path / "another machine", warm)):
        objects.forget()
        ask(Registry(MemoryStore(root, objects), DATASET))
        assert dict(objects.counts) == expected
