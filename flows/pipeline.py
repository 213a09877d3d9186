"""Call the steps of a run in order.

The flow has Prefect call them (`ByPrefect`). Code that needs the same without a server calls them directly
(`Directly`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar

from prefect import Task
from prefect.futures import wait

from expectations import engine_process
from flows.approval import ask
from flows.run import Job
from storage.datasets.catalog import ROLES, Dataset
from storage.errors import ValidationFailed
from storage.files import WAITING
from storage.records import SPLITS, Answer, Done, Evaluation, Report, Split, SplitName
from storage.runtime import timings
from storage.workers.current import current
from tasks.audit import audit
from tasks.checking import measuring, repeats, surveys
from tasks.confirm import confirm
from tasks.decide import current_champion, decide, question
from tasks.decode import decode
from tasks.decoding import pairs
from tasks.evaluate import evaluate
from tasks.fetch import fetch
from tasks.gate.judging import Candidate, Incumbent
from tasks.gate.known import check_slices
from tasks.model import part_sums
from tasks.normalize import normalize
from tasks.probe import probe
from tasks.probing import named_images
from tasks.publish import point_to_report, publish
from tasks.quarantine import quarantine
from tasks.scoring import scores
from tasks.train import check_own_model, train
from tasks.validate import validate

P = ParamSpec("P")
R = TypeVar("R")

_ON_WORKERS = tuple(module.__name__ for module in (pairs, surveys, repeats, measuring, part_sums, scores))
"""The modules whose functions workers call for each part, in the order of the steps."""

_log = logging.getLogger(__name__)


class Caller(Protocol):
    """How steps are called."""

    def call(self, step: Task[P, R], *arguments: P.args, **named: P.kwargs) -> R:
        """Call a step and return its result."""

    def call_together(self, step: Task[..., R], calls: Sequence[tuple[Any, ...]]) -> list[R]:
        """Call a step once with each tuple of arguments; return the results in the same order.

        All calls finish, even if one fails: no step of a failed run may still be writing when the run reports.
        """


class ByPrefect:
    """Has Prefect call the steps as tasks of a flow run."""

    def call(self, step: Task[P, R], *arguments: P.args, **named: P.kwargs) -> R:
        # Prefect: called. Not submitted: a submitted task cannot be interrupted by a timeout or by Ctrl-C.
        return step(*arguments, **named)

    def call_together(self, step: Task[..., R], calls: Sequence[tuple[Any, ...]]) -> list[R]:
        with timings.span(f"step {step.name}"):
            futures = [step.submit(*arguments) for arguments in calls]
            wait(futures)
        return [future.result() for future in futures]


class Directly:
    """Calls the steps as plain functions, one after the other."""

    def call(self, step: Task[P, R], *arguments: P.args, **named: P.kwargs) -> R:
        return step.fn(*arguments, **named)

    def call_together(self, step: Task[..., R], calls: Sequence[tuple[Any, ...]]) -> list[R]:
        results: list[R] = []
        failures: list[Exception] = []
        for arguments in calls:
            try:
                results.append(self.call(step, *arguments))
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return results


def to_validation(job: Job, caller: Caller, audited: bool = False) -> tuple[Split, Split]:
    """Fetch the archives of the four roles at once, decode both splits at once, audit them if asked, validate them;
    return train and test."""
    try:
        return _to_validation(job, caller, audited)
    finally:
        engine_process.end()


def _to_validation(job: Job, caller: Caller, audited: bool) -> tuple[Split, Split]:
    store, dataset = job.store, job.dataset
    if not any(store.newest_entries(dataset.name, "validate")):
        _begin_to_import(dataset)
    if _fetched(job, caller, ROLES):
        _begin_to_import(dataset)
    train_split, test_split = _decoded(job, caller, SPLITS)
    train_split, test_split = _usable(job, caller, train_split, test_split, audited)
    try:
        job.keep("validation", caller.call(validate, store, dataset, train_split, test_split))
    except ValidationFailed as error:
        job.note(validation=error.validation, steps=(*job.record.steps, *([error.step] if error.step else [])))
        raise
    return train_split, test_split


def _begin_to_import(dataset: Dataset) -> None:
    """Have other processes import what new data needs: that takes longer than to fetch or decode some."""
    engine_process.begin()
    if any(len(dataset.archives_of(role)) > 1 for role in ROLES):
        current().begin(_ON_WORKERS)


def to_training_rows(job: Job, caller: Caller) -> Split:
    """Fetch and decode the training split alone; return what a run trains on.

    Only a quarantine needs the test split as well, to compare the images of both.
    """
    if job.dataset.quarantine.checks:
        _fetched(job, caller, ROLES)
        train_split, test_split = _decoded(job, caller, SPLITS)
        return _usable(job, caller, train_split, test_split)[0]
    _fetched(job, caller, [role for role in ROLES if role.startswith("train-")])
    return _decoded(job, caller, ("train",))[0]


def _fetched(job: Job, caller: Caller, roles: Sequence[str]) -> bool:
    """Fetch the archives of some roles at once; return whether one of them is new."""
    store, dataset = job.store, job.dataset
    fetched = caller.call_together(fetch, [(store, dataset, dataset.archive(role), job.source) for role in roles])
    for finished in fetched:
        job.keep("archives", finished)
    return not all(finished.step.reused for finished in fetched)


def _decoded(job: Job, caller: Caller, names: Sequence[SplitName]) -> list[Split]:
    """Decode some splits at once."""
    archives = {archive.role: archive for archive in job.record.archives}
    pairs = [(name, archives[f"{name}-images"], archives[f"{name}-labels"]) for name in names]
    decoded = caller.call_together(decode, [(job.store, job.dataset, *pair) for pair in pairs])
    splits = [job.keep(name, finished) for name, finished in zip(names, decoded, strict=True)]
    job.note(decoded=tuple(splits))
    return splits


def _usable(job: Job, caller: Caller, train: Split, test: Split, audited: bool = False) -> tuple[Split, Split]:
    """Audit both splits if asked; return what the quarantine leaves of them."""
    # To set suspect labels aside, they must be found.
    if audited or "suspect" in job.dataset.quarantine.checks:
        job.keep("audit", caller.call(audit, job.store, job.dataset, train, test, job.config.memory))
    return _without_bad_rows(job, caller, train, test)


def _without_bad_rows(job: Job, caller: Caller, train: Split, test: Split) -> tuple[Split, Split]:
    """Set bad rows aside, if the data set has a quarantine; return what is left of both splits."""
    if not job.dataset.quarantine.checks:
        return train, test
    bad = job.keep("quarantine", caller.call(quarantine, job.store, job.dataset, train, test, job.record.audit))
    left = bad.rest(train), bad.rest(test)
    job.note(train=left[0], test=left[1])
    return left


def to_candidate(job: Job, caller: Caller) -> Candidate:
    """Carry out all steps up to a model that can be judged; return it."""
    check_own_model(job.store, job.dataset, job.config)
    named_images.check(job.dataset)
    train_split, test_split = to_validation(job, caller, job.audit)
    store, dataset = job.store, job.dataset
    test_labels = next(archive for archive in job.record.archives if archive.role == "test-labels")
    check_slices(job.registry, dataset, test_labels, test_split)
    normalization = job.keep("normalization", caller.call(normalize, store, dataset, train_split, job.config))
    model = job.keep("model", caller.call(train, store, dataset, train_split, normalization, job.config, job.again))
    evaluation = job.keep("evaluation", caller.call(evaluate, store, dataset, model, test_split))
    job.keep("confirmation", caller.call(confirm, store, dataset, model, test_split, evaluation))
    if dataset.behaviour:
        job.keep("behaviour", caller.call(probe, store, dataset, model, test_split, evaluation))
    return Candidate(
        *(model, evaluation, train_split, test_split, job.record.id, job.record.asked_by, bool(job.again)),
        test_labels=test_labels,
        behaviour=job.record.behaviour,
    )


def to_decision(job: Job, caller: Caller) -> None:
    """Carry out all steps; the champion that is scored is the one that is replaced or kept."""
    candidate, dataset = to_candidate(job, caller), job.dataset
    answer = _answer(job, caller, candidate) if dataset.gate.policy == "ask" else None
    waiting = "%s: waiting for another process that is deciding about the champion"
    with job.registry.deciding(lambda: _log.info(waiting, dataset.name, extra=WAITING)):
        while not _decided(job, caller, candidate, answer):
            # Another process has decided meanwhile, perhaps about another champion.
            pass


def _decided(job: Job, caller: Caller, candidate: Candidate, answer: _Answered | None) -> bool:
    """Score the champion and decide; return False if another process has decided first."""
    after = job.registry.standing().number
    champion, finished = _scored_champion(job, caller, candidate.test)
    if answer and answer.about != _number(champion):
        _log.warning("%s: the champion changed before the answer came; the answer does not count", job.dataset.name)
        answer = None
    if finished and finished.record != job.record.champion_evaluation:
        job.keep("champion_evaluation", finished)
    reply = answer.answer if answer else None
    decision = caller.call(decide, job.registry, job.dataset, candidate, champion, after, reply)
    if decision:
        job.keep("decision", decision)
    return decision is not None


@dataclass(frozen=True)
class _Answered:
    """An answer, and the version of the champion that it refers to."""

    answer: Answer
    about: int | None


def _answer(job: Job, caller: Caller, candidate: Candidate) -> _Answered | None:
    """Ask a person, if the decision needs one; hold no lock, because the answer may take a day."""
    champion, _ = _scored_champion(job, caller, candidate.test)
    prompt = question(job.registry, job.dataset, candidate, champion)
    answer = ask(job.dataset.name, prompt, job.dataset.gate.ask_hours) if prompt else None
    return _Answered(answer, _number(champion)) if answer else None


def _number(champion: Incumbent | None) -> int | None:
    return champion.version.number if champion else None


def _scored_champion(job: Job, caller: Caller, test_split: Split) -> tuple[Incumbent | None, Done[Evaluation] | None]:
    """Score the champion on this run's test rows, never trusting its old accuracy; also return the finished step."""
    champion = current_champion(job.registry, job.dataset)
    if champion is None or champion.model is None:
        return champion, None
    finished = caller.call(evaluate, job.store, job.dataset, champion.model, test_split, whose="champion")
    return dataclasses.replace(champion, score=finished.record), finished


def report(job: Job, caller: Caller) -> Report | None:
    """Return a new report, or the existing one of the same version if nothing is new."""
    if job.state == "valid":
        return None
    existing = job.existing_report() if job.state == "unchanged" else None
    if existing:
        point_to_report(job.dataset.name, job.sentence, job.version.strip(), existing)
        return existing
    return job.passed(caller.call(publish, job.registry, job.dataset, job.record))
