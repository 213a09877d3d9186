"""Carry out a study: its trials one after the other, or several at a time in other processes, and what came of them."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any

from flows.pipeline import Caller, to_training_rows
from flows.run import Job, prepare
from flows.tuning import leaderboard
from flows.tuning.course import Course
from flows.tuning.processes import TrialProcess
from flows.tuning.request import StudyRequest
from storage.errors import IdxflowError
from storage.ledger import Ledger
from storage.outcomes import Outcome
from storage.records import HTML, Done, Trial
from storage.runtime import cancellation, progress
from storage.runtime.progress import Progress
from storage.words import brief, counted
from storage.workers.current import using
from storage.workers.protocol import Workers
from tasks.normalize import normalize
from tasks.study import publish_study
from tasks.train import Training, another_folder, check_own_model, own_source
from tasks.tune import Candidate, begin, name_of, trials_of, tried
from tasks.tuning.optuna_study import Search, score

BAR = "trials"
_LOOK_SECONDS = 0.2

_log = logging.getLogger(__name__)

Call = Callable[[Candidate], Done[Trial]]

Tell = Callable[["Course", Trial, bool], None]
"""Called with each trial that has ended, and whether it was carried out now."""


def carry_out(request: StudyRequest, caller: Caller, asked_by: str, tell: Tell) -> Course:
    """Carry out a study, or go on with it; keep in the ledger what it has found, also if it is interrupted.

    Raises:
        ConfigError: something in the request is wrong.
        IdxflowError: the data or the store cannot be used, or a process of trials has died.
    """
    _, _, search = request.resolve()
    # The run's own record is not kept: it is only what the steps write down.
    job = prepare(request.run, asked_by)
    with (
        closing(job.workers),
        using(job.workers),
        cancellation.cancellable(),
        job.store.in_use(job.dataset.name),
    ):
        course = _begun(request, job, search, caller)
        for trial in course.ended:
            tell(course, trial, False)
        with _recorded(course):
            _carry_out(course, tell)
        if course.ranking:
            arguments = (job.store, job.dataset.name, course.study, course.ended, leaderboard.summary(course))
            course.report = caller.call(publish_study, *arguments).record.entry.where(HTML)
        return course


def _begun(request: StudyRequest, job: Job, search: Search, caller: Caller) -> Course:
    """Prepare the data, and return the study with the trials that it has."""
    check_own_model(job.store, job.dataset, job.config)
    source = own_source(job.dataset, job.config)
    split = to_training_rows(job, caller)
    configs = [job.config.model_copy(update={"seed": job.config.seed + more}) for more in range(search.seeds)]
    normalized = [caller.call(normalize, job.store, job.dataset, split, config) for config in configs]
    normalizations = tuple(job.passed(finished) for finished in normalized)
    first = Training(job.dataset, split, normalizations[0], job.config, source=source)
    begun = job.passed(caller.call(begin, job.store, first, search))
    # The store sorts names, and the space is shown as it was given.
    study = replace(begun, space={name: values.to_json() for name, values in search.space.items()})
    course = Course(request, job, search, study, split, normalizations, source)
    ledger = Ledger(job.store, job.dataset.name)
    if not ledger.find("studies", study.entry.key):
        # From now on its trials are kept.
        ledger.append("studies", study.entry.key, _values(course, "begun"))
    for trial in trials_of(job.store, job.dataset.name, study.entry.key):
        course.note(trial)
    return course


@contextmanager
def _recorded(course: Course) -> Iterator[None]:
    """Append to the ledger what the study has found after the block, unless its newest record says just that."""
    state = "interrupted"
    try:
        yield
        state = "ended"
    except IdxflowError:
        state = "failed"
        raise
    finally:
        ledger = Ledger(course.job.store, course.job.dataset.name)
        last, key = ledger.last("studies") or {}, course.study.entry.key
        # The study that was carried out last decides about the profile.
        if (last.get("run"), last.get("trials"), last.get("state")) != (key, course.counts, state):
            ledger.append("studies", key, _values(course, state))


def _values(course: Course, state: str) -> dict[str, Any]:
    """Return what the ledger keeps of a study."""
    job = course.job
    steps = Outcome("", "", job.dataset.name, "", steps=job.record.steps).for_ledger()["steps"]
    return {
        "state": state,
        "dataset": job.dataset.name,
        "started": job.record.started,
        "asked_by": job.record.asked_by,
        "trials": course.counts,
        "winner": course.winner() if course.trials else None,
        "steps": steps,
    }


def _carry_out(course: Course, tell: Tell) -> None:
    """Carry out the trials that are missing."""
    workers = course.job.workers
    if len(course.trials) >= course.total:
        return
    at_once = course.request.processes() or workers.count
    at_once = min(at_once, course.total - len(course.trials))
    if workers.elsewhere:
        _at_once(course, tell, nullcontext(partial(_on_a_worker, workers)), at_once)
    elif at_once > 1:
        _at_once(course, tell, _own_processes(at_once), at_once)
    else:
        _one_by_one(course, tell)


def _numbers(course: Course) -> Iterator[int]:
    """Yield the numbers of the trials that are missing, as long as there is time."""
    timeout = course.request.timeout
    end = None if timeout is None else time.monotonic() + timeout
    for number in range(course.total):
        if end is not None and time.monotonic() >= end:
            _log.warning(
                "%s: the time is up after %s of %s; run the same command again to go on",
                course.job.dataset.name,
                len(course.trials),
                counted(course.total, "trial"),
            )
            return
        if number not in course.trials:
            _show_bar(course)
            yield number


def _on_a_worker(workers: Workers, candidate: Candidate) -> Done[Trial]:
    """Have a worker elsewhere carry out a trial.

    Raises:
        WorkersFailed: it has another store than this process, or they cannot be reached.
    """
    result = workers.one(tried, candidate)
    if not candidate.store.has(candidate.dataset.name, "tune", name_of(candidate.study, candidate.number)):
        raise another_folder(candidate.store)
    return result


def _one_by_one(course: Course, tell: Tell) -> None:
    for number in _numbers(course):
        _note(course, tell, tried(course.candidate(number, {})).record)


def _at_once(course: Course, tell: Tell, calling: AbstractContextManager[Call], most: int) -> None:
    """Carry out several trials at a time, each watched by a thread. The first error ends all."""
    if most < 1:
        return
    numbers = _numbers(course)
    under_way: dict[Future[Done[Trial]], Candidate] = {}
    with cancellation.stoppable() as stop, calling as call, ThreadPoolExecutor(most) as threads:
        try:
            more = True
            while more or under_way:
                while more and len(under_way) < most:
                    number = next(numbers, None)
                    if more := number is not None:
                        values = {each.number: each.values for each in under_way.values()}
                        candidate = course.candidate(number, values)
                        under_way[threads.submit(copy_context().run, call, candidate)] = candidate
                for future in wait(under_way, _LOOK_SECONDS, FIRST_COMPLETED).done:
                    del under_way[future]
                    _note(course, tell, future.result().record)
        except BaseException:
            # Before the threads are waited for.
            stop()
            raise


def _note(course: Course, tell: Tell, trial: Trial) -> None:
    noted = course.note(trial)
    _show_bar(course)
    tell(course, noted, True)


def _show_bar(course: Course) -> None:
    best = course.ranking[:1]
    note = f"best {brief(score(best[0], course.search.by))}" if best else ""
    progress.advance(Progress(BAR, len(course.trials), course.total, BAR, note))


@contextmanager
def _own_processes(count: int) -> Iterator[Call]:
    """Yield what carries out a trial in one of so many processes, which end with the block."""
    free: queue.SimpleQueue[TrialProcess] = queue.SimpleQueue()
    processes = [TrialProcess() for _ in range(count)]
    for process in processes:
        free.put(process)

    def call(candidate: Candidate) -> Done[Trial]:
        process = free.get()
        try:
            return process.carry_out(candidate)
        finally:
            free.put(process)

    def end() -> None:
        for process in processes:
            process.end()

    with cancellation.calling(end):
        try:
            yield call
        finally:
            end()
