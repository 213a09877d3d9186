"""Decide whether a new model replaces the champion, and carry out the decision.

`tasks.gate` has the rules. Each rule that was applied is recorded.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import time
from collections.abc import Mapping
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import Dataset
from storage.datasets.manifest import Gate
from storage.errors import DamagedEntry
from storage.records import (
    Answer,
    Decision,
    Done,
    Step,
    TrainedModel,
    to_json,
)
from storage.registry import BY_HAND, Overtaken, Registry, Version
from storage.runtime import code_digests
from tasks.gate import known, looks
from tasks.gate.judging import Candidate, Incumbent, Judgement, answered, judge
from tasks.ui import artifacts, summaries
from tasks.ui.steps import log_step

_log = logging.getLogger(__name__)


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
    judgement = answered(_judged(registry, dataset, candidate, champion, past), answer)
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
    decision = dataclasses.replace(_decision(judgement, version, champion), **(facts | _spending(judgement)))
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


def _judged(
    registry: Registry,
    dataset: Dataset,
    candidate: Candidate,
    champion: Incumbent | None,
    past: list[dict[str, Any]],
) -> Judgement:
    """Judge a candidate after the decisions `past`, with the alpha that the error budget leaves."""
    budget = looks.budget(_limits(dataset.gate), past, candidate.evaluation.split_digest)
    governed = looks.governed(dataset, budget)
    registered = registry.find(candidate.model.entry.key, candidate.evaluation.entry.key)
    evidence = known.evidence(registry, governed, candidate, champion, registered)
    return judge(governed, candidate, champion, dataclasses.replace(evidence, budget=budget))


def question(registry: Registry, dataset: Dataset, candidate: Candidate, champion: Incumbent | None) -> str | None:
    """Return the question for a person about the candidate; None if the rules decide or nothing is new."""
    registered = registry.find(candidate.model.entry.key, candidate.evaluation.entry.key)
    past = registry.decisions()
    judgement = _judged(registry, dataset, candidate, champion, past)
    facts = _facts(dataset, candidate, champion, judgement, past)
    if not judgement.ask or (registered and _already_decided(past, registered, champion, facts)):
        return None
    against = f"champion {champion.name}" if champion else "no champion yet"
    advice = "promote" if judgement.outcome == "promoted" else "keep the champion"
    why = f"; you are asked because it is borderline: {judgement.borderline}" if judgement.borderline else ""
    accuracy = f"{candidate.evaluation.accuracy:.2%} on test"
    return f"a candidate with {accuracy}, {against}: {judgement.reason} ({advice}){why}"


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
    test, budget = candidate.evaluation.split_digest, judgement.evidence.budget
    return {
        "policy": dataset.gate.policy,
        "limits": _limits(dataset.gate),
        "paired": judgement.evidence.paired,
        "slices": judgement.evidence.slices or (),
        "slicing": known.slicing(dataset),
        "looks": looks.count(past, test) + 1,
        "budget_left": budget.left if budget else None,
        "weights_digest": candidate.model.weights_digest,
        "champion_weights_digest": champion.version.weights_digest if champion else "",
        "train_digest": candidate.train.digest,
        "test_digest": test,
        "asked": known.asked(dataset, candidate.behaviour),
    }


def _limits(gate: Gate) -> dict[str, float]:
    """Return the settings of the gate but for its policy; only those in use, so that older records stay equal."""
    settings = dataclasses.asdict(gate)
    unused = {"policy", *(() if gate.alpha_budget else ("budget_decisions",))}
    return {name: float(value) for name, value in settings.items() if name not in unused and value is not None}


def _spending(judgement: Judgement) -> dict[str, Any]:
    """Return the fields of a `Decision` that say what it takes of the error budget: nothing without a comparison."""
    budget, paired = judgement.evidence.budget, judgement.evidence.paired
    if budget is None or paired is None or not paired.differing or judgement.outcome == "refused":
        return {}
    return {"spent": budget.cost, "budget_left": budget.after().left}


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
    if (past[met].get("asked") or "") != facts["asked"]:
        return False
    return past[met].get("champion") == number or any(d.get("outcome") in BY_HAND for d in past[met + 1 :])


def _unchanged(version: Version, champion: Incumbent | None, judgement: Judgement) -> Decision:
    number = champion.version.number if champion else None
    ending = "the champion" if number == version.number else f"champion v{number} stays"
    return Decision(
        "unchanged", f"unchanged since v{version.number}: {ending}", version.number, number, number, judgement.rules
    )
