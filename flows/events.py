"""Emit Prefect events about what has changed, for triggers of deployments and for automations.

    idxflow.model.promoted      a new champion
    idxflow.model.kept          a candidate that was not better
    idxflow.model.refused       a candidate below a floor
    idxflow.model.forced        a champion by hand, past the gate
    idxflow.model.rolled-back   an earlier champion again, by hand
    idxflow.model.retired       models that were removed to save space
    idxflow.model.stale         no run has succeeded for too long
    idxflow.model.drifted       new data differs from the champion's
    idxflow.data.refused        a run that refused its data
    idxflow.run.failed          a run that failed
    idxflow.run.crashed         a run whose process is gone

The resource is `idxflow.model.<dataset>`, for all of them. A run that finds nothing new emits no event.

A flow run emits what it has done. What happens without Prefect, such as a rollback, is in the store, and `idxflow up`
emits it (`flows.alerts`). Prefect sends its own events about a run, several for each task, to the server in the same
way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from storage.records import Decision, to_json

NAMES = {
    **{kind: f"idxflow.model.{kind}" for kind in ("promoted", "kept", "forced", "rolled-back", "retired")},
    **{kind: f"idxflow.model.{kind}" for kind in ("stale", "drifted")},
    "model-refused": "idxflow.model.refused",
    "data-refused": "idxflow.data.refused",
    "failed": "idxflow.run.failed",
    "crashed": "idxflow.run.crashed",
}
"""The names of the events of Prefect, by kind."""
DECISIONS = {"promoted": "promoted", "kept": "kept", "refused": "model-refused"}
"""The kind of each outcome of the gate's decisions."""

# Prefect: reconnections.
_RECONNECTIONS = 3
"""The most attempts that Prefect 3.9 makes without waiting a second before each."""

_log = logging.getLogger(__name__)


def send_without_waiting() -> None:
    """Keep this process from waiting for an unreachable server.

    Prefect tries to connect ten times for each event, which takes seven seconds, and a process does not exit before
    it has tried them all, which takes minutes. An event that cannot be sent is kept, and sent with a later one.
    """
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_CLOUD_API_URL

    url = PREFECT_API_URL.value()
    if url and not url.startswith(PREFECT_CLOUD_API_URL.value()):
        EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=_RECONNECTIONS)


def announce(dataset: str, run: str, decision: Decision) -> None:
    """Emit the event of a decision of a run, which is in the ledger already."""
    if decision.outcome in DECISIONS:
        send(DECISIONS[decision.outcome], dataset, {"run": run, **to_json(decision)})


def send(kind: str, dataset: str, payload: Mapping[str, Any]) -> bool:
    """Emit an event of Prefect; return whether that succeeded: it only informs others, so failure is a warning."""
    from prefect.events import emit_event

    try:
        emit_event(NAMES[kind], resource_of(dataset, payload), payload=dict(payload))
    except Exception as error:
        # The client may raise anything.
        _log.warning("no event was sent: %s: %s", type(error).__name__, error)
        return False
    return True


def resource_of(dataset: str, payload: Mapping[str, Any]) -> dict[str, str]:
    """Return the resource of the events about a data set, which triggers match."""
    return {
        "prefect.resource.id": f"idxflow.model.{dataset}",
        "prefect.resource.name": f"champion of {dataset}",
        "idxflow.dataset": dataset,
        "idxflow.version": str(payload.get("version") or ""),
        "idxflow.champion": str(payload.get("champion") or ""),
    }
