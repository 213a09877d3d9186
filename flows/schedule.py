"""Handle missed times of a schedule.

After an outage of the worker, all missed runs are due at once. Retraining once makes up for all of them, so by default
only the latest is carried out and the others end as superseded: completed, with that word in name and tags.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from prefect import Flow, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.states import Completed, Scheduled

CatchUp = Literal["latest", "all"]
SUPERSEDED = "superseded"
# Prefect: turned-away. Only the message distinguishes such a run from one that a person cancelled.
_NO_SLOT = ("Deployment concurrency limit reached", "Deployment concurrency slot lost during provisioning")
"""How Prefect's server says that it cancelled a run because another one holds the deployment's only slot.

The first is for a run that came due, the second for one whose slot was given away while its process was starting.
"""

_log = logging.getLogger(__name__)


def superseded(catch_up: CatchUp) -> str | None:
    """Return why this run need not be carried out, or None if it must be.

    A run that a person started is always carried out. Missed runs that the deployment's concurrency limit cancelled
    because of this run get their correct state: the latest is rescheduled as soon as this run has ended, and all
    others end as superseded.
    """
    run = runtime.flow_run.id
    if catch_up == "all" or not run or not runtime.deployment.id:
        return None
    try:
        with get_client(sync_client=True) as client:
            return _make_way(client, client.read_flow_run(UUID(run)))
    except Exception as error:
        # The client may raise anything; one run too many is better than none.
        _log.warning("missed runs cannot be looked up: %s: %s", type(error).__name__, error)
        return None


def _make_way(client: SyncPrefectClient, run: FlowRun) -> str | None:
    if not run.auto_scheduled or not run.expected_start_time:
        return None
    others = _others(client, run)
    later = [other for other in others if _after(other, run.expected_start_time)]
    latest = later[0] if later else run
    why = f"superseded by the run scheduled for {latest.expected_start_time:%Y-%m-%d %H:%M:%S} UTC"
    for other in others:
        if other is not latest and _was_missed(other, latest):
            name = f"{other.parameters.get('dataset', other.name)} {SUPERSEDED}"
            client.update_flow_run(other.id, name=name, tags=[*other.tags, SUPERSEDED])
            client.set_flow_run_state(other.id, Completed(message=why), force=True)
    if not later:
        return None
    _once_ended(latest.id)
    return why


def _others(client: SyncPrefectClient, run: FlowRun) -> list[FlowRun]:
    """Return the other runs scheduled until now, latest first, without those that a user cancelled."""
    run_filter = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id] if run.deployment_id else []),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),  # type: ignore[arg-type]
    )
    runs = client.read_flow_runs(flow_run_filter=run_filter, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
    return [
        other
        for other in runs
        if other.auto_scheduled
        and other.id != run.id
        and (other.state_type != StateType.CANCELLED or turned_away(other))
    ]


def _after(run: FlowRun, moment: datetime) -> bool:
    return run.expected_start_time is not None and run.expected_start_time > moment


def _was_missed(run: FlowRun, latest: FlowRun) -> bool:
    """Return whether a run is still due, or was turned away only once the latest was due, too."""
    if run.state_type == StateType.SCHEDULED:
        return True
    return bool(
        turned_away(run)
        and run.state
        and latest.expected_start_time
        and run.state.timestamp >= latest.expected_start_time
    )


def turned_away(run: FlowRun) -> bool:
    """Return whether the deployment's concurrency limit has cancelled a run."""
    message = (run.state.message if run.state else None) or ""
    return run.state_type == StateType.CANCELLED and message.startswith(_NO_SLOT)


def _once_ended(latest: UUID) -> None:
    """Reschedule the latest run when the current run ends, which holds the slot until then."""
    context = FlowRunContext.get()
    if not (context and context.flow):
        return

    @context.flow.on_completion
    def make_way(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
        with get_client(sync_client=True) as client:
            if turned_away(client.read_flow_run(latest)):
                client.set_flow_run_state(latest, Scheduled(message="the latest missed run"), force=True)
