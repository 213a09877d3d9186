"""A run whose decision another process forestalls: it compares with the new champion, and decides again."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from storage.ledger import Ledger
from storage.objects.folder import Folder
from storage.registry import Registry
from storage.store import Store
from tests.conftest import TinyFactory
from tests.support.runs import carried_out
from tests.support.stores import DATASET, decide


def test_a_run_that_is_overtaken_scores_the_new_champion_and_decides_again(
    store: Store, tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "tasks.decide")
    manifest = tiny().manifest
    for learning_rate in (1e-6, 0.02):
        carried_out(store, manifest, published=False, learning_rate=learning_rate)
    registry = Registry(store, DATASET)
    decide(registry, "rolled back", 1)
    create, standing = Folder.create, registry.standing()

    def meanwhile(self: Folder, key: str, data: bytes) -> bool:
        if key == registry.ledger.decision_key(standing.number + 1):
            monkeypatch.setattr(Folder, "create", create)
            decide(Registry(store, DATASET), "promoted", 2, "another run")
        return create(self, key, data)

    monkeypatch.setattr(Store, "alone", lambda *_: nullcontext())
    monkeypatch.setattr(Folder, "create", meanwhile)
    record = carried_out(store, manifest, published=False, learning_rate=0.1)
    assert record.decision
    assert (record.decision.previous, record.decision.version) == (2, 3)
    scored = [step.key for step in record.steps if step.of == "champion"]
    assert len(scored) == len(set(scored)) == 2
    assert record.champion_evaluation
    assert record.champion_evaluation.weights_digest == registry.version(2).weights_digest
    assert "another process has decided about the champion meanwhile; judging again" in caplog.text
    numbers = [f"{number:08d}.json" for number in range(1, standing.number + 3)]
    assert Ledger(store, DATASET).names("decisions") == numbers
