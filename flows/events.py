"""Events about models, on which a deployment's trigger or an automation can act.

    idxflow.model.promoted   a new champion
    idxflow.model.kept       a candidate that was not better
    idxflow.model.refused    a candidate below a floor

The resource is `idxflow.model.<dataset>`; the payload is the decision as the ledger has it. Nothing new, no event.
"""

from __future__ import annotations

import logging

from prefect.events import emit_event

from storage.records import Decision, to_json

EVENTS = ("promoted", "kept", "refused")

_log = logging.getLogger(__name__)


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
