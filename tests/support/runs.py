"""Whole runs without Prefect: the flow itself, and the real tasks, one after the other, as the flow calls them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows import retrain
from flows.run import Job, Request, RunFailed, prepare
from storage.errors import ValidationFailed
from storage.records import SPLITS, Archive, RunRecord
from storage.store import Store
from tasks.confirm import confirm
from tasks.decide import Candidate, current_champion, decide
from tasks.decode import decode
from tasks.evaluate import evaluate
from tasks.fetch import fetch
from tasks.normalize import normalize
from tasks.publish import publish
from tasks.train import train
from tasks.validate import validate
from tests.support.crashrun import confirmed, leave_out_prefect

QUICK = {"epochs": 4, "learning_rate": 0.1, "hidden": [8], "batch_size": 16}


def hopped(
    store: Store,
    dataset: str = "digits",
    dataset_file: str | None = None,
    source: str | None = None,
    to: Callable[[Job], object] = retrain.to_decision,
    **training: Any,
) -> dict[str, Any]:
    """Do what the flow does, without Prefect: each of its steps, and what it makes of how they end; return the outcome.

    The state that it would give Prefect is checked to say the same.
    """
    request = Request(dataset, dataset_file, training=QUICK | training, source=source, store=str(store.root))
    with pytest.MonkeyPatch.context() as patch:
        leave_out_prefect(patch.setattr)
        state = retrain.carry_out(request, to)
    ended = state.data.outcome if isinstance(state.data, RunFailed) else state.data
    outcome: dict[str, Any] = ended.to_json()
    # Prefect's own names: its UI goes by them.
    kind, name = ("FAILED", "Failed") if outcome["error"] else ("COMPLETED", "Completed")
    assert (state.type.value, state.name) == (kind, name)
    assert state.message == message_of(outcome)
    return outcome


def message_of(outcome: dict[str, Any]) -> str:
    """What Prefect shows of the end of a run: its sentence, which says of refused data that it is."""
    refused = outcome["state"] == "refused" and outcome["error"]["exit_code"] == 3
    return ("data refused: " if refused else "") + outcome["sentence"]


def whole_run(store: Store, manifest: Path, **training: Any) -> Job:
    """Fetch, decode, validate, train, evaluate, confirm, decide, publish and record; return the job."""
    job = prepare(Request(dataset_file=str(manifest), training=QUICK | training, store=str(store.root)), "a test")
    data = job.dataset
    fetched = [job.keep("archives", fetch.fn(store, data, spec, job.source)) for spec in data.archives]
    archives = {archive.role: archive for archive in fetched}
    train_rows, test_rows = (
        job.keep(name, decode.fn(store, data, name, archives[f"{name}-images"], archives[f"{name}-labels"]))
        for name in SPLITS
    )
    job.keep("validation", validate.fn(store, data, train_rows, test_rows))
    normalization = job.keep("normalization", normalize.fn(store, data, train_rows, job.config))
    model = job.keep("model", train.fn(store, data, train_rows, normalization, job.config))
    evaluation = job.keep("evaluation", evaluate.fn(store, data, model, test_rows))
    job.keep("confirmation", confirm.fn(store, data, model, test_rows, evaluation))
    with job.registry.deciding():
        champion = current_champion(job.registry, data)
        if champion and champion.model:
            champion = replace(champion, score=evaluate.fn(store, data, champion.model, test_rows).record)
        candidate = Candidate(model, evaluation, train_rows, test_rows)
        job.keep("decision", decide.fn(job.registry, data, job.record.id, candidate, champion))
    job.report = job.passed(publish.fn(job.registry, data, job.record))
    job.append_to_ledger()
    return job


def carried_out(store: Store, manifest: Path, **training: Any) -> RunRecord:
    """Take a run through the steps, as the flow does, and return the record that its report was made from.

    It trains for 2 epochs if no more are asked for. Data that is refused ends it with a report, as in the flow. The
    confirmation is left out: it starts a process that imports TensorFlow.
    """
    wanted = QUICK | {"epochs": 2} | training
    request = Request(dataset_file=str(manifest), training=wanted, store=str(store.root))
    job = prepare(request, asked_by="test")
    try:
        _to_decision(job)
    except ValidationFailed as error:
        job.note(validation=error.validation, steps=(*job.record.steps, error.step))
        job.fail(error)
    job.report = job.passed(publish.fn(job.registry, job.dataset, job.record))
    job.append_to_ledger()
    return job.record


def _to_decision(job: Job) -> None:
    store, dataset = job.store, job.dataset
    archives: dict[str, Archive] = {}
    for spec in dataset.archives:
        archives[spec.role] = job.keep("archives", fetch.fn(store, dataset, spec, job.source))
    for name in SPLITS:
        job.keep(name, decode.fn(store, dataset, name, archives[f"{name}-images"], archives[f"{name}-labels"]))
    rows, test = job.record.train, job.record.test
    assert rows
    assert test
    job.keep("validation", validate.fn(store, dataset, rows, test))
    normalization = job.keep("normalization", normalize.fn(store, dataset, rows, job.config))
    model = job.keep("model", train.fn(store, dataset, rows, normalization, job.config))
    score = job.keep("evaluation", evaluate.fn(store, dataset, model, test))
    job.keep("confirmation", confirmed(store, dataset, model))
    champion = current_champion(job.registry, dataset)
    if champion and champion.model:
        done = evaluate.fn(store, dataset, champion.model, test, whose="champion")
        champion = replace(champion, score=job.keep("champion_evaluation", done))
    job.keep("decision", decide.fn(job.registry, dataset, job.record.id, Candidate(model, score, rows, test), champion))
