"""Decide whether a new model replaces the champion, and carry it out."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.catalog import Dataset, Floors
from storage.errors import DamagedEntry
from storage.ledger import Ledger
from storage.records import Decision, Evaluation, Outcome, Rule, TrainedModel, to_json
from storage.registry import Registry, Version
from storage.store import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Champion:
    """The model in use, as far as it can be compared with a candidate."""

    version: Version
    model: TrainedModel | None
    """None when it cannot be compared; `obstacle` says why."""
    obstacle: str = ""


@dataclass(frozen=True)
class Judgement:
    """What the rules say about a candidate; a pure value, nothing is carried out yet."""

    outcome: Outcome
    reason: str
    rules: tuple[Rule, ...]


def current_champion(store: Store, dataset: Dataset) -> Champion | None:
    """Return the champion of `dataset` and its model, or None before the first promotion."""
    version = Registry(store, dataset.name).champion()
    if version is None:
        return None
    if version.classes != dataset.classes or version.image_shape != dataset.image_shape:
        return Champion(version, None, "it was trained for other classes or another image size")
    try:
        return Champion(version, store.get(dataset.name, "train", version.model, TrainedModel))
    except DamagedEntry as error:
        _log.warning("champion v%d cannot be loaded: %s", version.number, error)
        return Champion(version, None, "its files are damaged")


@task(task_run_name="decide", cache_policy=NO_CACHE)
def decide(
    store: Store,
    dataset: Dataset,
    run: str,
    model: TrainedModel,
    evaluation: Evaluation,
    champion: tuple[Champion, Evaluation | None] | None,
) -> Decision:
    """Judge the candidate, register it unless a floor refuses it, move the champion's pointer if it is better.

    Call it while `Registry.deciding`, with the champion read since. The decision is in the ledger, whatever it is.

    Args:
        champion: the model in use and its score on the same test rows; None before the first promotion.
    """
    judgement = judge(dataset.floors, evaluation, champion)
    registry, ledger = Registry(store, dataset.name), Ledger(store, dataset.name)
    known = registry.find(model.folder.name, evaluation.folder.name)
    if known and _already_decided(ledger, known, champion):
        return _unchanged(known, champion, judgement)
    version = None if judgement.outcome == "refused" else _register(registry, run, dataset, model, evaluation)
    decision = _decision(judgement, version, champion)
    # Ledger first: killed between the two, the next run finds that the champion is not what the ledger says,
    # and decides again. The other way round, a promotion would have no reason on record.
    ledger.append("decisions", run, to_json(decision))
    if decision.outcome == "promoted" and version:
        registry.promote(version.number, run)
    _log.info("decide: %s", decision.sentence)
    return decision


def judge(floors: Floors, candidate: Evaluation, champion: tuple[Champion, Evaluation | None] | None) -> Judgement:
    """Say what should happen to `candidate`, with every rule that was looked at.

    The candidate replaces the champion if it gets more of the same test rows right; a tie keeps the champion.
    """
    rules = _floor_rules(floors, candidate)
    broken = [rule for rule in rules if not rule.passed]
    if broken:
        said = "; ".join(f"{rule.name} is {rule.observed}, expected {rule.limit}" for rule in broken)
        return Judgement("refused", said, rules)
    if champion is None:
        return Judgement("promoted", "the first model above the floors", rules)
    held, score = champion
    if score is None:
        reason = f"champion v{held.version.number} cannot be compared: {held.obstacle}"
        return Judgement("promoted", reason, (*rules, Rule("champion can be compared", "yes", "no", False)))
    better = candidate.correct > score.correct
    rule = Rule(
        f"more test rows right than champion v{held.version.number}",
        f"more than {score.correct:,} of {score.rows:,}",
        f"{candidate.correct:,} of {candidate.rows:,}",
        better,
    )
    net = candidate.correct - score.correct
    reason = f"net {net:+,} of {candidate.rows:,} test rows against v{held.version.number}"
    return Judgement("promoted" if better else "kept", reason, (*rules, rule))


def _floor_rules(floors: Floors, candidate: Evaluation) -> tuple[Rule, ...]:
    worst = min((c for c in candidate.per_class if c.rows), key=lambda c: c.recall)
    return (
        Rule(
            "test accuracy",
            f"at least {floors.accuracy:.2%}",
            f"{candidate.accuracy:.2%}",
            candidate.accuracy >= floors.accuracy,
        ),
        Rule(
            f"recall of the worst class ({worst.name})",
            f"at least {floors.class_recall:.2%}",
            f"{worst.recall:.2%}",
            worst.recall >= floors.class_recall,
        ),
    )


def _register(registry: Registry, run: str, dataset: Dataset, model: TrainedModel, evaluation: Evaluation) -> Version:
    return registry.register(
        model=model.folder.name,
        evaluation=evaluation.folder.name,
        weights_digest=model.weights_digest,
        test_digest=evaluation.split_digest,
        test_accuracy=evaluation.accuracy,
        train_accuracy=model.train_accuracy,
        classes=dataset.classes,
        image_shape=dataset.image_shape,
        run=run,
    )


def _decision(
    judgement: Judgement, version: Version | None, champion: tuple[Champion, Evaluation | None] | None
) -> Decision:
    previous = champion[0].version.number if champion else None
    if judgement.outcome == "promoted" and version:
        sentence = f"promoted v{version.number}: {judgement.reason}"
        return Decision("promoted", sentence, version.number, version.number, previous, judgement.rules)
    if judgement.outcome == "kept" and version:
        sentence = f"kept champion v{previous}: candidate v{version.number}, {judgement.reason}"
        return Decision("kept", sentence, version.number, previous, previous, judgement.rules)
    kept = f"champion v{previous} stays" if previous else "there is no champion yet"
    return Decision("refused", f"refused: {judgement.reason}; {kept}", None, previous, previous, judgement.rules)


def _already_decided(ledger: Ledger, known: Version, champion: tuple[Champion, Evaluation | None] | None) -> bool:
    """Tell whether this candidate met this champion before, so that nothing is new."""
    if champion is None:
        return False
    number = champion[0].version.number
    past = [d["champion"] for d in ledger.read("decisions") if d["version"] == known.number]
    return number == known.number or past[-1:] == [number]


def _unchanged(known: Version, champion: tuple[Champion, Evaluation | None] | None, judgement: Judgement) -> Decision:
    number = champion[0].version.number if champion else None
    ending = "the champion" if number == known.number else f"champion v{number} stays"
    return Decision(
        "unchanged", f"unchanged since v{known.number}: {ending}", known.number, number, number, judgement.rules
    )
