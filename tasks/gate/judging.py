"""Judge a candidate by the floors and the rules of the gate. Pure: no input or output.

The rules are applied in this order: the floors, those of slices (`slices`), and the tests of behaviour; is there a
champion, and can it be compared; do the two models' answers differ; the paired comparison on the same test rows
(`criteria`); the loss of any class; the comparison on slices; whether anything is left of the error budget of the test
split (`looks`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from storage.datasets.catalog import Dataset
from storage.datasets.manifest import Floors, Gate
from storage.records import (
    Answer,
    Archive,
    Behaviour,
    Evaluation,
    Paired,
    Rule,
    SliceScore,
    Split,
    TrainedModel,
    Verdict,
)
from storage.registry import Version
from tasks.gate import criteria, looks, slices
from tasks.gate.behaviour import behaviour_rules
from tasks.gate.looks import Budget


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
    test_labels: Archive | None = None
    """All archives of the labels of `test`; only slices by a column of them need it."""
    behaviour: Behaviour | None = None
    """The results of the tests that the manifest asks for; None if of none."""


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
class Evidence:
    """What the rules look at besides the scores of both models."""

    paired: Paired | None = None
    """The comparison of both models' answers; None if there is no champion to compare with."""
    slices: tuple[SliceScore, ...] | None = None
    """The scores on the slices of `[slices]`; None: there are none, or nothing is new and they are not known."""
    budget: Budget | None = None
    """The error budget of the test split before this decision; None if the gate has none."""


@dataclass(frozen=True)
class Judgement:
    """The verdict of the rules on a candidate: a pure value, not yet carried out."""

    outcome: Verdict
    reason: str
    rules: tuple[Rule, ...]
    evidence: Evidence = Evidence()
    ask: bool = False
    """The policy leaves the decision to a person; `outcome` is only the advice of the rules."""
    borderline: str = ""
    """Why a person is asked, if the policy asks only where it is borderline."""


def judge(
    dataset: Dataset, candidate: Candidate, champion: Incumbent | None, evidence: Evidence = Evidence()
) -> Judgement:
    """Judge `candidate` by the floors and the gate of `dataset`, and return the verdict with every rule applied.

    Args:
        evidence: see `tasks.gate.evidence.gather`; has the comparison if the champion has a score.

    Raises:
        ValueError: the champion has a score, and the comparison is missing.
    """
    rules, ask = floor_rules(dataset.floors, candidate.evaluation), _always_asks(dataset.gate)
    if evidence.slices is not None:
        rules += slices.floor_rules(dataset, evidence.slices)
    rules += behaviour_rules(candidate.behaviour, dataset.classes)
    broken = [rule for rule in rules if not rule.passed]
    if broken:
        failures = "; ".join(f"{rule.name} is {rule.observed}, expected {rule.limit}" for rule in broken)
        return Judgement("refused", failures, rules, evidence)
    if champion is None:
        return Judgement("promoted", "the first model above the floors", rules, evidence, ask)
    if champion.score is None:
        reason = f"champion {champion.name} cannot be compared: {champion.obstacle}"
        rules = (*rules, Rule("champion can be compared", "yes", "no", False))
        return Judgement("promoted", reason, rules, evidence, ask)
    if evidence.paired is None:
        raise ValueError(f"expected the comparison with the predictions of {champion.name}; found none; see gather()")
    gate_rules, reason = _against(dataset, candidate.evaluation, champion, champion.score, evidence.paired)
    worse = (
        slices.worse_rule(dataset.slices, evidence.slices or (), champion.name) if evidence.paired.differing else None
    )
    if worse:
        gate_rules = (*gate_rules, worse)
        reason += "" if worse.passed else f"; worse than the champion on a slice, {worse.observed}"
    if evidence.budget and evidence.paired.differing:
        gate_rules, reason = (*gate_rules, looks.rule(evidence.budget)), f"{reason}; {looks.remark(evidence.budget)}"
    outcome: Verdict = "promoted" if all(rule.passed for rule in gate_rules) else "kept"
    borderline = _borderline(dataset.gate, evidence.paired, gate_rules)
    ask = bool(borderline) or (ask and evidence.paired.differing > 0)
    return Judgement(outcome, reason, (*rules, *gate_rules), evidence, ask, borderline)


def _always_asks(gate: Gate) -> bool:
    return gate.policy == "ask" and gate.borderline is None


def _borderline(gate: Gate, paired: Paired, rules: Sequence[Rule]) -> str:
    """Return why a person has to decide what is borderline; empty if it is not, or the policy does not ask then."""
    if gate.policy != "ask" or gate.borderline is None:
        return ""
    others = [rule.name for rule in rules if not rule.passed]
    if criteria.replaces(gate, paired) and others:
        return f"the comparison speaks for the candidate, but not met: {'; '.join(others)}"
    return criteria.close_call(gate, paired)


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
    limit = f"yes: {judgement.borderline}" if judgement.borderline else "yes"
    rule = Rule("a person approves", limit, observed, promote)
    outcome: Verdict = "promoted" if promote else "kept"
    reason = f"{judgement.reason}; {answer_text}"
    return dataclasses.replace(judgement, outcome=outcome, reason=reason, rules=(*judgement.rules, rule))


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


def floor_rules(floors: Floors, candidate: Evaluation) -> tuple[Rule, ...]:
    """Return the rules that every model has to meet, with or without a champion."""
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
