"""Registry and ledger: numbers without gaps, a pointer that always names something whole."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.errors import DamagedEntry, StoreError
from storage.files import put_json_if_absent, read_json, sealed
from storage.index import Index
from storage.ledger import Ledger
from storage.registry import Registry, line, turns
from storage.store import Store
from tests.support import commands
from tests.support.stores import decide, decided_in_format_3, pointed_in_format_3, promote


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store, "tiny")


def register(registry: Registry, name: str = "a", weights: str = "w"):
    return registry.register(
        model=f"model-{name}",
        evaluation=f"evaluation-{name}",
        weights_digest=weights,
        test_digest="t",
        test_accuracy=0.9,
        train_accuracy=0.95,
        classes=("x", "y"),
        image_shape=(2, 2),
        run="r",
    )


def test_versions_are_numbered_from_one(registry: Registry):
    assert [register(registry, name).number for name in "abc"] == [1, 2, 3]
    assert [v.model for v in registry.versions()] == ["model-a", "model-b", "model-c"]


def test_the_same_model_keeps_its_number(registry: Registry):
    assert register(registry, "a") == register(registry, "a")
    assert registry.find("model-a", "evaluation-a") == registry.version(1)
    assert registry.find("model-a", "evaluation-b") is None


def test_what_is_there_is_never_replaced(tmp_path: Path):
    path = tmp_path / "00000001.json"
    assert put_json_if_absent(path, {"run": "first"})
    assert not put_json_if_absent(path, {"run": "second"})
    assert read_json(path) == {"run": "first"}
    assert list(tmp_path.iterdir()) == [path]


def test_no_champion_before_the_first_promotion(registry: Registry):
    assert registry.champion() is None


def test_the_champion_is_what_was_promoted_last(registry: Registry):
    for name in "ab":
        promote(registry, register(registry, name).number)
    assert registry.champion() == registry.version(2)


@pytest.mark.remedies("storage.registry:version")
def test_a_version_that_is_not_there_cannot_be_promoted(registry: Registry):
    number = register(registry).number
    with pytest.raises(StoreError, match="found none; `idxflow registry history tiny .*` lists the versions"):
        promote(registry, number + 1)
    assert registry.champion() is None
    promote(registry, number)
    assert registry.champion()


@pytest.mark.remedies("storage.registry:_read")
def test_a_version_that_cannot_be_read_is_restored(registry: Registry, store: Store):
    number = register(registry).number
    (path,) = (store.dataset("tiny") / "registry" / "versions").iterdir()
    backup = path.read_bytes()
    path.write_bytes(backup[:-9])
    with pytest.raises(DamagedEntry, match=r"expected a version manifest; .*; restore it from a backup"):
        registry.version(number)
    path.write_bytes(backup)
    assert registry.version(number).number == number


@pytest.mark.remedies("storage.registry:_unreadable")
@pytest.mark.parametrize("text", ["", "{", "[]", '{"number": 1}'])
def test_a_damaged_pointer_of_format_3_is_said(registry: Registry, store: Store, text: str):
    register(registry)
    decided_in_format_3(store, "tiny", "r", FIRST)
    (store.dataset("tiny") / "registry" / "champion.json").write_text(text)
    with pytest.raises(DamagedEntry, match=r'champion\.json: expected .*write \{"version": NUMBER\} there'):
        registry.champion()
    (store.dataset("tiny") / "registry" / "champion.json").write_text('{"version": 1}')
    assert registry.champion().number == 1


def test_threads_take_different_numbers(registry: Registry):
    with ThreadPoolExecutor(10) as pool:
        versions = list(pool.map(lambda n: register(registry, str(n)), range(20)))
    assert sorted(v.number for v in versions) == list(range(1, 21))


PROCESS = """
import pathlib, sys
from storage.registry import Registry
from storage.store import Store
from tests.support.stores import decide, decided_in_format_3, pointed_in_format_3, promote
from tests.storage.test_registry import register
print(register(Registry(Store(pathlib.Path(sys.argv[1])), "tiny"), sys.argv[2]).number)
"""


def test_processes_take_different_numbers(store: Store):
    root = Path(__file__).resolve().parents[2]
    started = [
        subprocess.Popen(
            [*commands.python(), "-c", PROCESS, str(store.root), str(n)],
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        for n in range(6)
    ]
    assert sorted(int(p.communicate()[0]) for p in started) == [1, 2, 3, 4, 5, 6]


def test_the_ledger_keeps_order_and_never_changes_a_record(store: Store):
    ledger = Ledger(store, "tiny")
    keys = [ledger.append("runs", f"run-{n}", {"n": n}) for n in range(5)]
    assert [r["n"] for r in ledger.read("runs")] == [0, 1, 2, 3, 4]
    assert ledger.read("decisions") == []
    assert json.loads((store.root / keys[0]).read_text())["run"] == "run-0"


@pytest.mark.remedies("storage.ledger:_read")
@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_record_is_said(store: Store, text: str, tmp_path: Path):
    ledger = Ledger(store, "tiny")
    record = store.root / ledger.append("runs", "run-1", {})
    record.write_text(text)
    for read in (ledger.read, ledger.last):
        with pytest.raises(DamagedEntry, match=r"run-1\.json: expected a record of the ledger"):
            read("runs")
    record.rename(tmp_path / "moved")
    assert ledger.read("runs") == []


def decision(outcome: str, before: int | None, after: int | None) -> dict:
    return {"outcome": outcome, "previous": before, "champion": after, "time": "2026-05-01T09:00:00+00:00"}


FIRST, SECOND = decision("promoted", None, 1), decision("promoted", 1, 2)
BACK = decision("rolled back", 2, 1)

HISTORIES = {
    "nothing": ([], None, [], []),
    "all carried out": ([FIRST, SECOND], 2, [True, True], [1, 2]),
    "refused before any champion": ([decision("refused", None, None)], None, [True], []),
    "the first killed": ([FIRST], None, [False], []),
    "the last killed": ([FIRST, SECOND], 1, [True, False], [1]),
    "killed and decided again": ([FIRST, SECOND, SECOND], 2, [True, False, True], [1, 2]),
    "killed, then kept": ([FIRST, SECOND, decision("kept", 1, 1)], 1, [True, False, True], [1]),
    "rolled back": ([FIRST, SECOND, BACK], 1, [True, True, True], [1]),
    "rollback killed": ([FIRST, SECOND, BACK], 2, [True, True, False], [1, 2]),
    "rolled back, then on": ([FIRST, SECOND, BACK, decision("promoted", 1, 3)], 3, [True] * 4, [1, 3]),
    "forced back and forth": ([FIRST, SECOND, decision("forced", 2, 1)], 1, [True] * 3, [1, 2, 1]),
    "rolled back to the nearer one": (
        [FIRST, SECOND, decision("forced", 2, 1), decision("promoted", 1, 3), decision("rolled back", 3, 1)],
        1,
        [True] * 5,
        [1, 2, 1],
    ),
}


@pytest.mark.parametrize(("decisions", "pointer", "carried_out", "led_here"), HISTORIES.values(), ids=HISTORIES)
def test_history_claims_only_what_was_carried_out(
    decisions: list[dict], pointer: int | None, carried_out: list[bool], led_here: list[int]
):
    history = turns(decisions, pointer)
    assert [turn.took_effect for turn in history] == carried_out
    assert line(history) == led_here


@pytest.mark.remedies("storage.registry:_turn")
@pytest.mark.parametrize("time", [None, "yesterday", 7])
def test_a_decision_without_a_time_is_damage(registry: Registry, store: Store, tmp_path: Path, time: object):
    register(registry)
    pointed_in_format_3(store, "tiny", 1)
    decided_in_format_3(store, "tiny", "run", FIRST)
    second = decided_in_format_3(store, "tiny", "run", SECOND)
    values = read_json(second)
    second.write_bytes(sealed({**values, "time": time}))
    with pytest.raises(DamagedEntry, match="to have a time; .* move it out of the ledger"):
        registry.history()
    second.rename(tmp_path / "moved")
    assert registry.history()


@pytest.mark.parametrize(("listing", "history"), [("names", Registry.history), ("records", Registry.outline)])
def test_a_history_of_format_3_never_misses_the_decision_behind_the_pointer(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch, listing: str, history: Callable
):
    """A promotion between reading the ledger and reading the pointer would look like one without a record."""
    owner = Ledger if listing == "names" else Index
    read = getattr(owner, listing)
    for name in "ab":
        register(registry, name)
    decided_in_format_3(store, "tiny", "run-1", FIRST)
    pointed_in_format_3(store, "tiny", 1)

    def overtaken(self: Ledger | Index, *names: str) -> object:
        records = read(self, *names)
        if read_json(store.root / registry.pointer)["version"] == 1:
            pointed_in_format_3(store, "tiny", 2)
            decided_in_format_3(store, "tiny", "run-2", SECOND)
        return records

    monkeypatch.setattr(owner, listing, overtaken)
    assert [(turn.after, turn.took_effect) for turn in history(registry)] == [(1, True), (2, True)]


@pytest.mark.parametrize(
    ("digest", "after", "version"),
    [("one", BACK, 1), ("two", BACK, 2), ("three", BACK, None), ("two", decision("kept", 2, 2), None)],
)
def test_what_a_person_decided_stands_against_every_model_there_was_then(
    registry: Registry, store: Store, digest: str, after: dict, version: int | None
):
    for name in ("one", "two"):
        register(registry, name, name)
    for record in (FIRST, SECOND, after):
        decide(registry, record["outcome"], record["champion"], newest=2)
    register(registry, "three", "three")
    settled = registry.manual_decision_about(digest)
    assert (settled[0].number if settled else None) == version
    assert settled is None or settled[1].outcome == "rolled back"


@pytest.mark.remedies("storage.registry:_pointed")
def test_a_pointer_of_format_3_to_a_version_that_is_gone_is_damage(registry: Registry, store: Store):
    for name in "ab":
        register(registry, name)
    decided_in_format_3(store, "tiny", "run", SECOND)
    pointed_in_format_3(store, "tiny", 2)
    path = store.dataset("tiny") / "registry" / "versions" / "00000002.json"
    backup = path.read_bytes()
    path.unlink()
    refusal = f"found 2; restore {path} from a backup, or write .* of another one there"
    for read in (registry.champion, registry.history):
        with pytest.raises(DamagedEntry, match=refusal):
            read()
    path.write_bytes(backup)
    assert registry.champion().number == 2
    path.unlink()
    (store.dataset("tiny") / "registry" / "champion.json").write_text('{"version": 1}')
    assert registry.champion().number == 1


def test_deciding_waits_and_says_so(registry: Registry):
    events: list[str] = []

    def second() -> None:
        with registry.deciding(lambda: events.append("waiting")):
            events.append("decided")

    with ThreadPoolExecutor(1) as pool:
        with registry.deciding():
            waiting = pool.submit(second)
            while not events:
                assert not waiting.done()
            events.append("released")
        waiting.result(240)
    assert events == ["waiting", "released", "decided"]
