"""What is small and JSON needs no folder: registry, ledger and released rows in objects that are only put if absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import released
from storage.errors import DamagedEntry
from storage.ledger import Ledger
from storage.registry import Registry
from storage.store import Store
from tests.support.memory_objects import MemoryObjects, MemoryStore, Stopped, stopping_at
from tests.support.stores import DATASET, retrain

ROWS = {letter * 32: f"train, row {number}" for number, letter in enumerate("abc")}


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def remote(tmp_path: Path, objects: MemoryObjects) -> Store:
    return MemoryStore(tmp_path / "store", objects)


def test_an_operation_that_is_stopped_did_not_happen_or_its_answer_is_lost(objects: MemoryObjects):
    objects.before = stopping_at(2)
    assert objects.create("a/b", b"1")
    with pytest.raises(Stopped):
        objects.create("a/c", b"2")
    objects.before, objects.after = lambda _: None, stopping_at(3)
    with pytest.raises(Stopped):
        objects.put("a/b", b"3")
    assert objects.contents() == {"a/b": b"3"}
    assert [(operation.name, operation.key) for operation in objects.operations] == [
        ("create", "a/b"),
        ("create", "a/c"),
        ("put", "a/b"),
    ]
    assert not objects.create("a/b", b"4")
    assert (objects.list("").folders, objects.list("").objects) == (("a",), ())
    assert [found.key for found in objects.list("a").objects] == [found.key for found in objects.walk("")] == ["a/b"]


def test_registry_and_ledger_are_in_the_objects_alone(remote: Store, objects: MemoryObjects):
    for number in (1, 2):
        retrain(remote, number)
    assert {key.rpartition("/")[0] for key in objects.contents()} == {
        "",
        *("tiny/registry", "tiny/registry/versions", "tiny/ledger/runs", "tiny/ledger/decisions"),
    }
    assert not [path for path in remote.root.rglob("*.json") if {"registry", "ledger"} & {*path.parts}]
    elsewhere = MemoryStore(remote.root.with_name("another machine"), objects)
    assert Registry(elsewhere, DATASET).champion() == Registry(remote, DATASET).version(2)
    assert [run["run"] for run in Ledger(elsewhere, DATASET).read("runs")] == ["run-1", "run-2"]


def test_messages_say_where_an_object_is(remote: Store, objects: MemoryObjects):
    key = Ledger(remote, DATASET).append("runs", "run", {})
    objects.put(key, b"{}")
    with pytest.raises(
        DamagedEntry, match=r"^memory://bucket/store/tiny/ledger/runs/00000001-run\.json: expected a re"
    ):
        Ledger(remote, DATASET).read("runs")


def test_rows_released_at_the_same_time_are_all_released(remote: Store, objects: MemoryObjects):
    first, second, third = ROWS

    def another_person(_: object) -> None:
        objects.before = lambda _: None
        assert released.release(remote, DATASET, {second: "by another person"}) == 1

    objects.before = another_person
    assert released.release(remote, DATASET, {first: ROWS[first], third: ROWS[third]}) == 2
    assert released.read(remote, DATASET) == (first, second, third)
    assert released.release(remote, DATASET, ROWS) == 0
    assert released.take_back(remote, DATASET, [second, "f" * 32]) == 1
    assert released.read(remote, DATASET) == (first, third)
    assert objects.contents()[f"tiny/released/{first}"] == b"train, row 0\n"
    assert released.where(remote, DATASET) == "memory://bucket/store/tiny/released"
