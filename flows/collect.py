"""Scheduled retention: remove old results from the store, and old runs and events from Prefect's database."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Completed, Failed
from pydantic import Field

from flows.settings import LOGGERS
from storage import retention
from storage.errors import IdxflowError
from storage.objects.address import OPEN_STORE
from storage.opening import open_store
from storage.store import Store

FLOW_RUNS = 200
EVENT_DAYS = 7.0
_NOT_FOUND = (404, 405)

_log = logging.getLogger(__name__)


@flow(name="collect", flow_run_name="collect")
def collect(
    keep_versions: Annotated[int, Field(ge=1)] = retention.KEEP_LAST,
    keep_flow_runs: Annotated[int, Field(ge=1)] = FLOW_RUNS,
    event_days: Annotated[float, Field(ge=0)] = EVENT_DAYS,
    store: Annotated[str | None, Field(json_schema_extra={"pattern": OPEN_STORE})] = None,
) -> State[dict[str, Any]]:
    """Remove old results from the store, and old flow runs and events from Prefect's database.

    It keeps everything in use, unfinished runs, every champion that a rollback can return to, and the ledger.

    Args:
        keep_versions: Number of newest versions and runs of each data set to keep in the store, as with idxflow gc.
        keep_flow_runs: Number of newest ended runs of each deployment to keep in Prefect, with their logs.
        event_days: Number of days to keep Prefect's events. Those of a removed run are removed with it.
        store: Folder or address of the store. Default: IDXFLOW_STORE, otherwise `store` next to the source code.
    """
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
    outcome, problems = _collect_store(open_store(store), keep_versions)
    with get_client(sync_client=True) as client:
        outcome |= _trim(client, keep_flow_runs, event_days)
    summary = (
        f"removed {outcome['entries']:,} entries ({outcome['bytes'] / 1e6:,.1f} MB) of the store, "
        f"{outcome['flow_runs']:,} flow runs and {outcome['events']:,} events"
    )
    _log.info(summary)
    if problems:
        return Failed(message="; ".join([*problems, summary]), data=outcome)
    return Completed(message=summary, data=outcome)


def _collect_store(store: Store, keep: int) -> tuple[dict[str, Any], list[str]]:
    """Collect every data set; a failure is returned as a problem and does not stop the others."""
    outcome: dict[str, Any] = {"entries": 0, "bytes": 0, "busy": []}
    problems = []
    for name in store.datasets() if store.exists() else ():
        try:
            collected = retention.collect(store, name, keep)
        except IdxflowError as error:
            problems.append(f"{name}: {error}")
            continue
        if collected.busy:
            _log.info("%s: a run is in progress, nothing removed", name)
            outcome["busy"].append(name)
        outcome["entries"] += len(collected.entries)
        outcome["bytes"] += collected.bytes
    try:
        outcome["bytes"] += retention.collect_downloads(store).bytes
        retention.collect_strays(store)
    except IdxflowError as error:
        problems.append(f"downloads: {error}")
    return outcome, problems


def _trim(client: SyncPrefectClient, keep_flow_runs: int, event_days: float) -> dict[str, Any]:
    """Have the server delete old runs and events in batches, so that other requests can run in between."""
    totals = {"flow_runs": 0, "events": 0}
    limits = {"keep_flow_runs": keep_flow_runs, "event_days": event_days}
    more = True
    while more:
        try:
            answer = client.request("POST", "/idxflow/trim", json=limits).json()  # type: ignore[arg-type]
        except PrefectHTTPStatusError as error:
            if error.response.status_code not in _NOT_FOUND:
                raise
            _log.warning("the server was not started by idxflow; its runs and events are left as they are")
            break
        totals = {name: totals[name] + answer[name] for name in totals}
        more = answer["more"]
    return totals
