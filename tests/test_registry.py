"""Registry and ledger: numbers without gaps, a pointer that always names something whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.errors import DamagedEntry, StoreError
from storage.ledger import Ledger
from storage.registry import Registry
from storage.store import Store


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store, "tiny")


def register(registry: Registry, name: str = "a"):
    return registry.register(
        model=f"model-{name}",
        evaluation=f"evaluation-{name}",
        weights_digest="w",
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


def test_no_champion_before_the_first_promotion(registry: Registry):
    assert registry.champion() is None


def test_the_champion_is_what_was_promoted_last(registry: Registry):
    for name in "ab":
        registry.promote(register(registry, name).number, "r")
    assert registry.champion() == registry.version(2)


def test_a_version_that_is_not_there_cannot_be_promoted(registry: Registry):
    with pytest.raises(StoreError, match="there is none"):
        registry.promote(1, "r")
    assert registry.champion() is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"number": 1}'])
def test_a_damaged_pointer_is_said(registry: Registry, store: Store, text: str):
    registry.promote(register(registry).number, "r")
    (store.dataset("tiny") / "registry" / "champion.json").write_text(text)
    with pytest.raises(DamagedEntry, match=r"champion\.json: expected"):
        registry.champion()


def test_threads_take_different_numbers(registry: Registry):
    with ThreadPoolExecutor(10) as pool:
        versions = list(pool.map(lambda n: register(registry, str(n)), range(20)))
    assert sorted(v.number for v in versions) == list(range(1, 21))


PROCESS = """
import pathlib, sys
from storage.registry import Registry
from storage.store import Store
from tests.test_registry import register
print(register(Registry(Store(pathlib.Path(sys.argv[1])), "tiny"), sys.argv[2]).number)
"""


def test_processes_take_different_numbers(store: Store):
    root = Path(__file__).resolve().parent.parent
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(store.root), str(n)],
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
    paths = [ledger.append("runs", f"run-{n}", {"n": n}) for n in range(5)]
    assert [r["n"] for r in ledger.read("runs")] == [0, 1, 2, 3, 4]
    assert ledger.read("decisions") == []
    assert json.loads(paths[0].read_text())["run"] == "run-0"
