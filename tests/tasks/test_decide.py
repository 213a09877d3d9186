"""The decision: floors, champion, the paired gate; the record is always written, the pointer moves last."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.datasets.catalog import Dataset
from storage.datasets.manifest import Floors, Gate
from storage.errors import DamagedEntry
from storage.formats import arrays, parquet
from storage.ledger import Ledger
from storage.records import Answer, Decision, Evaluation, FolderEntry, Split, TrainedModel, from_json, to_json
from storage.registry import NO_RUN, Registry
from storage.store import Store
from tasks.decide import current_champion, decide, question
from tasks.gate.evidence import compare, gather
from tasks.gate.judging import Candidate, Incumbent, answered, judge
from tasks.scoring.scores import by_class
from tests.conftest import TinyFactory
from tests.support import stores
from tests.support.stores import decided_in_format_3, pointed_in_format_3

ROWS, CLASSES = 100, ("a", "b")
LABELS = (np.arange(ROWS) % 2).astype(np.uint8)
EVEN, ODD = range(0, ROWS, 2), range(1, ROWS, 2)


class World:
    """A data set, its test split on disk, and models that get chosen rows wrong."""

    def __init__(self, store: Store, dataset: Dataset) -> None:
        self.store, self.dataset = store, dataset
        self.folder = store.root / "made"
        self.folder.mkdir()
        self.train = Split(FolderEntry(self.folder), "train", ROWS, (9, 7), 2, "train-digest", {})
        self.test = dataclasses.replace(self.train, name="test", digest="test-digest")
        with parquet.Writer(self.test.file, (9, 7), CLASSES) as writer:
            writer.write(np.zeros((ROWS, 9, 7), np.uint8), LABELS)
            writer.close({"image_shape": [9, 7]})

    def having(self, **changes: Any) -> World:
        """Change the data set's declaration."""
        self.dataset = dataclasses.replace(self.dataset, **changes)
        return self

    def evaluation(self, name: str, wrong: Sequence[int] = ()) -> Evaluation:
        """Return the score of a model that is wrong about the rows `wrong`, with its answers on disk."""
        folder = self.folder / f"e-{name}"
        folder.mkdir(exist_ok=True)
        predicted = LABELS.copy()
        predicted[list(wrong)] ^= 1
        per_class, confusion = by_class(CLASSES, LABELS, predicted)
        right = ROWS - len(wrong)
        evaluation = Evaluation(
            FolderEntry(folder), "w", self.test.digest, ROWS, right, right / ROWS, 0, 1, 0.1, per_class, confusion, ()
        )
        evaluation.file.unlink(missing_ok=True)
        arrays.write(evaluation.file, {"predicted": predicted, "probability": np.zeros((ROWS, 2), np.float32)})
        return evaluation

    def model(self, name: str) -> TrainedModel:
        return TrainedModel(FolderEntry(self.folder / f"m-{name}"), f"weights-{name}", 10, 90, 10, 5, 5, 0.1, 0.95)

    def candidate(self, name: str, wrong: Sequence[int] = ()) -> Candidate:
        return Candidate(self.model(name), self.evaluation(name, wrong), self.train, self.test, f"run-{name}")

    def settle(self, name: str, wrong: Sequence[int], champion: Sequence[int] | None = None, **more: Any) -> Decision:
        """Decide about a candidate as the flow does; the champion, if there is one, is wrong about `champion` today."""
        version = Registry(self.store, "tiny").champion()
        rival = None
        if version:
            rival = Incumbent(version, self.model(version.model), score=self.evaluation("old", champion or ()))
        return self.decide(self.candidate(name, wrong), rival, **more)

    def decide(self, candidate: Candidate, champion: Incumbent | None, **more: Any) -> Decision:
        """Decide after all decisions so far."""
        done = decide.fn(self.registry, self.dataset, candidate, champion, self.registry.standing().number, **more)
        assert done
        return done.record

    def judged(self, wrong: Sequence[int], champion: Sequence[int]) -> Any:
        """Judge a candidate against the champion v1, without carrying anything out."""
        if not Registry(self.store, "tiny").champion():
            self.settle("first", champion)
        version, score = Registry(self.store, "tiny").version(1), self.evaluation("old", champion)
        candidate, rival = self.candidate("c", wrong), Incumbent(version, self.model("first"), score=score)
        return judge(self.dataset, candidate, rival, gather(self.dataset, candidate, rival))

    @property
    def registry(self) -> Registry:
        return Registry(self.store, "tiny")

    @property
    def champion(self) -> int | None:
        version = Registry(self.store, "tiny").champion()
        return version.number if version else None

    @property
    def ledger(self) -> list[dict[str, Any]]:
        return Ledger(self.store, "tiny").read("decisions")


def test_the_decision_is_a_step_with_a_line_of_its_own(world: World, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "tasks.decide")
    world.having(floors=Floors(0.9, 0.7))
    for name, wrong in (("1", [3]), ("2", range(60)), ("1", [3])):
        world.settle(name, wrong, [3])
    steps = [record.step for record in caplog.records]
    assert [(step.name, step.key, step.reused, step.reason) for step in steps] == [
        ("decide", "", False, "first run"),
        ("decide", "", False, "new model"),
        ("decide", "", True, "nothing changed"),
    ]
    assert [step.summary for step in steps] == [
        "promoted: 2 of 2 rules met",
        "refused: 0 of 2 rules met",
        "unchanged since v1: the champion",
    ]
    assert all(step.seconds > 0 for step in steps)


@pytest.fixture
def world(store: Store, tiny: TinyFactory) -> World:
    return World(store, dataclasses.replace(tiny(classes=2), classes=CLASSES))


@pytest.mark.parametrize(
    ("wrong", "outcome", "broken"),
    [
        (range(10), "promoted", []),
        (range(11), "refused", ["test accuracy"]),
        (ODD[:16], "refused", ["test accuracy", "recall of the worst class (b)"]),
        (ODD[:9], "promoted", []),
    ],
)
def test_floors_refuse(world: World, wrong: Sequence[int], outcome: str, broken: list[str]):
    judgement = judge(world.having(floors=Floors(0.9, 0.7)).dataset, world.candidate("c", wrong), None)
    assert judgement.outcome == outcome
    assert [rule.name for rule in judgement.rules if not rule.passed] == broken
    assert all(name in judgement.reason for name in broken)


@pytest.mark.parametrize(
    ("wrong", "champion", "outcome", "sentence"),
    [
        (
            [],
            range(5),
            "promoted",
            "promoted v2: 5 more of 100 test images right than the champion, beyond luck (p 0.031)",
        ),
        (
            [],
            range(4),
            "kept",
            "kept champion v1: candidate v2, 4 more of 100 test images right than the champion, "
            "which may be luck (p 0.062 > 0.05)",
        ),
        (
            [9],
            range(8),
            "promoted",
            "promoted v2: 7 more of 100 test images right than the champion, beyond luck (p 0.02)",
        ),
        (
            range(5),
            range(5, 10),
            "kept",
            "kept champion v1: candidate v2, as many of 100 test images right as the champion",
        ),
        (range(5), [], "kept", "kept champion v1: candidate v2, 5 fewer of 100 test images right than the champion"),
        (
            EVEN,
            [],
            "kept",
            "50 fewer of 100 test images right than the champion; "
            "largest drop in class recall is 100.00 points (class a), allowed",
        ),
        (range(3), range(3), "kept", "the same answers on all 100 test rows, so there is nothing to choose"),
    ],
)
def test_better_on_the_same_rows_than_chance_explains(
    world: World, wrong: Sequence[int], champion: Sequence[int], outcome: str, sentence: str
):
    assert world.settle("1", champion).sentence == "promoted v1: the first model above the floors"
    second = world.having(floors=Floors(0.0, 0.0)).settle("2", wrong, champion)
    assert (second.outcome, second.version) == (outcome, 2)
    assert sentence in second.sentence
    assert world.champion == (2 if outcome == "promoted" else 1)


@pytest.mark.parametrize("policy", ["better", "not_worse", "ask"])
@pytest.mark.parametrize("bad", ["shuffled labels", "poisoned class", "one answer", "noise"])
def test_a_worse_model_never_replaces_a_better_one(world: World, policy: Any, bad: str):
    random = np.random.default_rng(3)
    wrong = {
        "shuffled labels": np.flatnonzero(random.permutation(LABELS) != LABELS),
        "poisoned class": ODD[:12],
        "one answer": ODD,
        "noise": random.choice(ROWS, 10, replace=False),
    }[bad]
    world.having(floors=Floors(0.0, 0.0), gate=Gate(policy))
    world.settle("1", [1, 2], answer=Answer(True, ""))
    for n in range(2, 5):
        assert world.settle(f"{n}", wrong, champion=[1, 2]).outcome in ("kept", "unchanged")
    assert world.champion == 1


@pytest.mark.parametrize(("wrong", "outcome"), [([0], "promoted"), ([0, 1], "promoted"), ([0, 1, 2, 3], "kept")])
def test_not_worse_allows_its_margin_and_no_more(world: World, wrong: list[int], outcome: str):
    world.having(gate=Gate("not_worse", margin=0.06)).settle("1", [])
    judgement = world.judged(wrong, [])
    assert judgement.outcome == outcome
    assert f"worse, and {'' if outcome == 'promoted' else 'only '}6.00 points worse are allowed" in judgement.reason


def test_a_class_may_not_be_given_up_for_another(world: World):
    """Ten rows of class a gained, four of b lost: better as a whole, and kept."""
    candidate, champion = ODD[:4], EVEN[:20]
    world.having(floors=Floors(0.0, 0.0)).settle("1", champion)
    judgement = world.judged(candidate, champion)
    assert judgement.outcome == "kept"
    assert [rule.name for rule in judgement.rules if not rule.passed] == ["largest drop in class recall"]
    assert judgement.reason.endswith("largest drop in class recall is 8.00 points (class b), allowed at most 5 points")
    world.having(gate=Gate(max_class_loss=0.08))
    assert world.judged(candidate, champion).outcome == "promoted"


def test_a_changed_test_split_is_said_and_both_are_scored_on_it(world: World):
    world.settle("1", [])
    world.test = dataclasses.replace(world.test, digest="another-digest")
    second = world.settle("2", [], champion=range(6))
    assert second.sentence == (
        "promoted v2: 6 more of 100 test images right than the champion, beyond luck (p 0.016); "
        "the test split changed since v1"
    )
    rule = next(rule for rule in second.rules if rule.name == "test split")
    assert (rule.passed, rule.observed) == (
        True,
        "changed since v1 was registered; scored again on today's 100 rows",
    )
    assert [d["looks"] for d in world.ledger] == [1, 1]
    third = world.settle("3", [], champion=[])
    assert not any(rule.name == "test split" for rule in third.rules)
    assert third.looks == 2


@pytest.mark.parametrize(
    ("answer", "outcome", "ending"),
    [
        (
            Answer(True, ""),
            "promoted",
            "promoted v2: 1 more of 100 test images right than the champion, which may be luck (p 0.5 > 0.05); "
            "promoted by a person",
        ),
        (Answer(False, "not before Monday"), "kept", "declined by a person: not before Monday"),
        (None, "kept", "(p 0.5 > 0.05); no person approved it"),
    ],
)
def test_ask_leaves_it_to_a_person(world: World, answer: Answer | None, outcome: str, ending: str):
    first = world.having(gate=Gate("ask")).settle("1", [3])
    assert first.outcome == "kept"
    assert first.sentence.startswith("there is no champion yet: candidate v1, the first model above the floors; no ")
    assert world.settle("1", [3], answer=Answer(True, "")).outcome == "promoted"
    judgement = world.judged([], [3])
    assert (judgement.outcome, judgement.ask) == ("kept", True)
    second = world.settle("2", [], champion=[3], answer=answer)
    assert second.outcome == outcome
    assert second.sentence.endswith(ending)
    assert (second.rules[-1].name, second.rules[-1].passed) == ("a person approves", outcome == "promoted")
    assert world.champion == (2 if outcome == "promoted" else 1)


def test_the_question_says_what_is_at_stake_and_is_asked_once(world: World):
    world.having(gate=Gate("ask"))
    candidate = world.candidate("1", [3])
    text = question(world.registry, world.dataset, candidate, None)
    assert text == ("a candidate with 99.00% on test, no champion yet: the first model above the floors (promote)")
    world.settle("1", [3], answer=Answer(True, ""))
    champion = current_champion(world.registry, world.dataset)
    rival = dataclasses.replace(champion, model=candidate.model, obstacle="", score=candidate.evaluation)
    assert question(world.registry, world.dataset, candidate, rival) is None


def test_nobody_is_asked_where_there_is_nothing_to_choose(world: World):
    world.having(gate=Gate("ask"), floors=Floors(0.5)).settle("1", [], answer=Answer(True, ""))
    for wrong in ([], range(60)):
        judgement = world.judged(wrong, [])
        assert not judgement.ask
        assert answered(judgement, Answer(True, "")) is judgement


def test_a_refused_model_gets_no_version_and_moves_nothing(world: World):
    world.having(floors=Floors(0.9)).settle("1", [])
    refused = world.settle("2", range(50), champion=[])
    assert (refused.outcome, refused.version, refused.champion) == ("refused", None, 1)
    assert "champion v1 stays" in refused.sentence
    assert [v.number for v in Registry(world.store, "tiny").versions()] == [1]


def test_every_decision_is_in_the_ledger_with_all_it_was_made_from(world: World):
    world.having(floors=Floors(0.9)).settle("1", range(5))
    world.settle("2", [1], champion=range(5))
    world.settle("3", range(50), champion=range(5))
    records = world.ledger
    assert [d["outcome"] for d in records] == ["promoted", "kept", "refused"]
    assert [d["run"] for d in records] == ["run-1", "run-2", "run-3"]
    assert [d["looks"] for d in records] == [1, 2, 3]
    assert [bool(d["paired"]) for d in records] == [False, True, True]
    second = records[1]
    assert second["rules"][-2] == {
        "name": "better than champion v1 on the same rows",
        "limit": "more test images right, p at most 0.05 (McNemar's exact test, one-sided)",
        "observed": "4 more of 100 test images right (only the candidate 4, only the champion 0), p 0.062",
        "passed": False,
    }
    limits = {"alpha": 0.05, "margin": 0.005, "max_class_loss": 0.05, "ask_hours": 24}
    assert (second["policy"], second["limits"]) == ("better", limits)
    assert (second["weights_digest"], second["champion_weights_digest"]) == ("weights-2", "weights-1")
    assert (second["train_digest"], second["test_digest"]) == ("train-digest", "test-digest")
    around = {"run", "time", "format", "after", "nonce", "asked_by", "code", "environment"}
    assert around <= second.keys()
    assert "tasks.model.fitting" in second["code"]
    assert {"python", "tensorflow", "prefect"} <= second["environment"].keys()
    decision = from_json(Decision, {k: v for k, v in second.items() if k not in around})
    assert decision.paired
    assert (decision.paired.only_candidate, decision.paired.net) == (4, 4)
    assert to_json(decision).items() <= second.items()


@pytest.mark.parametrize("wrong", [[], [1, 2], [7, 8, 9]])
def test_the_same_model_again_is_unchanged(world: World, wrong: list[int]):
    world.settle("1", [1, 2])
    world.settle("2", wrong, champion=[1, 2])
    again = world.settle("2", wrong, champion=[1, 2])
    assert (again.outcome, again.version) == ("unchanged", 2)
    assert len(world.ledger) == 2


def test_a_changed_gate_decides_again(world: World):
    world.settle("1", [1, 2])
    assert world.settle("2", [], champion=[1, 2]).outcome == "kept"
    world.having(gate=Gate("not_worse", margin=0.01))
    assert world.settle("2", [], champion=[1, 2]).outcome == "promoted"


def test_a_decision_of_an_older_record_still_counts_as_made(world: World):
    world.settle("1", [1, 2])
    world.settle("2", [], champion=[1, 2])
    for path in (world.store.dataset("tiny") / "ledger" / "decisions").glob("*.json"):
        path.unlink()
    values = Decision("kept", "said", 2, 1, 1, ())
    old = {k: v for k, v in to_json(values).items() if k in ("outcome", "version", "champion", "rules")}
    for run in ("older", "old"):
        decided_in_format_3(world.store, "tiny", run, old)
    pointed_in_format_3(world.store, "tiny", 1)
    assert world.settle("2", [], champion=[1, 2]).outcome == "unchanged"


def test_a_rollback_is_not_undone_by_the_same_model(world: World):
    world.settle("1", range(6))
    assert world.settle("2", [], champion=range(6)).outcome == "promoted"
    stores.decide(world.registry, "rolled back", 1, NO_RUN)
    assert world.settle("2", [], champion=range(6)).outcome == "unchanged"
    assert world.champion == 1
    assert world.settle("3", [], champion=range(6)).outcome == "promoted"


def test_a_promotion_killed_before_the_hint_is_written_counts(world: World, monkeypatch: pytest.MonkeyPatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("storage.objects.sealed.write", killed)
        with pytest.raises(KeyboardInterrupt):
            world.settle("1", [])
    assert world.champion == 1
    assert world.settle("1", []).sentence == "unchanged since v1: the champion"


def test_a_decision_that_another_process_forestalled_is_not_recorded(world: World, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "tasks.decide")
    world.settle("1", range(6))
    after, champion = world.registry.standing().number, current_champion(world.registry, world.dataset)
    world.settle("2", [], champion=range(6))
    score = world.evaluation("old", range(6))
    rival = dataclasses.replace(champion, model=world.model("1"), score=score)
    assert decide.fn(world.registry, world.dataset, world.candidate("3"), rival, after) is None
    assert "another process has decided about the champion meanwhile; judging again" in caplog.text
    assert (world.champion, len(world.ledger)) == (2, 2)
    assert world.settle("3", [], champion=[]).previous == 2


@pytest.mark.parametrize(
    ("change", "obstacle"),
    [
        ({"classes": ("x", "y", "z")}, "trained for other classes"),
        ({"image_shape": (3, 3)}, "trained for other classes or another image size"),
        ({}, "its files are damaged"),
    ],
)
@pytest.mark.parametrize("policy", ["better", "not_worse"])
def test_a_champion_that_cannot_be_compared_is_replaced_and_that_is_said(
    world: World, change: dict[str, Any], obstacle: str, policy: Any
):
    world.settle("1", [])
    changed = world.having(gate=Gate(policy), **change).dataset
    champion = current_champion(world.registry, changed)
    assert champion
    assert champion.model is None
    assert obstacle in champion.obstacle
    decision = world.decide(world.candidate("2", range(9)), champion)
    assert (decision.outcome, decision.paired) == ("promoted", None)
    assert obstacle in decision.sentence


@pytest.mark.parametrize("damage", ["answers", "labels"])
def test_answers_that_cannot_be_paired_stop_the_decision(world: World, damage: str):
    world.settle("1", [])
    candidate = world.candidate("2", [1])
    if damage == "answers":
        candidate.evaluation.file.write_bytes(b"PK")
    else:
        few = world.folder / "few"
        few.mkdir()
        world.test = candidate.test
        candidate = dataclasses.replace(candidate, test=dataclasses.replace(candidate.test, entry=FolderEntry(few)))
        with parquet.Writer(candidate.test.file, (9, 7), CLASSES) as writer:
            writer.write(np.zeros((3, 9, 7), np.uint8), LABELS[:3])
            writer.close({"image_shape": [9, 7]})
    version = Registry(world.store, "tiny").champion()
    assert version
    rival = Incumbent(version, world.model("1"), score=world.evaluation("old"))
    with pytest.raises(DamagedEntry, match="expected"):
        world.decide(candidate, rival)
    assert (world.champion, len(world.ledger)) == (1, 1)
    assert Path(candidate.evaluation.file).exists()


@pytest.mark.parametrize("wrong", [[], [4, 5], [7, *range(10, 20)]])
def test_what_was_compared_before_is_not_read_again(world: World, wrong: Sequence[int]):
    """The champion itself, and a model that was compared with it: no label and no answer is read."""
    world.having(floors=Floors(0.5, 0.5))
    world.settle("1", [4])
    champion = Incumbent(world.registry.version(1), world.model("1"), score=world.evaluation("1", [4]))
    itself, other = world.candidate("1", [4]), world.candidate("2", wrong)
    decided = world.decide(other, champion)
    expected = [compare(world.dataset, candidate, champion) for candidate in (itself, other)]
    assert (decided.outcome, decided.paired) == ("kept", expected[1])
    for file in (world.test.file, itself.evaluation.file, other.evaluation.file):
        file.unlink()
    again = [world.decide(candidate, champion) for candidate in (itself, other)]
    assert [decision.outcome for decision in again] == ["unchanged", "unchanged"]
    assert [decision.paired for decision in again] == expected
    assert again[1].rules == decided.rules
    asking = world.having(gate=Gate("ask")).dataset
    assert question(world.registry, asking, itself, champion) is None


def test_what_was_compared_for_another_interval_is_compared_again(world: World):
    world.settle("1", [1, 2])
    world.settle("2", [3], champion=[1, 2])
    world.having(gate=Gate(alpha=0.01))
    again = world.settle("2", [3], champion=[1, 2])
    assert again.paired
    assert again.paired.confidence == 0.98
    world.test.file.unlink()
    world.having(gate=Gate(alpha=0.02))
    with pytest.raises(DamagedEntry):
        world.settle("2", [3], champion=[1, 2])


BUDGET = Gate(alpha=0.05, alpha_budget=0.1, budget_decisions=4)
"""0.025 for each decision: a lead of six passes (p 0.016), one of five does not (p 0.031)."""


def test_decisions_on_one_test_split_share_a_budget(world: World):
    world.having(gate=BUDGET).settle("1", range(9))
    kept = world.settle("2", range(5, 9), champion=range(9))
    assert kept.sentence == (
        "kept champion v1: candidate v2, 5 more of 100 test images right than the champion, which may be luck "
        "(p 0.031 > 0.025); the error budget allows 3 more decisions"
    )
    promoted = world.settle("3", range(6, 9), champion=range(9))
    assert promoted.sentence.endswith("beyond luck (p 0.016); the error budget allows 2 more decisions")
    assert promoted.paired
    assert promoted.paired.confidence == 0.95
    rule = next(rule for rule in promoted.rules if rule.name == "error budget of these test images")
    assert (rule.limit, rule.observed, rule.passed) == (
        "at most 0.1 for all decisions on them, 0.025 for each",
        "0.025 spent before, 3 decisions left",
        True,
    )
    spent = [(d["outcome"], d["spent"], d["budget_left"]) for d in world.ledger]
    assert spent == [("promoted", 0.0, 4), ("kept", 0.025, 3), ("promoted", 0.025, 2)]
    assert world.ledger[1]["limits"]["alpha"] == 0.05


def test_what_compares_nothing_spends_nothing(world: World):
    world.having(floors=Floors(0.5), gate=BUDGET)
    world.settle("first", [1, 2])
    world.settle("refused", range(60), champion=[1, 2])
    world.settle("same answers", [1, 2], champion=[1, 2])
    assert world.settle("kept", [1], champion=[1, 2]).spent == 0.025
    again = world.settle("kept", [1], champion=[1, 2])
    assert (again.outcome, again.spent, again.budget_left) == ("unchanged", 0.0, 3)
    stores.decide(world.registry, "forced", 3, NO_RUN)
    assert [d.get("spent", 0.0) for d in world.ledger] == [0.0, 0.0, 0.0, 0.025, 0.0]
    assert world.settle("next", [3], champion=[1, 2]).budget_left == 2


def used_up(world: World, gate: Gate = BUDGET) -> World:
    """Spend the budget on four candidates that are no better."""
    world.having(gate=gate).settle("1", range(9))
    for n in range(2, 6):
        assert world.settle(f"{n}", [*range(10, 19), n], champion=range(9)).outcome == "kept"
    assert world.ledger[-1]["budget_left"] == 0
    return world


@pytest.mark.parametrize("policy", ["better", "not_worse"])
def test_a_budget_that_is_used_up_promotes_nothing_and_says_what_to_do(world: World, policy: Any):
    decision = used_up(world, dataclasses.replace(BUDGET, policy=policy)).settle("6", [], champion=range(9))
    assert (decision.outcome, decision.spent, decision.budget_left) == ("kept", 0.0, 0)
    assert decision.sentence.endswith(
        "; the error budget of these test images is used up (0.1 of 0.1), so the rules promote nothing: use other test "
        "images, promote by hand, or raise alpha_budget"
    )
    assert [rule.name for rule in decision.rules if not rule.passed] == ["error budget of these test images"]
    assert world.settle("6", [], champion=range(9)).outcome == "unchanged"


def test_each_remedy_for_a_budget_that_is_used_up_works(world: World):
    used_up(world).settle("6", [], champion=range(9))
    world.having(gate=dataclasses.replace(BUDGET, alpha_budget=0.2))
    raised = world.settle("6", [], champion=range(9))
    assert (raised.outcome, raised.spent, raised.budget_left) == ("promoted", 0.05, 1)
    world.having(gate=BUDGET).test = dataclasses.replace(world.test, digest="other images")
    other = world.settle("7", [], champion=range(9))
    assert (other.outcome, other.spent, other.budget_left) == ("promoted", 0.025, 3)
    world.test = dataclasses.replace(world.test, digest="test-digest")
    assert world.settle("8", [1], champion=range(9)).outcome == "kept"
    stores.decide(world.registry, "forced", world.ledger[-1]["version"], NO_RUN)
    assert world.champion == world.ledger[-1]["version"]


def test_a_budget_counts_from_when_it_is_set_and_judges_again_what_was_kept(world: World):
    world.settle("1", range(9))
    assert world.settle("2", range(3, 9), champion=range(9)).spent == 0.0
    world.having(gate=BUDGET)
    assert (world.settle("2", range(3, 9), champion=range(9)).budget_left) == 3


def test_settings_that_are_new_do_not_judge_again_what_was_kept(world: World):
    world.settle("1", [1, 2])
    kept = world.settle("2", [], champion=[1, 2])
    assert kept.limits == {"alpha": 0.05, "margin": 0.005, "max_class_loss": 0.05, "ask_hours": 24}
    assert world.settle("2", [], champion=[1, 2]).outcome == "unchanged"


def test_a_decision_that_was_overtaken_is_paid_for_once_and_one_after_it_too(world: World):
    """Two candidates at once, with one decision left in the budget: whoever is second is judged by what is left."""
    used = dataclasses.replace(BUDGET, budget_decisions=1)
    world.having(gate=used).settle("1", range(9))
    after, champion = world.registry.standing().number, current_champion(world.registry, world.dataset)
    assert champion
    rival = dataclasses.replace(champion, model=world.model("1"), score=world.evaluation("old", range(9)))
    slow = world.registry
    slow.decisions()
    assert world.settle("2", [*range(10, 19), 2], champion=range(9)).spent == 0.05
    candidate = world.candidate("3", [])
    assert decide.fn(slow, world.dataset, candidate, rival, after) is None
    second = world.decide(candidate, rival)
    assert second.spent == 0.05
    third = world.settle("4", [*range(10, 19), 4], champion=[])
    assert (third.outcome, third.spent, sum(d["spent"] for d in world.ledger)) == ("kept", 0.0, 0.1)


BORDERLINE = Gate("ask", borderline=4)


@pytest.mark.parametrize(
    ("wrong", "champion", "why"),
    [
        ([], range(7), ""),
        ([], range(6), "p 0.016 is within a factor of 4 of 0.05"),
        ([], range(3), "p 0.12 is within a factor of 4 of 0.05"),
        ([], range(2), ""),
        (range(3), range(3, 6), ""),
        (range(5), [], ""),
        (range(3), range(3), ""),
        (
            ODD[:4],
            EVEN[:20],
            "the comparison speaks for the candidate, but not met: largest drop in class recall",
        ),
    ],
)
def test_a_person_is_asked_only_where_it_is_borderline(
    world: World, wrong: Sequence[int], champion: Sequence[int], why: str
):
    world.having(floors=Floors(0.0, 0.0), gate=BORDERLINE)
    judgement = world.judged(wrong, champion)
    assert (judgement.ask, judgement.borderline) == (bool(why), why)
    if why:
        approved = answered(judgement, Answer(True, "looked at it"))
        rule = approved.rules[-1]
        assert (approved.outcome, rule.limit, rule.observed) == ("promoted", f"yes: {why}", "yes: looked at it")
    else:
        better = world.having(gate=Gate("better")).judged(wrong, champion)
        assert (judgement.outcome, judgement.reason, judgement.rules) == (better.outcome, better.reason, better.rules)


def test_the_first_model_is_no_borderline_case(world: World):
    world.having(gate=BORDERLINE)
    assert question(world.registry, world.dataset, world.candidate("1", [3]), None) is None
    assert world.settle("1", [3]).outcome == "promoted"


def test_the_question_says_why_it_is_asked(world: World):
    world.having(gate=dataclasses.replace(BORDERLINE, alpha_budget=0.1, budget_decisions=4)).settle("1", range(5))
    champion = current_champion(world.registry, world.dataset)
    assert champion
    rival = dataclasses.replace(champion, model=world.model("1"), score=world.evaluation("old", range(5)))
    assert question(world.registry, world.dataset, world.candidate("2", []), rival) == (
        "a candidate with 100.00% on test, champion v1: 5 more of 100 test images right than the champion, which may "
        "be luck (p 0.031 > 0.025); the error budget allows 3 more decisions (keep the champion); you are asked "
        "because it is borderline: p 0.031 is within a factor of 4 of 0.025"
    )
    assert len(world.ledger) == 1


def test_a_person_is_asked_if_only_the_budget_speaks_against(world: World):
    used_up(world, dataclasses.replace(BORDERLINE, alpha_budget=0.1, budget_decisions=4))
    assert world.settle("6", [], champion=range(9), answer=Answer(True, "")).outcome == "promoted"
    assert world.ledger[-1]["rules"][-1]["limit"] == (
        "yes: the comparison speaks for the candidate, but not met: error budget of these test images"
    )
