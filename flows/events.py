"""Events about models, on which a deployment's trigger or an automation can act.

    idxflow.model.promoted   a new champion
    idxflow.model.kept       a candidate that was not better
    idxflow.model.refused    a candidate below a floor

The resource is `idxflow.model.<dataset>`; the payload is the decision as the ledger has it. Nothing new, no event.

Prefect's own events about a run, several for each task, go the same way to the server.
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
"""As many as Prefect 3.9 tries without waiting a second before each."""

_log = logging.getLogger(__name__)


def send_without_waiting() -> None:
    """Have this process not wait for a server that is gone.

    Prefect tries to connect ten times for each event, which takes seven seconds, and a process does not end before
    all have been tried: minutes. An event that could not be sent is kept, and sent with the next one that can be.
    """
    url = PREFECT_API_URL.value()
    if url and not url.startswith(PREFECT_CLOUD_API_URL.value()):
        EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=_RECONNECTIONS)


def announce(dataset: str, run: str, decision: Decision) -> None:
    """Emit the event of a decision. An event that cannot be sent is a warning: the decision stands."""
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
        # Whatever the client raises: the ledger has the decision, this only tells others.
        _log.warning("no event was sent: %s: %s", type(error).__name__, error)
