"""The decision: floors, champion, ties; the record is always written, the pointer moves last."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from storage.catalog import Floors
from storage.ledger import Ledger
from storage.records import ClassScore, Evaluation, TrainedModel
from storage.registry import Registry
from storage.store import Store
from tasks.decide import Champion, current_champion, decide, judge
from tests.conftest import TinyFactory


def evaluation(correct: int, name: str = "e", worst: float = 0.8) -> Evaluation:
    scores = (ClassScore(0, "a", 50, 1.0, 1.0, 1.0), ClassScore(1, "b", 50, 1.0, worst, 1.0))
    return Evaluation(Path("/store") / name, "w", "t", 100, correct, correct / 100, 0, 1, 0.1, scores, (), ())


def model(name: str = "m") -> TrainedModel:
    return TrainedModel(Path("/store") / name, "w", 10, 90, 10, 5, 5, 0.1, 0.95)


def settle(store: Store, dataset, correct: int, name: str, champion_score: int | None = None):
    """Decide about a candidate as the flow does, with a champion scored `champion_score` today."""
    version = Registry(store, dataset.name).champion()
    champion = None
    if version:
        champion = (Champion(version, model(version.model)), evaluation(champion_score, "old"))
    return decide.fn(store, dataset, f"run-{name}", model(f"m{name}"), evaluation(correct, f"e{name}"), champion)


@pytest.mark.parametrize(
    ("correct", "worst", "outcome", "broken"),
    [
        (90, 0.8, "promoted", []),
        (89, 0.8, "refused", ["test accuracy"]),
        (95, 0.69, "refused", ["recall of the worst class (b)"]),
        (10, 0.1, "refused", ["test accuracy", "recall of the worst class (b)"]),
    ],
)
def test_floors_refuse(correct: int, worst: float, outcome: str, broken: list[str]):
    judgement = judge(Floors(0.9, 0.7), evaluation(correct, worst=worst), None)
    assert judgement.outcome == outcome
    assert [rule.name for rule in judgement.rules if not rule.passed] == broken
    assert all(name in judgement.reason for name in broken)


@pytest.mark.parametrize(("correct", "outcome"), [(96, "promoted"), (95, "kept"), (94, "kept")])
def test_only_more_right_answers_on_the_same_rows_win(store: Store, tiny: TinyFactory, correct: int, outcome: str):
    dataset = tiny()
    assert settle(store, dataset, 91, "1").sentence == "promoted v1: the first model above the floors"
    second = settle(store, dataset, correct, "2", champion_score=95)
    assert second.outcome == outcome
    assert second.version == 2
    assert Registry(store, "tiny").champion().number == (2 if outcome == "promoted" else 1)
    assert f"{correct - 95:+}" in second.sentence


def test_a_refused_model_gets_no_version_and_moves_nothing(store: Store, tiny: TinyFactory):
    dataset = dataclasses.replace(tiny(), floors=Floors(0.9))
    settle(store, dataset, 95, "1")
    refused = settle(store, dataset, 50, "2", champion_score=95)
    assert (refused.outcome, refused.version, refused.champion) == ("refused", None, 1)
    assert "champion v1 stays" in refused.sentence
    assert [v.number for v in Registry(store, "tiny").versions()] == [1]


def test_every_decision_is_in_the_ledger(store: Store, tiny: TinyFactory):
    dataset = dataclasses.replace(tiny(), floors=Floors(0.9))
    settle(store, dataset, 95, "1")
    settle(store, dataset, 94, "2", champion_score=95)
    settle(store, dataset, 50, "3", champion_score=95)
    kept = Ledger(store, "tiny").read("decisions")
    assert [d["outcome"] for d in kept] == ["promoted", "kept", "refused"]
    assert [d["run"] for d in kept] == ["run-1", "run-2", "run-3"]
    assert kept[1]["rules"][-1] == {
        "name": "more test rows right than champion v1",
        "limit": "more than 95 of 100",
        "observed": "94 of 100",
        "passed": False,
    }


@pytest.mark.parametrize("score", [95, 90])
def test_the_same_model_again_is_unchanged(store: Store, tiny: TinyFactory, score: int):
    dataset = tiny()
    settle(store, dataset, 95, "1")
    settle(store, dataset, score, "2", champion_score=95)
    again = settle(store, dataset, score, "2", champion_score=95)
    assert again.outcome == "unchanged"
    assert again.version == 2
    assert len(Ledger(store, "tiny").read("decisions")) == 2


def test_a_killed_promotion_is_finished_by_the_next_run(store: Store, tiny: TinyFactory, monkeypatch):
    dataset = tiny()

    def killed(self: Registry, number: int, run: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "promote", killed)
        with pytest.raises(KeyboardInterrupt):
            settle(store, dataset, 95, "1")
    assert Registry(store, "tiny").champion() is None
    assert settle(store, dataset, 95, "1").sentence.startswith("promoted v1")
    assert Registry(store, "tiny").champion().number == 1


@pytest.mark.parametrize(
    ("change", "obstacle"),
    [
        ({"classes": ("x", "y", "z")}, "trained for other classes"),
        ({"image_shape": (3, 3)}, "trained for other classes or another image size"),
        ({}, "its files are damaged"),
    ],
)
def test_a_champion_that_cannot_be_compared_is_replaced_and_that_is_said(
    store: Store, tiny: TinyFactory, change: dict, obstacle: str
):
    dataset = tiny()
    settle(store, dataset, 95, "1")
    changed = dataclasses.replace(dataset, **change)
    champion = current_champion(store, changed)
    assert champion.model is None
    assert obstacle in champion.obstacle
    decision = decide.fn(store, changed, "run-2", model("m2"), evaluation(91, "e2"), (champion, None))
    assert decision.outcome == "promoted"
    assert obstacle in decision.sentence
