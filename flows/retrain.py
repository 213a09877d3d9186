"""The main flows: from archives to a decision about a new model, with a report."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Annotated, Any, TypeVar
from uuid import UUID

from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Failed
from pydantic import Field

from flows.endings import present, settle
from flows.events import announce, send, send_without_waiting
from flows.interruption import Terminated, keep_prefect_outside_locks
from flows.pipeline import ByPrefect, Caller, report, to_decision, to_validation
from flows.run import Job, Request, RunFailed, not_started, prepare, refusal
from flows.schedule import SUPERSEDED, CatchUp, superseded
from flows.service import temporary
from flows.settings import LOGGERS, relax_garbage_collection
from storage.datasets.catalog import NAME_SCHEMA, BadRow
from storage.datasets.chosen import DAY
from storage.datasets.training import Profile, TrainingOverrides
from storage.errors import DamagedEntry, IdxflowError
from storage.objects.address import OPEN_STORE
from storage.outcomes import Outcome
from storage.records import HTML, to_json
from storage.runtime import arithmetic, cancellation
from storage.snapshots import ARRIVAL
from storage.workers.address import OPEN_WORKERS
from storage.workers.current import using
from tasks.sources.origins import OPEN_SOURCE
from tasks.ui import artifacts, progress
from tasks.ui.parts import PartsDisplay

R = TypeVar("R")

# Prefect: source-pattern. Prefect's server checks the schema before it stores the input. A pydantic validator would
# quote the address in its error. The same holds for the address of a store.
Source = Annotated[str | None, Field(json_schema_extra={"pattern": OPEN_SOURCE})]

StorePlace = Annotated[str | None, Field(json_schema_extra={"pattern": OPEN_STORE})]

WorkersName = Annotated[str | None, Field(json_schema_extra={"pattern": OPEN_WORKERS})]

DatasetName = Annotated[str, Field(pattern=NAME_SCHEMA)]
Share = Annotated[float, Field(ge=0, le=1)]
Day = Annotated[str, Field(pattern=DAY)]
ArrivalId = Annotated[str, Field(pattern=ARRIVAL)]

_PATIENCE_SECONDS = 3
_MOST_MENDED = 5
"""Damaged entries that one run makes again."""

_log = logging.getLogger(__name__)

# Every process that trains imports this module, and TensorFlow after it.
arithmetic.leave_to_the_processor()
keep_prefect_outside_locks()


@flow(name="retrain", flow_run_name="{dataset}")
def retrain(
    dataset: str = "digits",
    profile: Profile = "default",
    training: TrainingOverrides | None = None,
    source: Source = None,
    store: StorePlace = None,
    dataset_file: str | None = None,
    force: bool = False,
    audit: bool = False,
    catch_up: CatchUp = "latest",
    quarantine: list[BadRow] | None = None,
    quarantine_limit: Share | None = None,
    workers: WorkersName = None,
    as_of: Day | None = None,
) -> State[Outcome]:
    """Retrain the classifier of one data set and keep the better model.

    Fetches the archives, decodes, validates, normalizes, trains, evaluates, decides whether the new model
    replaces the champion, and publishes a report. Results that are already in the store are verified and reused.

    Args:
        dataset: Name of a data set of the catalog: digits (embedded), mnist, kmnist, emnist-letters, …
        profile: Training recipe: default, tutorial (the published recipe), fast, conv, best, or tuned (by a study).
        training: Individual training parameters that differ from the profile and the data set's own defaults.
        source: Folder or URL (without credentials: these go into IDXFLOW_SOURCE, the default), before the mirrors.
        store: Folder or address of the store. Default: IDXFLOW_STORE, otherwise `store` next to the source code.
        dataset_file: Manifest (TOML) of your own data set; replaces `dataset`.
        force: Train, evaluate and decide again even if nothing is new.
        audit: Look for wrong labels and near-duplicates, too; the report shows them, and nothing is removed.
        catch_up: Runs for scheduled times that were missed: latest (one run makes up for all) or all.
        quarantine: Bad rows to set aside instead of stopping. Default: those that the manifest names.
        quarantine_limit: Largest share of a split's rows to set aside. Default: that of the manifest.
        workers: Who computes the parts of large data: a number of processes, or the address of a Dask cluster.
        as_of: Use only archives of this day or earlier, such as 2026-11-30. Default: all.
    """
    request = Request(
        dataset,
        dataset_file,
        profile,
        parameters_of(training),
        source=source,
        store=store,
        force=force,
        audit=audit,
        quarantine=_given(quarantine),
        quarantine_limit=quarantine_limit,
        workers=workers,
        as_of=as_of,
    )
    missed = superseded(catch_up)
    if missed:
        _log.info("%s: %s", dataset_file or dataset, missed)
        describe_run(f"{dataset} {SUPERSEDED}", SUPERSEDED)
        return Completed(message=missed, data=not_started(request, SUPERSEDED, missed))
    return carry_out(request, to_decision)


# The same work with other parameters: those of `retrain` choose what is read, which this caller must not.
@flow(name="retrain", flow_run_name="{dataset}")
def retrain_arrival(
    dataset: DatasetName,
    arrival: ArrivalId,
    profile: Profile = "default",
    training: TrainingOverrides | None = None,
    force: bool = False,
    audit: bool = False,
    workers: WorkersName = None,
) -> State[Outcome]:
    """Retrain the classifier on a set of archives that has arrived in a folder.

    Does what the other deployments of `retrain` do, on a set that `idxflow watch` has taken into the store of this
    worker. The store, not a parameter, determines the manifest and the archives.

    Args:
        dataset: Name of the data set.
        arrival: Id of the set, as `idxflow watch` prints it, such as 20261128-201530-0c4f1a2b.
        profile: Training recipe: default, tutorial (the published recipe), fast, conv, best, or tuned (by a study).
        training: Individual training parameters that differ from the profile and the data set's own defaults.
        force: Train, evaluate and decide again even if nothing is new.
        audit: Look for wrong labels and near-duplicates, too; the report shows them, and nothing is removed.
        workers: Who computes the parts of large data: a number of processes, or the address of a Dask cluster.
    """
    how: dict[str, Any] = {"force": force, "audit": audit, "arrival": arrival, "workers": workers}
    request = Request(dataset, profile=profile, training=parameters_of(training), **how)
    return carry_out(request, to_decision)


@flow(name="validate", flow_run_name="{dataset}")
def validate_dataset(
    dataset: str = "digits",
    source: Source = None,
    store: StorePlace = None,
    dataset_file: str | None = None,
    quarantine: list[BadRow] | None = None,
    quarantine_limit: Share | None = None,
    workers: WorkersName = None,
    as_of: Day | None = None,
) -> State[Outcome]:
    """Fetch, decode and validate one data set, and stop there.

    Args:
        dataset: Name of a data set of the catalog.
        source: Folder or URL (without credentials: these go into IDXFLOW_SOURCE, the default), before the mirrors.
        store: Folder or address of the store. Default: IDXFLOW_STORE, otherwise `store` next to the source code.
        dataset_file: Manifest (TOML) of your own data set; replaces `dataset`.
        quarantine: Bad rows to set aside instead of stopping. Default: those that the manifest names.
        quarantine_limit: Largest share of a split's rows to set aside. Default: that of the manifest.
        workers: Who computes the parts of large data: a number of processes, or the address of a Dask cluster.
        as_of: Use only archives of this day or earlier, such as 2026-11-30. Default: all.
    """
    request = Request(
        dataset,
        dataset_file,
        source=source,
        store=store,
        quarantine=_given(quarantine),
        quarantine_limit=quarantine_limit,
        workers=workers,
        as_of=as_of,
    )
    return carry_out(request, to_validation, "validate")


def parameters_of(training: TrainingOverrides | None) -> dict[str, Any]:
    """Return the training parameters that were given.

    Null is a value like others: a run may leave out the `patience` that the data set has. But for a run of a
    deployment, Prefect's form sends it for each field that was left alone.
    """
    if not training:
        return {}
    # Prefect's `runtime` would ask the server.
    context = FlowRunContext.get()
    is_deployed = bool(context and context.flow_run and context.flow_run.deployment_id)
    return training.model_dump(exclude_unset=True, exclude_none=is_deployed)


def _given(quarantine: list[BadRow] | None) -> tuple[str, ...] | None:
    return None if quarantine is None else tuple(quarantine)


def carry_out(
    request: Request, walk: Callable[[Job, Caller], object], command: str = "run", caller: Caller | None = None
) -> State[Outcome]:
    """Carry out a run, or the part of it that `walk` does, and return its outcome as a Prefect state.

    Args:
        walk: `to_decision` or `to_validation`.
        command: the `idxflow` command that does the same.
        caller: calls the steps; None: Prefect does.
    """
    caller = caller or ByPrefect()
    relax_garbage_collection()
    send_without_waiting()
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        job = prepare(request, asked_by=who_asked())
    except IdxflowError as error:
        describe_run(f"{request.dataset_file or request.dataset} failed", "failed")
        return Failed(message=str(error), data=RunFailed(refusal(request, error)))
    describe_run(f"{job.dataset.name} {job.record.id}")
    settle(job.store, job.dataset.name)
    with (
        _under_way(job, request, command),
        closing(job.workers),
        using(job.workers),
        progress.listening(PartsDisplay(job.dataset.name)),
        cancellation.cancellable(),
        job.store.in_use(job.dataset.name),
    ):
        with _failing(job):
            _walk(walk, job, caller)
            job.refuse_if_below_floor()
        return _finish(job, caller)


def _walk(walk: Callable[[Job, Caller], object], job: Job, caller: Caller) -> None:
    """Do the work, once more after each entry that turned out to be damaged and was removed from the store."""
    before = job.record
    for _ in range(_MOST_MENDED):
        try:
            walk(job, caller)
            return
        except DamagedEntry as error:
            if not error.removed:
                raise
            _log.warning("%s: %s", job.dataset.name, error)
            job.record = before
    walk(job, caller)


@contextmanager
def _under_way(job: Job, request: Request, command: str) -> Iterator[None]:
    """Leave a trace from which others record the end of a run that dies; a stopped run records its own."""
    again = _again(request, command)
    lasting = runtime.flow_run.id and not temporary.in_use()
    with job.under_way({**present(), "flow_run": runtime.flow_run.id if lasting else None, "again": again}):
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception):
                how, what = _stopped_by(error)
                job.stop(how, f"{what}; run it again to resume: {again}")
            raise


def _again(request: Request, command: str) -> str:
    """Return the command that repeats the run."""
    deployment = runtime.deployment.name
    if deployment:
        values = {"dataset": request.dataset, "arrival": request.arrival} if request.arrival else {}
        parameters = "".join(f" --param {name}={value}" for name, value in values.items())
        return f"idxflow prefect deployment run {runtime.flow_run.flow_name}/{deployment}{parameters}"
    return request.command(command)


def _stopped_by(error: BaseException) -> tuple[str, str]:
    """Return the state of a run that `error` ends, and what happened, in a clause."""
    if isinstance(error, KeyboardInterrupt) and not isinstance(error, Terminated):
        return "interrupted", "it was stopped by Ctrl-C"
    if runtime.deployment.id and _is_cancelling():
        return "cancelled", "it was cancelled"
    hung_up = isinstance(error, Terminated) and error.args == (signal.SIGHUP,)
    return "terminated", "its terminal was closed" if hung_up else "it was ended by SIGTERM"


def _is_cancelling() -> bool:
    """Return whether this run is being cancelled; the server must answer fast, because little time is left."""
    settings = {PREFECT_API_REQUEST_TIMEOUT: _PATIENCE_SECONDS, PREFECT_CLIENT_MAX_RETRIES: 0}
    try:
        with temporary_settings(settings), get_client(sync_client=True) as client:
            kind = client.read_flow_run(UUID(str(runtime.flow_run.id))).state_type
    except Exception as error:
        _log.debug("cannot ask the server why the run is being ended: %s", error)
        return False
    return kind in (StateType.CANCELLING, StateType.CANCELLED)


def _finish(job: Job, caller: Caller) -> State[Outcome]:
    """Publish the report, write the ledger, and return how the run ended as a Prefect state."""
    with _failing(job):
        job.report = report(job, caller)
    # A run without a report belongs in the ledger, too.
    with _failing(job):
        job.append_to_ledger()
    if runtime.flow_run.id:
        _announce(job)
    describe_run(f"{job.dataset.name} {job.record.id} {job.words}", job.state)
    if job.report:
        _log.info("report: %s", job.report.entry.where(HTML))
    outcome = job.outcome
    # For the command line, which prints it even if the Prefect server has become unreachable.
    ending = {"ending": outcome}
    # Prefect: names-in-events. The states keep Prefect's own names: filters and automations in its UI rely on them.
    if job.record.failure:
        _log.error(job.sentence, extra=ending)
        return Failed(message=job.message, data=RunFailed(outcome))
    _log.info("%s: %s", job.dataset.name, job.sentence, extra=ending)
    return Completed(message=job.message, data=outcome)


def _announce(job: Job) -> None:
    """Emit the events of an ended run, which is in the ledger."""
    record = job.record
    if record.decision:
        announce(job.dataset.name, record.id, record.decision)
    # A model that was refused is a decision.
    if record.failure and job.words != "model refused":
        kind = "data-refused" if job.words == "data refused" else "failed"
        send(kind, job.dataset.name, {"run": record.id, "sentence": job.sentence, "error": to_json(record.failure)})


@contextmanager
def _failing(job: Job) -> Iterator[None]:
    """Note an error of the block as why the run failed."""
    try:
        yield
    except Exception as error:
        _raise_if_stopped(error)
        job.fail(error)


def _raise_if_stopped(error: BaseException | None) -> None:
    """Raise the Ctrl-C or termination that led to `error`, if there was one.

    Between two states of a task, Prefect can respond to it with an error of its own ("Task run is not set"), which is
    not a failure of the run.
    """
    # Prefect: stopped-between-states.
    while error:
        if not isinstance(error, Exception):
            raise error
        error = error.__cause__ or error.__context__


def who_asked() -> str:
    """Return who has started this run: the command line, or a deployment."""
    deployment = runtime.deployment.name
    return f"deployment {runtime.flow_run.flow_name}/{deployment}" if deployment else "command line"


def describe_run(name: str, *tags: str) -> None:
    """Give the flow run a more informative name than it had when it was scheduled, and tags to filter by."""
    run = runtime.flow_run.id
    if not run or not artifacts.reachable():
        return
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(run), name=name, tags=[*(runtime.flow_run.tags or ()), *tags])
    except Exception as error:
        # Only a name: no error of the client may end the run.
        _log.warning("the flow run keeps its name: %s: %s", type(error).__name__, error)
