"""Trim the database of a server of idxflow: delete old flow runs with all their data, and old events.

Prefect deletes only by age, keeps the events of a deleted run, and has no request that deletes an event, so a week of
many runs would grow the database without bound. The server therefore has an additional request,
`POST /api/idxflow/trim`, which deletes a bounded number of rows, to keep other writers waiting only briefly; the
client repeats it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from fastapi import APIRouter, Body
from prefect.server.database import PrefectDBInterface, provide_database_interface
from prefect.server.models import flow_runs
from prefect.server.schemas.states import TERMINAL_STATES
from prefect.server.services import db_vacuum
from sqlalchemy.ext.asyncio import AsyncSession

# Prefect: trimmed.
PATH = "/idxflow/trim"
_RUNS_AT_ONCE = 25
_EVENTS_AT_ONCE = 2_000
_ROWS_AT_ONCE = 500
"""Rows per statement."""


@dataclass(frozen=True)
class Trimmed:
    """The numbers of rows that one request deleted."""

    flow_runs: int
    events: int
    more: bool
    """Whether there may be more to delete."""


def router() -> APIRouter:
    """Return the router of the request; Prefect's application has already checked the auth string."""
    routes = APIRouter()

    @routes.post(PATH)
    async def trim_database(keep_flow_runs: int = Body(ge=1), event_days: float = Body(ge=0)) -> dict[str, Any]:
        return asdict(await trim(provide_database_interface(), keep_flow_runs, event_days))

    return routes


async def trim(db: PrefectDBInterface, keep_flow_runs: int, event_days: float) -> Trimmed:
    """Delete some of the flow runs beyond the newest of their deployment, and some of the older events.

    Args:
        db: the server's database.
        keep_flow_runs: how many of the newest finished runs to keep, per flow and deployment. Unfinished runs are
            always kept.
        event_days: age in days beyond which events are deleted.
    """
    async with db.session_context(begin_transaction=True) as session:
        ended = await _old_runs(db, session, keep_flow_runs)
        runs = await flow_runs.delete_flow_runs(session, ended)  # type: ignore[attr-defined]
        events = await _delete_events(db, session, _about(db, runs))
        events += await _delete_events(db, session, _before(db, datetime.now(UTC) - timedelta(days=event_days)))
    more = len(runs) == _RUNS_AT_ONCE or events >= _EVENTS_AT_ONCE
    if not more:
        # Logs, artifacts, and entries for the newest artifact of a key: all whose run was deleted, of any age.
        await db_vacuum.vacuum_orphaned_logs(db=db)
        await db_vacuum.vacuum_orphaned_artifacts(db=db)
        await db_vacuum.vacuum_stale_artifact_collections(db=db)
    return Trimmed(len(runs), events, more)


async def _old_runs(db: PrefectDBInterface, session: AsyncSession, keep: int) -> list[UUID]:
    place = sa.func.row_number().over(
        partition_by=(db.FlowRun.flow_id, db.FlowRun.deployment_id),
        order_by=(db.FlowRun.end_time.desc(), db.FlowRun.id),
    )
    ended = (
        sa.select(db.FlowRun.id, place.label("place"))
        .where(db.FlowRun.state_type.in_(TERMINAL_STATES), db.FlowRun.parent_task_run_id.is_(None))
        .subquery()
    )
    result = await session.execute(sa.select(ended.c.id).where(ended.c.place > keep).limit(_RUNS_AT_ONCE))
    return list(result.scalars())


def _about(db: PrefectDBInterface, runs: Sequence[UUID]) -> sa.Select[tuple[UUID]]:
    names = [f"prefect.flow-run.{run}" for run in runs]
    return sa.select(db.EventResource.event_id).where(db.EventResource.resource_id.in_(names)).distinct()


def _before(db: PrefectDBInterface, moment: datetime) -> sa.Select[tuple[UUID]]:
    return sa.select(db.Event.id).where(db.Event.occurred < moment).limit(_EVENTS_AT_ONCE)


async def _delete_events(db: PrefectDBInterface, session: AsyncSession, query: sa.Select[tuple[UUID]]) -> int:
    """Delete events and their related resources, which no foreign key connects."""
    ids = list((await session.execute(query)).scalars())
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        part = ids[start : start + _ROWS_AT_ONCE]
        await session.execute(sa.delete(db.EventResource).where(db.EventResource.event_id.in_(part)))
        await session.execute(sa.delete(db.Event).where(db.Event.id.in_(part)))
    return len(ids)
