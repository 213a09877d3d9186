"""Create the flow run that retrains on a set of archives that has arrived.

No event starts a run. This module creates the run from the deployment `retrain/inbox`, and its parameters name only the
data set and the set: the watcher of the folder has written everything else to the store. So nobody who can send an
event or a request can choose what is read.

An event announces each new run to the user's own automations:

    idxflow.inbox.complete   resource `idxflow.inbox.<dataset>`, payload: dataset, arrival, source, files, bytes
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from uuid import UUID

from storage.errors import PrefectFailed
from storage.snapshots import Arrival

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

DEPLOYMENT = "retrain/inbox"
ENTRYPOINT = "flows.retrain.retrain_arrival"
EVENT = "idxflow.inbox.complete"
_PATIENCE_SECONDS = 30


@dataclass(frozen=True)
class Announced:
    """The flow run of a set, according to the server."""

    name: str
    is_new: bool
    """Whether it was just created."""
    started: bool
    """Whether a worker has picked it up."""
    ended: str | None
    """Its final state with the message; None if it has not ended."""


class Server:
    """The Prefect server that has the deployment."""

    def __init__(self, client: SyncPrefectClient, deployment: UUID) -> None:
        self._client, self._deployment = client, deployment

    def announce(self, arrival: Arrival) -> Announced:
        """Return the flow run of a set; create it if the server has none.

        Raises:
            PrefectFailed: the server does not create the run.
        """
        from prefect.client.schemas.objects import FlowRun

        body = {
            "name": f"{arrival.dataset} {arrival.id}",
            "parameters": {"dataset": arrival.dataset, "arrival": arrival.id},
            # The server creates one run per key, however often this request is repeated.
            "idempotency_key": f"idxflow-arrival-{arrival.dataset}-{arrival.id}",
            "state": {"type": "SCHEDULED"},
        }
        with _answers(f"to make a run of {DEPLOYMENT}"):
            answer = self._client.request(
                "POST", "/deployments/{id}/create_flow_run", path_params={"id": str(self._deployment)}, json=body
            )
        return _announced(FlowRun.model_validate(answer.json()), answer.status_code == HTTPStatus.CREATED)

    def emit(self, arrival: Arrival) -> None:
        """Emit the event that the set has arrived.

        Raises:
            PrefectFailed: the server does not accept the event.
        """
        from prefect.events import Event, Resource

        name = arrival.dataset
        resource = Resource(
            {"prefect.resource.id": f"idxflow.inbox.{name}", "prefect.resource.name": f"inbox of {name}"}
        )
        files: dict[str, Any] = {
            file.name: {"bytes": file.bytes, "sha256": file.sha256} for file in arrival.files.values()
        }
        payload = {"dataset": name, "arrival": arrival.id, "source": arrival.source, "files": files}
        event = Event(event=EVENT, resource=resource, payload=payload)
        with _answers(f"to take the event {EVENT}"):
            self._client.request("POST", "/events", json=[event.model_dump(mode="json")])


@contextmanager
def connected() -> Iterator[Server]:
    """Yield the server that has the deployment.

    Raises:
        PrefectFailed: no server can be reached, or it lacks the deployment.
    """
    from flows.service import configuration
    from flows.service.client import connected_client

    configuration.read()
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES

    # The folder is not polled while this waits; the next poll retries.
    impatient = {PREFECT_API_REQUEST_TIMEOUT: _PATIENCE_SECONDS, PREFECT_CLIENT_MAX_RETRIES: 0}
    with connected_client(impatient) as client:
        try:
            with _answers(f"to have the deployment {DEPLOYMENT}"):
                deployment = client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            deployment = None
        if deployment is None or deployment.entrypoint != ENTRYPOINT:
            what = "none" if deployment is None else "that of an earlier version"
            raise PrefectFailed(
                f"expected the deployment {DEPLOYMENT} at {client.api_url}, found {what}; `idxflow up` creates it"
            )
        yield Server(client, deployment.id)


def again(arrival: Arrival) -> str:
    """Return the command that runs a set again."""
    return f"idxflow prefect deployment run {DEPLOYMENT} --param dataset={arrival.dataset} --param arrival={arrival.id}"


def _announced(run: FlowRun, is_new: bool) -> Announced:
    state = run.state
    if state is None:
        return Announced(run.name, is_new, started=False, ended=None)
    description = f"{state.name}: {state.message}" if state.message else str(state.name)
    return Announced(run.name, is_new, not state.is_scheduled(), description if state.is_final() else None)


@contextmanager
def _answers(expected: str) -> Iterator[None]:
    """Convert errors of a request to `PrefectFailed`, with a one-line message."""
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as error:
        response = f"HTTP {error.response.status_code}: {error.response.text[:200]}"
        raise PrefectFailed(f"expected the server {expected}, found {response}; run `idxflow doctor`") from error
    except httpx.HTTPError as error:
        raise PrefectFailed(
            f"expected the server {expected}, found {type(error).__name__}; is it up? Check with `idxflow doctor`"
        ) from error
