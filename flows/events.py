"""Emit events about models, for triggers of deployments and for automations.

    idxflow.model.promoted   a new champion
    idxflow.model.kept       a candidate that was not better
    idxflow.model.refused    a candidate below a floor

The resource is `idxflow.model.<dataset>`; the payload is the decision as recorded in the ledger. A run
that finds nothing new emits no event.

Prefect sends its own events about a run, several for each task, to the server in the same way.
"""

from __future__ import annotations

import logging

from prefect.events import emit_event
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, PREFECT_CLOUD_API_URL

from storage.records import Decision, to_json

EVENTS = ("promoted", "kept", "refused")

# Prefect: reconnections.
_RECONNECTIONS = 3
"""The most attempts that Prefect 3.9 makes without waiting a second before each."""

_log = logging.getLogger(__name__)


def send_without_waiting() -> None:
    """Keep this process from waiting for an unreachable server.

    Prefect tries to connect ten times for each event, which takes seven seconds, and a process does not exit before
    it has tried them all, which takes minutes. An event that cannot be sent is kept, and sent with a later one.
    """
    url = PREFECT_API_URL.value()
    if url and not url.startswith(PREFECT_CLOUD_API_URL.value()):
        EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=_RECONNECTIONS)


def announce(dataset: str, run: str, decision: Decision) -> None:
    """Emit the event of a decision; failure to send it is only a warning, because the decision is in the ledger."""
    if decision.outcome not in EVENTS:
        return
    resource = {
        "prefect.resource.id": f"idxflow.model.{dataset}",
        "prefect.resource.name": f"champion of {dataset}",
        "idxflow.dataset": dataset,
        "idxflow.version": str(decision.version or ""),
        "idxflow.champion": str(decision.champion or ""),
    }
    try:
        emit_event(f"idxflow.model.{decision.outcome}", resource, payload={"run": run, **to_json(decision)})
    except Exception as error:
        # The client may raise anything; the event only informs others.
        _log.warning("no event was sent: %s: %s", type(error).__name__, error)
