"""Whole runs without Prefect: the flow itself, and the real tasks, one after the other, as the flow calls them.

Great Expectations is imported here, once: else each run would start a process that does (`engine_process`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from expectations import engine
from flows import pipeline, retrain
from flows.run import Job, Request, RunFailed, prepare
from storage.errors import ValidationFailed
from storage.records import Confirmation, Done, RunRecord, Step
from storage.store import Store
from tasks.confirm import confirm
from tasks.publish import publish

Walk = Callable[[Job, pipeline.Caller], object]

QUICK = {"epochs": 4, "learning_rate": 0.1, "hidden": [8], "batch_size": 16}


class Unconfirmed(pipeline.Directly):
    """Calls steps without Prefect, and no process of its own for the confirmation."""

    def call(self, step: Any, *arguments: Any, **named: Any) -> Any:
        if step is confirm:
            model = arguments[2]
            return Done(Confirmation(model.entry, 64, 2e-8), Step("confirm", "", "", 0.0, False, ""))
        return super().call(step, *arguments, **named)


def run_without_prefect(
    store: Store,
    dataset: str = "digits",
    dataset_file: str | None = None,
    source: str | None = None,
    to: Walk = pipeline.to_decision,
    audit: bool = False,
    **training: Any,
) -> dict[str, Any]:
    """Do what the flow does, without Prefect: each of its steps, and what it makes of how they end; return the outcome.

    The state that it would give Prefect is checked to say the same.
    """
    engine.prepare()
    request = Request(
        dataset, dataset_file, training=QUICK | training, source=source, store=str(store.root), audit=audit
    )
    state = retrain.carry_out(request, to, caller=pipeline.Directly())
    ended = state.data.outcome if isinstance(state.data, RunFailed) else state.data
    outcome: dict[str, Any] = ended.to_json()
    # Prefect's own names: its UI goes by them.
    kind, name = ("FAILED", "Failed") if outcome["error"] else ("COMPLETED", "Completed")
    assert (state.type.value, state.name) == (kind, name)
    assert state.message == message_of(outcome)
    return outcome


def run_with_prefect(manifest: Path, store: Path, **training: Any) -> dict[str, Any]:
    """Call the flow in this process (fixture `results`); return the outcome."""
    state = retrain.retrain(dataset_file=str(manifest), store=str(store), training=QUICK | training, return_state=True)
    result = state.result(raise_on_failure=False)
    outcome = (result.outcome if isinstance(result, RunFailed) else result).to_json()
    assert (state.type.value == "COMPLETED") == (outcome["error"] is None)
    return outcome


def message_of(outcome: dict[str, Any]) -> str:
    """What Prefect shows of the end of a run: its sentence, which says of refused data that it is."""
    refused = outcome["state"] == "refused" and outcome["error"]["exit_code"] == 3
    return ("data refused: " if refused else "") + outcome["sentence"]


def whole_run(store: Store, manifest: Path, audit: bool = False, published: bool = True, **training: Any) -> Job:
    """Carry out a run without Prefect, with its record in the ledger; return the job.

    The report, most of which are charts, is left out if it is not to be `published`.
    """
    engine.prepare()
    request = Request(dataset_file=str(manifest), training=QUICK | training, store=str(store.root), audit=audit)
    job = prepare(request, "a test")
    pipeline.to_decision(job, pipeline.Directly())
    return _ended(job, published)


def carried_out(
    store: Store, manifest: Path, audit: bool = False, published: bool = True, **training: Any
) -> RunRecord:
    """Carry out a run without Prefect, whose data may be refused; return the record that its report was made from.

    It trains for 2 epochs if no more are asked for. The confirmation is left out: it starts a process of its own. So is
    the report if it is not to be `published`.
    """
    engine.prepare()
    settings = QUICK | {"epochs": 2} | training
    request = Request(dataset_file=str(manifest), training=settings, store=str(store.root), audit=audit)
    job = prepare(request, asked_by="test")
    try:
        pipeline.to_decision(job, Unconfirmed())
    except ValidationFailed as error:
        job.fail(error)
    return _ended(job, published).record


def _ended(job: Job, published: bool) -> Job:
    if published:
        job.report = job.passed(publish.fn(job.registry, job.dataset, job.record))
    job.append_to_ledger()
    return job
