"""Decide whether a new model replaces the champion, and carry out the decision.

The rules are applied in this order: the floors; is there a champion, and can it be compared; do the two models' answers
differ; the paired comparison on the same test rows (`gate`); the loss of any class. Each rule applied is recorded.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import Dataset
from storage.datasets.manifest import Floors
from storage.errors import DamagedEntry
from storage.formats import members, predictions, split_rows
from storage.records import (
    Answer,
    Decision,
    Done,
    Evaluation,
    Paired,
    Rule,
    Split,
    Step,
    TrainedModel,
    Verdict,
    from_json,
    to_json,
)
from storage.registry import BY_HAND, Overtaken, Registry, Version
from storage.runtime import code_digests
from tasks.gate import criteria
from tasks.ui import artifacts, summaries
from tasks.ui.steps import log_step

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A model that was trained on `train` and scored on `test` in this run."""

    model: TrainedModel
    evaluation: Evaluation
    train: Split
    test: Split
    run: str = ""
    """The id of the run."""
    asked_by: str = ""
    """The person or program that asked for the run."""
    forced: bool = False
    """Judge it even if nothing is new or a person has already decided about this model."""


@dataclass(frozen=True)
class Incumbent:
    """The champion that a candidate is compared with, as far as the two can be compared."""

    version: Version
    model: TrainedModel | None
    """None if it cannot be compared; `obstacle` says why."""
    obstacle: str = ""
    score: Evaluation | None = None
    """Score on the candidate's test rows; None if the champion cannot be scored on them."""

    @property
    def name(self) -> str:
        return f"v{self.version.number}"


@dataclass(frozen=True)
class Judgement:
    """The verdict of the rules on a candidate: a pure value, not yet carried out."""

    outcome: Verdict
    reason: str
    rules: tuple[Rule, ...]
    paired: Paired | None = None
    ask: bool = False
    """The policy leaves the decision to a person; `outcome` is only the advice of the rules."""


def current_champion(registry: Registry, dataset: Dataset) -> Incumbent | None:
    """Return the champion of `dataset` and its model, or None before the first promotion."""
    version = registry.champion()
    if version is None:
        return None
    if version.classes != dataset.classes or version.image_shape != dataset.image_shape:
        return Incumbent(version, None, "it was trained for other classes or another image size")
    try:
        return Incumbent(version, registry.store.get(dataset.name, "train", version.model, TrainedModel))
    except DamagedEntry as error:
        _log.warning("champion v%d cannot be loaded: %s", version.number, error)
        return Incumbent(version, None, "its files are damaged")


@task(task_run_name="decide", cache_policy=NO_CACHE)
def decide(
    registry: Registry,
    dataset: Dataset,
    candidate: Candidate,
    champion: Incumbent | None,
    after: int,
    answer: Answer | None = None,
) -> Done[Decision] | None:
    """Judge the candidate, register it unless it fails a floor, and record the decision in the ledger.

    Return None if another process has decided since the champion was read: score the new champion, and call this again.
    While `registry.deciding` is held, that happens only where the store cannot keep others from deciding.

    Args:
        champion: with its score on the same test rows; None before the first promotion.
        after: the number of the newest decision (`Registry.standing`), read before the champion.
        answer: a person's answer under the policy `ask`; None (no answer) keeps the champion.

    Raises:
        DamagedEntry: the labels or a model's answers cannot be read.
    """
    started = time.perf_counter()
    try:
        decision, reason = _decided(registry, dataset, candidate, champion, after, answer)
    except Overtaken:
        _log.info("%s: another process has decided about the champion meanwhile; judging again", dataset.name)
        return None
    seconds, reused = time.perf_counter() - started, decision.outcome == "unchanged"
    step = Step("decide", "", summaries.decision(decision), seconds, reused, reason)
    log_step(_log, step)
    return Done(decision, step)


def _decided(
    registry: Registry,
    dataset: Dataset,
    candidate: Candidate,
    champion: Incumbent | None,
    after: int,
    answer: Answer | None,
) -> tuple[Decision, str]:
    """Carry out and return the decision, with the reason why a decision was made or not."""
    past = registry.decisions()
    registered = registry.find(candidate.model.entry.key, candidate.evaluation.entry.key)
    paired = _compared(registry, dataset, candidate, champion, registered)
    judgement = answered(judge(dataset, candidate.evaluation, champion, paired), answer)
    facts = _facts(dataset, candidate, champion, judgement, past)
    # Here, because a run that finds nothing new returns before it writes anything.
    registry.keep_index()
    if registered:
        registry.restore(registered, candidate.run)
    settled = None if candidate.forced else registry.manual_decision_about(candidate.model.weights_digest)
    if settled and champion and answer is None:
        return dataclasses.replace(_unchanged(settled[0], champion, judgement), **facts), "nothing changed"
    if registered and answer is None and _already_decided(past, registered, champion, facts):
        return dataclasses.replace(_unchanged(registered, champion, judgement), **facts), "nothing changed"
    version = None if judgement.outcome == "refused" else _register(registry, dataset, candidate)
    decision = dataclasses.replace(_decision(judgement, version, champion), **facts)
    registry.carry_out(to_json(decision) | _circumstances(candidate), candidate.run, after)
    artifacts.show_table(artifacts.key("decision", dataset.name), to_json(decision.rules), decision.sentence)
    return decision, "decided again" if registered else "new model" if past else "first run"


def _circumstances(candidate: Candidate) -> dict[str, Any]:
    """Return the circumstances of a decision for the ledger: who asked, which code, which environment."""
    libraries = code_digests.library_versions(
        "tensorflow", "keras", "numpy", "scikit-learn", "scipy", "great-expectations", "prefect"
    )
    return {
        "asked_by": candidate.asked_by,
        "code": code_digests.digests("tasks.train")
        | code_digests.digests("tasks.evaluate")
        | code_digests.digests(__name__),
        "environment": {"python": platform.python_version(), **libraries},
    }


def _compared(
    registry: Registry, dataset: Dataset, candidate: Candidate, champion: Incumbent | None, registered: Version | None
) -> Paired | None:
    """Do what `compare` does, but do not read what is known: an unchanged run reads no answers.

    Args:
        registered: the candidate's version, if it has one.
    """
    if champion is None or champion.score is None:
        return None
    score, alpha = candidate.evaluation, dataset.gate.alpha
    if score.entry.key == champion.score.entry.key:
        return criteria.compared((score.correct, 0, 0, score.rows - score.correct), 0, alpha)
    known = _compared_before(registry, registered, champion, alpha) if registered else None
    return known or compare(dataset, candidate, champion)


def _compared_before(registry: Registry, version: Version, champion: Incumbent, alpha: float) -> Paired | None:
    """Return the comparison of a version with the champion from the last decision that rests on one."""
    same = {
        "version": version.number,
        "previous": champion.version.number,
        "test_digest": version.test_digest,
    }
    for decision in reversed(registry.decisions()):
        if same.items() <= decision.items():
            paired = registry.ledger.record("decisions", decision["name"]).get("paired") or {}
            # An earlier version of idxflow may have recorded less.
            with suppress(TypeError):
                known = from_json(Paired, paired)
                return known if known.confidence == 1 - 2 * alpha else None
    return None


def compare(dataset: Dataset, candidate: Candidate, champion: Incumbent | None) -> Paired | None:
    """Compare the answers of both models on the test rows; return None without a champion to compare with.

    Raises:
        DamagedEntry: the labels or a model's answers cannot be read.
    """
    if champion is None or champion.score is None:
        return None
    table, differing = np.zeros(4, np.int64), 0
    of_parts = (
        split_rows.parts(candidate.test),
        members.of(candidate.evaluation),
        members.of(champion.score),
    )
    for part, *scores in zip(*of_parts, strict=True):
        labels, (ours, theirs) = split_rows.labels(part), map(predictions.predicted, scores)
        if not len(labels) == len(ours) == len(theirs):
            raise DamagedEntry(
                f"{part.source}: expected a label for each of the {len(ours):,} predictions of the candidate and "
                f"the {len(theirs):,} of the champion; found {len(labels):,}; run again to score both"
            )
        here, differing_here = criteria.counted(labels, ours, theirs)
        table, differing = table + here, differing + differing_here
    both, only_ours, only_theirs, neither = table.tolist()
    return criteria.compared((both, only_ours, only_theirs, neither), differing, dataset.gate.alpha)


def judge(
    dataset: Dataset, candidate: Evaluation, champion: Incumbent | None, paired: Paired | None = None
) -> Judgement:
    """Judge `candidate` by the floors and the gate of `dataset`, and return the verdict with every rule applied.

    Args:
        paired: the comparison of both models' answers, see `compare`; required if the champion has a score.

    Raises:
        ValueError: the champion has a score, and `paired` is missing.
    """
    rules, ask = _floor_rules(dataset.floors, candidate), dataset.gate.policy == "ask"
    broken = [rule for rule in rules if not rule.passed]
    if broken:
        failures = "; ".join(f"{rule.name} is {rule.observed}, expected {rule.limit}" for rule in broken)
        return Judgement("refused", failures, rules, paired)
    if champion is None:
        return Judgement("promoted", "the first model above the floors", rules, ask=ask)
    if champion.score is None:
        reason = f"champion {champion.name} cannot be compared: {champion.obstacle}"
        return Judgement("promoted", reason, (*rules, Rule("champion can be compared", "yes", "no", False)), ask=ask)
    if paired is None:
        raise ValueError(f"expected the comparison with the predictions of {champion.name}; found none; see compare()")
    gate_rules, reason = _against(dataset, candidate, champion, champion.score, paired)
    outcome: Verdict = "promoted" if all(rule.passed for rule in gate_rules) else "kept"
    return Judgement(outcome, reason, (*rules, *gate_rules), paired, ask and paired.differing > 0)


def question(registry: Registry, dataset: Dataset, candidate: Candidate, champion: Incumbent | None) -> str | None:
    """Return the question for a person about the candidate; None if the rules decide or nothing is new."""
    registered = registry.find(candidate.model.entry.key, candidate.evaluation.entry.key)
    paired = _compared(registry, dataset, candidate, champion, registered)
    judgement = judge(dataset, candidate.evaluation, champion, paired)
    past = registry.decisions()
    facts = _facts(dataset, candidate, champion, judgement, past)
    if not judgement.ask or (registered and _already_decided(past, registered, champion, facts)):
        return None
    against = f"champion {champion.name}" if champion else "no champion yet"
    advice = "promote" if judgement.outcome == "promoted" else "keep the champion"
    return f"a candidate with {candidate.evaluation.accuracy:.2%} on test, {against}: {judgement.reason} ({advice})"


def answered(judgement: Judgement, answer: Answer | None) -> Judgement:
    """Return `judgement` with a person's answer applied if the policy asks for it; no answer keeps the champion."""
    if not judgement.ask:
        return judgement
    promote = bool(answer and answer.promote)
    observed, answer_text = "no answer", "no person approved it"
    if answer:
        why = f": {answer.reason}" if answer.reason else ""
        observed = ("yes" if promote else "no") + why
        answer_text = ("promoted" if promote else "declined") + " by a person" + why
    rule = Rule("a person approves", "yes", observed, promote)
    outcome: Verdict = "promoted" if promote else "kept"
    reason = f"{judgement.reason}; {answer_text}"
    return dataclasses.replace(judgement, outcome=outcome, reason=reason, rules=(*judgement.rules, rule))


def looks(past: list[dict[str, Any]], test_digest: str) -> int:
    """Return how many of the ledger's decisions were made on the test split with this content digest."""
    return sum(values.get("test_digest") == test_digest for values in past)


def _against(
    dataset: Dataset, candidate: Evaluation, champion: Incumbent, score: Evaluation, paired: Paired
) -> tuple[tuple[Rule, ...], str]:
    """Return the rules that compare the candidate with the champion, and their result in one sentence."""
    settings, rules = dataset.gate, []
    reason = criteria.sentence(settings, paired)
    if champion.version.test_digest != candidate.split_digest:
        observed = f"changed since {champion.name} was registered; scored again on today's {candidate.rows:,} rows"
        rules.append(Rule("test split", "champion is scored again if it changed", observed, True))
        reason += f"; the test split changed since {champion.name}"
    rules.append(criteria.difference_rule(settings, paired, champion.name))
    if paired.differing:
        lost = criteria.class_rule(settings, candidate, score)
        rules.append(lost)
        if not lost.passed:
            reason += f"; {lost.name} is {lost.observed}, allowed {lost.limit}"
    return tuple(rules), reason


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


def _register(registry: Registry, dataset: Dataset, candidate: Candidate) -> Version:
    model, evaluation = candidate.model, candidate.evaluation
    return registry.register(
        model=model.entry.key,
        evaluation=evaluation.entry.key,
        weights_digest=model.weights_digest,
        test_digest=evaluation.split_digest,
        test_accuracy=evaluation.accuracy,
        train_accuracy=model.train_accuracy,
        classes=dataset.classes,
        image_shape=dataset.image_shape,
        run=candidate.run,
    )


def _facts(
    dataset: Dataset,
    candidate: Candidate,
    champion: Incumbent | None,
    judgement: Judgement,
    past: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return the fields of a `Decision` that record its inputs."""
    settings = dataclasses.asdict(dataset.gate)
    test = candidate.evaluation.split_digest
    return {
        "policy": settings.pop("policy"),
        "limits": {name: float(value) for name, value in settings.items()},
        "paired": judgement.paired,
        "looks": looks(past, test) + 1,
        "weights_digest": candidate.model.weights_digest,
        "champion_weights_digest": champion.version.weights_digest if champion else "",
        "train_digest": candidate.train.digest,
        "test_digest": test,
    }


def _decision(judgement: Judgement, version: Version | None, champion: Incumbent | None) -> Decision:
    previous = champion.version.number if champion else None
    if judgement.outcome == "promoted" and version:
        sentence = f"promoted v{version.number}: {judgement.reason}"
        return Decision("promoted", sentence, version.number, version.number, previous, judgement.rules)
    if judgement.outcome == "kept" and version:
        incumbent = f"kept champion v{previous}" if previous else "there is no champion yet"
        sentence = f"{incumbent}: candidate v{version.number}, {judgement.reason}"
        return Decision("kept", sentence, version.number, previous, previous, judgement.rules)
    incumbent = f"champion v{previous} stays" if previous else "there is no champion yet"
    return Decision("refused", f"refused: {judgement.reason}; {incumbent}", None, previous, previous, judgement.rules)


def _already_decided(
    past: list[dict[str, Any]], version: Version, champion: Incumbent | None, facts: Mapping[str, Any]
) -> bool:
    """Tell whether nothing is new: this candidate is the champion, or was compared with it before under the same gate.

    Nothing is new either if a person has moved the champion since: the same model must not undo a rollback.
    """
    if champion is None:
        return False
    number = champion.version.number
    if number == version.number:
        return True
    met = max((n for n, d in enumerate(past) if d.get("version") == version.number), default=None)
    if met is None or any(past[met].get(name) not in (None, "", {}, facts[name]) for name in ("policy", "limits")):
        return False
    return past[met].get("champion") == number or any(d.get("outcome") in BY_HAND for d in past[met + 1 :])


def _unchanged(version: Version, champion: Incumbent | None, judgement: Judgement) -> Decision:
    number = champion.version.number if champion else None
    ending = "the champion" if number == version.number else f"champion v{number} stays"
    return Decision(
        "unchanged", f"unchanged since v{version.number}: {ending}", version.number, number, number, judgement.rules
    )
