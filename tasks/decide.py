"""Decide whether a new model replaces the champion, and carry out the decision.

`tasks.gate` has the rules. Each rule that was applied is recorded.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import Dataset
from storage.errors import DamagedEntry
from storage.records import (
    Answer,
    Decision,
    Done,
    Paired,
    Step,
    TrainedModel,
    from_json,
    to_json,
)
from storage.registry import BY_HAND, Overtaken, Registry, Version
from storage.runtime import code_digests
from tasks.gate import criteria
from tasks.gate.evidence import gather
from tasks.gate.judging import Candidate, Evidence, Incumbent, Judgement, answered, judge
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
    evidence = _evidence(registry, dataset, candidate, champion, registered)
    judgement = answered(judge(dataset, candidate, champion, evidence), answer)
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


def _evidence(
    registry: Registry, dataset: Dataset, candidate: Candidate, champion: Incumbent | None, registered: Version | None
) -> Evidence:
    """Do what `gather` does, but do not read what is known: an unchanged run reads no answers.

    Args:
        registered: the candidate's version, if it has one.
    """
    if champion is None or champion.score is None:
        return gather(dataset, candidate, champion)
    score, alpha = candidate.evaluation, dataset.gate.alpha
    if score.entry.key == champion.score.entry.key:
        return Evidence(criteria.compared((score.correct, 0, 0, score.rows - score.correct), 0, alpha))
    known = _compared_before(registry, registered, champion, alpha) if registered else None
    return Evidence(known) if known else gather(dataset, candidate, champion)


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


def question(registry: Registry, dataset: Dataset, candidate: Candidate, champion: Incumbent | None) -> str | None:
    """Return the question for a person about the candidate; None if the rules decide or nothing is new."""
    registered = registry.find(candidate.model.entry.key, candidate.evaluation.entry.key)
    evidence = _evidence(registry, dataset, candidate, champion, registered)
    judgement = judge(dataset, candidate, champion, evidence)
    past = registry.decisions()
    facts = _facts(dataset, candidate, champion, judgement, past)
    if not judgement.ask or (registered and _already_decided(past, registered, champion, facts)):
        return None
    against = f"champion {champion.name}" if champion else "no champion yet"
    advice = "promote" if judgement.outcome == "promoted" else "keep the champion"
    return f"a candidate with {candidate.evaluation.accuracy:.2%} on test, {against}: {judgement.reason} ({advice})"


def looks(past: list[dict[str, Any]], test_digest: str) -> int:
    """Return how many of the ledger's decisions were made on the test split with this content digest."""
    return sum(values.get("test_digest") == test_digest for values in past)


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
        "paired": judgement.evidence.paired,
        "looks": looks(past, test) + 1,
        "weights_digest": candidate.model.weights_digest,
        "champion_weights_digest": champion.version.weights_digest if champion else "",
        "train_digest": candidate.train.digest,
        "test_digest": test,
        "behaviour": candidate.behaviour.asked if candidate.behaviour else "",
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
    if (past[met].get("behaviour") or "") != facts["behaviour"]:
        return False
    return past[met].get("champion") == number or any(d.get("outcome") in BY_HAND for d in past[met + 1 :])


def _unchanged(version: Version, champion: Incumbent | None, judgement: Judgement) -> Decision:
    number = champion.version.number if champion else None
    ending = "the champion" if number == version.number else f"champion v{number} stays"
    return Decision(
        "unchanged", f"unchanged since v{version.number}: {ending}", version.number, number, number, judgement.rules
    )
