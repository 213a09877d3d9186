"""What a scheduled run does about the schedule's times that were missed.

After an outage of the worker all missed runs are due at once. Retraining once makes up for all of them, so by
default only the latest is carried out and the others end as `Superseded`.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Completed, Scheduled

CatchUp = Literal["latest", "all"]
SUPERSEDED = "Superseded"
_NOT_STARTED = (StateType.SCHEDULED, StateType.PENDING, StateType.CANCELLED)

_log = logging.getLogger(__name__)


def superseded(catch_up: CatchUp) -> str | None:
    """Return why this run need not be carried out, or None if it must be.

    A run that somebody asked for is always carried out. If this one is superseded, the runs between it and the
    latest are ended too, and the latest is made due again should the deployment's concurrency limit have
    cancelled it because of this run.
    """
    run = runtime.flow_run.id
    if catch_up == "all" or not run or not runtime.deployment.id:
        return None
    try:
        with get_client(sync_client=True) as client:
            return _make_way(client, client.read_flow_run(UUID(run)))
    except Exception as error:
        # Whatever the client raises: running once too often is better than not at all.
        _log.warning("missed runs are not looked for: %s: %s", type(error).__name__, error)
        return None


def _make_way(client: SyncPrefectClient, run: FlowRun) -> str | None:
    later = _later(client, run) if run.auto_scheduled else []
    if not later:
        return None
    latest = later[0]
    why = f"superseded by the run scheduled for {latest.expected_start_time:%Y-%m-%d %H:%M:%S} UTC"
    for other in later[1:]:
        if _not_started(other):
            client.set_flow_run_state(other.id, _ended(why), force=True)
    if latest.state_type == StateType.CANCELLED:
        client.set_flow_run_state(latest.id, Scheduled(message="the latest missed run"), force=True)
    return why


def _later(client: SyncPrefectClient, run: FlowRun) -> list[FlowRun]:
    """Return the runs that the schedule wanted after this one and until now, the latest first."""
    wanted = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id] if run.deployment_id else []),
        expected_start_time=FlowRunFilterExpectedStartTime(
            after_=run.expected_start_time,
            before_=datetime.now(UTC),  # type: ignore[arg-type]
        ),
    )
    found = client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
    return [other for other in found if other.auto_scheduled and other.id != run.id]


def _not_started(run: FlowRun) -> bool:
    return run.state_type in _NOT_STARTED and run.start_time is None


def _ended(why: str) -> State[None]:
    return Completed(name=SUPERSEDED, message=why)
