"""Flow runs whose process is dead: marked at once, instead of after missed heartbeats."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelled, Crashed

# Prefect: orphans. Nothing else notices a run that died together with its worker.
_UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.PAUSED]
_WORKER_LABEL = "prefect.worker.name"


def end_orphans(client: SyncPrefectClient, pool: str, worker: str, before: datetime, why: str) -> tuple[str, ...]:
    """End the runs that an earlier process of this worker started and whose own process is dead; return their names.

    A worker of that name exists on one machine only, so their process ids are this machine's. Ending a run also
    frees its deployment's concurrency slot, so that the next run is not rejected.

    Args:
        client: A client of the server.
        pool: Name of the work pool.
        worker: Name of the worker.
        before: Only runs whose state is older; the current worker handles its own.
        why: The cause, for the state's message.
    """
    ended = []
    for run in _unfinished(client, pool, worker):
        if run.state and run.state.timestamp < before and not _alive(run):
            message = f"{why}; run it again to resume"
            cancelling = run.state.type == StateType.CANCELLING
            client.set_flow_run_state(run.id, Cancelled() if cancelling else Crashed(message=message))
            ended.append(run.name)
    return tuple(ended)


def processes(client: SyncPrefectClient, pool: str, worker: str) -> tuple[int, ...]:
    """Return the process ids of this worker's runs that are still alive."""
    return tuple(int(run.infrastructure_pid or 0) for run in _unfinished(client, pool, worker) if _alive(run))


def _unfinished(client: SyncPrefectClient, pool: str, worker: str) -> Iterator[FlowRun]:
    states = FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED))
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=states),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    )
    return (run for run in runs if run.labels.get(_WORKER_LABEL) == worker)


def _alive(run: FlowRun) -> bool:
    """Return whether the run's process exists; on Linux, also check that its id was not reused by another process."""
    pid = run.infrastructure_pid
    if not pid or not pid.isdigit():
        return False
    environment = Path(f"/proc/{pid}/environ")
    try:
        os.kill(int(pid), 0)
        # Empty for a zombie process.
        return str(run.id).encode() in environment.read_bytes() if environment.parent.exists() else True
    except PermissionError:
        # Another user's process, so not one of our runs.
        return False
    except (ProcessLookupError, FileNotFoundError):
        return False
