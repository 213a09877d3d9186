"""`idxflow run` and `idxflow validate`: call a flow in this process, and show its steps as they end.

A flow needs a Prefect server: the configured one, otherwise that of `idxflow up`, otherwise a temporary one.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.commands.options import (
    AsJson,
    AsOf,
    DatasetFile,
    DatasetFiles,
    InsecureWorkers,
    Quarantine,
    QuarantineLimit,
    Recipe,
    Settings,
    Source,
    StoreFolder,
    Timings,
    Workers,
    words,
)
from flows.commands.several import chosen, run_several
from flows.interruption import interruptible
from flows.service import configuration
from flows.settings import silence_prefect
from flows.terminal.output import print_json, remark
from storage.errors import IdxflowError, PrefectFailed
from storage.files import WAITING
from storage.opening import open_store
from storage.runtime import timings as clocks
from storage.store import Store
from storage.workers.address import INSECURE_VARIABLE, are_elsewhere

if TYPE_CHECKING:
    from flows.run import Request
    from flows.service.temporary import TemporaryServer
    from flows.terminal.console import Console
    from storage.outcomes import Outcome

_VARIABLE = r"/[0-9a-f]{8}-[0-9a-f-]{27}"
_log = logging.getLogger(__name__)


def run(
    dataset: Annotated[list[str] | None, Parameter(negative="")] = None,
    *,
    all_: Annotated[
        bool,
        Parameter(
            name="--all",
            negative="",
            help="Retrain every data set of the catalog. The first time, that downloads 0.7 GB, and EMNIST takes long.",
        ),
    ] = False,
    at_once: Annotated[
        int | None,
        Parameter(
            help="Retrain at most so many of several data sets at a time; each needs its own memory. Default: 1; with "
            "a cluster of workers, which train the models, as many as this machine has processors.",
            validator=Number(gte=1),
        ),
    ] = None,
    profile: Recipe = "default",
    set_: Settings = None,
    memory: Annotated[
        str | None,
        Parameter(
            help="Memory budget for training pixels, such as `2GiB`; larger data is sharded to disk. "
            "Default: `512MiB`. Short for `--set memory=…`."
        ),
    ] = None,
    force: Annotated[
        bool, Parameter(negative="", help="Train, evaluate and decide again even if nothing has changed.")
    ] = False,
    audit: Annotated[
        bool,
        Parameter(negative="", help="Look for wrong labels and near-duplicates, too; nothing is removed."),
    ] = False,
    as_of: AsOf = None,
    quarantine: Quarantine = None,
    quarantine_limit: QuarantineLimit = None,
    source: Source = None,
    store: StoreFolder = None,
    workers: Workers = None,
    insecure_workers: InsecureWorkers = False,
    dataset_file: DatasetFiles = None,
    as_json: AsJson = False,
    timings: Timings = False,
) -> int:
    """Retrain data sets: fetch, validate, train, decide, report.

    Results that are in the store are verified and reused, so running again resumes an interrupted run. Each line says
    what a step did, how long it took, and why it ran or that it was reused.

    Of several data sets, each is retrained whether or not the others succeed, with the same options; a table at the end
    says how each ended. The exit code is 0 if all ended well, otherwise that of the first, in the order given, that did
    not.

    Examples: `idxflow run` · `idxflow run mnist --source ~/archives` · `idxflow run mnist --set epochs=5 --json` ·
    `idxflow run --dataset-file mine.toml` · `idxflow run mnist --quarantine leaked` · `idxflow run mnist kmnist` ·
    `idxflow run --all --at-once 2` · `idxflow run --dataset-file big.toml --workers 4` ·
    `idxflow run mnist kmnist --store s3://bucket/idxflow --workers tls://scheduler:8786`

    Args:
        dataset: Data sets of the catalog: see `idxflow datasets`. Default: `digits`.
    """
    from flows.run import Request

    settings = (*(set_ or ()), *([f"memory={memory}"] if memory else ()))
    day = _day(as_of)
    # The profile is any text until `Request.resolve` has checked it.
    requests = [
        Request(
            name,
            file,
            profile,  # type: ignore[arg-type]
            settings=settings,
            source=source,
            store=store,
            force=force,
            audit=audit,
            quarantine=words(quarantine),
            quarantine_limit=quarantine_limit,
            workers=workers,
            insecure_workers=insecure_workers,
            as_of=day,
        )
        for name, file in chosen(dataset or [], dataset_file or [], all_, timings)
    ]
    if len(requests) == 1:
        return _run_flow("retrain", requests[0], as_json, timings)
    return run_several(requests, at_once or _at_once(workers), as_json)


def validate(
    dataset: str = "digits",
    *,
    as_of: AsOf = None,
    quarantine: Quarantine = None,
    quarantine_limit: QuarantineLimit = None,
    source: Source = None,
    store: StoreFolder = None,
    workers: Workers = None,
    insecure_workers: InsecureWorkers = False,
    dataset_file: DatasetFile = None,
    as_json: AsJson = False,
    timings: Timings = False,
) -> int:
    """Fetch, decode and validate a data set, without training.

    Exit code 3 if the data is refused.

    Examples: `idxflow validate --dataset-file mine.toml` ·
    `idxflow validate --dataset-file mine.toml --as-of 2026-11-30`

    Args:
        dataset: A data set of the catalog: see `idxflow datasets`.
    """
    from flows.run import Request

    request = Request(
        dataset,
        dataset_file,
        source=source,
        store=store,
        quarantine=words(quarantine),
        quarantine_limit=quarantine_limit,
        workers=workers,
        insecure_workers=insecure_workers,
        as_of=_day(as_of),
    )
    return _run_flow("validate_dataset", request, as_json, timings)


def _at_once(workers: str | None) -> int:
    """Return how many data sets to retrain at a time if nobody says it."""
    # What remains for this machine when others train is about one processor's work for each data set.
    return (os.cpu_count() or 1) if are_elsewhere(workers) else 1


def _day(as_of: str | None) -> str | None:
    """Return the day that `--as-of` was given, as ISO 8601; None if it was not."""
    from storage.datasets.chosen import day_of

    return day_of(as_of, "--as-of").isoformat() if as_of else None


def _run_flow(flow: str, request: Request, as_json: bool, with_timings: bool) -> int:
    """Run one of the flows of `flows.retrain`, print its steps and its outcome, and return the exit code."""
    from flows.run import refusal
    from flows.terminal import timings

    if request.insecure_workers:
        # Not a parameter of the flow: who starts runs in the Prefect UI cannot give up the protection.
        os.environ[INSECURE_VARIABLE] = "1"
    clock = (clocks.running() or clocks.start()) if with_timings else None
    try:
        # Wrong usage is reported in milliseconds, not after Prefect has started.
        request.resolve()
        open_store(request.store)
        outcome = _watched(flow, request, as_json)
    except IdxflowError as error:
        outcome = refusal(request, error)
        remark(outcome.sentence)
    if as_json:
        print_json({**outcome.to_json(), **({"timings": timings.to_json(clock)} if clock else {})})
    elif clock:
        timings.print_timings(clock)
    if outcome.run:
        from flows.alerts.delivery import tell

        tell(request.store, outcome.dataset)
    return outcome.exit_code


def _watched(flow: str, request: Request, as_json: bool) -> Outcome:
    from flows.terminal.console import Console

    # Must precede the import of Prefect.
    silence_prefect()
    # Without this, each log line that cannot be sent to the server prints an error.
    logging.raiseExceptions = False
    with interruptible() as interruptions, Console(as_json) as console:
        outcome = console.watch(lambda: _with_server(flow, request, console))
        if interruptions and outcome.error:
            raise interruptions[0]
        return outcome


def _with_server(flow: str, request: Request, console: Console) -> Outcome:
    """Call the flow; if a Prefect server has to be started, import what the run needs while it starts."""
    with ExitStack() as stack:
        _log.info("importing Prefect (the first time takes longest)", extra=WAITING)
        with console.waiting("importing Prefect") as waiting_for:
            configuration.read()
            server = stack.enter_context(_server(open_store(request.store)))
            from flows import retrain
            from flows.preload import preload

            if server:
                waiting_for("importing libraries while Prefect's server starts")
                if flow == "retrain":
                    preload(request, server.is_decided)
                waiting_for("waiting for Prefect's server")
                with clocks.span("waiting for Prefect's server"):
                    server.wait()
        _time_requests()
        with clocks.span("Prefect's flow and task runs"):
            return _called(getattr(retrain, flow), request)


def _time_requests() -> None:
    """Give requests to Prefect a name each in the timings: the method, and the path without what is variable."""
    import httpx

    def name(_: object, request: httpx.Request) -> str:
        return f"request {request.method} {re.sub(_VARIABLE, '/…', request.url.path)}"

    clocks.watch(httpx.HTTPTransport, "handle_request", name)
    clocks.watch(httpx.AsyncHTTPTransport, "handle_async_request", name)


@contextmanager
def _server(store: Store) -> Iterator[TemporaryServer | None]:
    """Have Prefect use its configured server, otherwise that of `idxflow up`, otherwise a new one, and yield only that.

    Args:
        store: can be cleaned up if the new server finds its disk full.
    """
    from flows.service import client

    if configuration.url():
        with client.used_as_configured():
            yield None
    elif running := client.server_of_up():
        _log.info("using the Prefect server of `idxflow up` at %s", running.ui, extra=WAITING)
        with client.used(running):
            yield None
    else:
        from flows.service import temporary

        with temporary.temporary_server(store.command("gc")) as server:
            yield server


def _called(flow: Callable[..., Any], request: Request) -> Outcome:
    """Call the flow, and return its outcome whether it succeeded or failed.

    Raises:
        PrefectFailed: Prefect could not run the flow.
    """
    from flows import retrain
    from flows.run import RunFailed

    parameters: dict[str, Any] = {
        "dataset": request.dataset,
        "source": request.source,
        "store": request.store,
        "dataset_file": request.dataset_file,
        "quarantine": request.quarantine and [*request.quarantine],
        "quarantine_limit": request.quarantine_limit,
        "workers": request.workers,
        "as_of": request.as_of,
    }
    if flow is retrain.retrain:
        parameters |= {"profile": request.profile, "training": request.overrides, "force": request.force}
        parameters |= {"audit": request.audit}
    try:
        state = flow(**parameters, return_state=True)
    except Exception as error:
        # The flow returns its own failures as states, so this error is Prefect's.
        place = configuration.source()
        remedy = f"is the server at {configuration.url()} up? Start it, or remove {place}" if place else "try again"
        raise PrefectFailed(f"expected Prefect to run the flow; {type(error).__name__}: {error}; {remedy}") from error
    result = state.result(raise_on_failure=False)
    if isinstance(result, RunFailed):
        return result.outcome
    if isinstance(result, BaseException):
        raise result
    outcome: Outcome = result
    return outcome
