"""The flow `monitor`: looks at new images, tells people once if they have drifted, and starts a retraining once."""

from __future__ import annotations

import logging
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed
from pydantic import Field

from flows.dataset_in_store import DatasetInStore
from flows.drift import Asked, Look, look
from flows.events import send, send_without_waiting
from flows.retrain import DatasetName, StorePlace, describe_run
from flows.settings import LOGGERS, relax_garbage_collection
from storage.drifts import Drifts, Found
from storage.errors import IdxflowError
from storage.records import to_json
from tasks.report.drift_page import artifact
from tasks.ui import artifacts

RETRAIN = "retrain"
"""The flow of the deployments that retrain."""
_CREATED = HTTPStatus.CREATED

_log = logging.getLogger(__name__)


@flow(name="monitor", flow_run_name="{dataset}")
def monitor(
    dataset: DatasetName,
    source: Annotated[str, Field(min_length=1)],
    labels: str | None = None,
    store: StorePlace = None,
    dataset_file: str | None = None,
    resize: bool = False,
    scale: bool = False,
    invert: bool = False,
    retrain: bool = True,
) -> State[dict[str, Any]]:
    """Compare new images with what the champion of one data set was trained on.

    The first time that they are beyond the limits of the manifest, an event says so, and a run of the deployment
    `retrain/<dataset>` is started. Later looks start none, until the champion is another one, or images were within the
    limits in between.

    Args:
        dataset: Name of a data set of the store.
        source: File of images, folder of pictures, or what `idxflow dataset add` reads, where the run is; or `log`: the
            images that `idxflow serve --log-images` has kept.
        labels: IDX file with the labels of the images, if the source is a file.
        store: Folder or address of the store. Default: IDXFLOW_STORE, otherwise `store` next to the source code.
        dataset_file: Manifest (TOML) with the limits. Default: that of the data set.
        resize: Resize images of another size.
        scale: Scale pixels of 0-255 to the pixel range of the training data.
        invert: Invert the pixels (255 - x).
        retrain: Start a run of the deployment `retrain/<dataset>` if the images have drifted.
    """
    relax_garbage_collection()
    send_without_waiting()
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
    asked = Asked(Path(source), _path(labels), _path(dataset_file), resize, scale, invert)
    try:
        data = DatasetInStore.open(dataset, store)
        with data.store.in_use(dataset):
            found = look(data, asked, _log.info)
        values = {**found.values(), **_acted_on(data, found, retrain)}
    except IdxflowError as error:
        _log.error("%s: %s", dataset, error)
        describe_run(f"{dataset} failed", "failed")
        return Failed(message=str(error), data={"error": to_json(error.failure)})
    word = "drifted" if found.comparison.is_drifted else "within the limits"
    _log.log(logging.WARNING if found.comparison.is_drifted else logging.INFO, "%s: %s", dataset, found.sentence)
    artifacts.show_markdown(artifacts.key("drift", dataset), artifact(values, found.pictures()), f"Drift of {dataset}")
    describe_run(f"{dataset} {word}", *(["drifted"] if found.comparison.is_drifted else []))
    # The look has succeeded, whatever it has seen: alerts come from the event.
    return Completed(message=found.sentence, data=values)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _acted_on(data: DatasetInStore, found: Look, retrain: bool) -> dict[str, Any]:
    """Note what a look has found, and act on it if nobody has yet; return what was done, as JSON values."""
    drifts = Drifts(data.store, data.name)
    noted = drifts.note(found.version.number, found.comparison.is_drifted, found.values())
    if noted is None or not noted.is_drifted:
        return {"announced": False, "retraining": None}
    if noted.is_new:
        send("drifted", data.name, {"champion": found.version.number, **found.values()})
    started = _retraining(data, drifts, noted) if retrain else None
    return {"announced": noted.is_new, "retraining": started}


def _retraining(data: DatasetInStore, drifts: Drifts, noted: Found) -> str | None:
    """Start the retraining that a finding leads to, unless it has; return the name of the flow run if it is new."""
    if not runtime.flow_run.id or drifts.retraining(noted.number):
        return None
    deployment = f"{RETRAIN}/{data.name}"
    body = {
        "name": f"{data.name} after drift from v{noted.champion}",
        # The server creates one run per key, however often this request is repeated.
        "idempotency_key": f"idxflow-drift-{data.name}-v{noted.champion}-{noted.number}",
        "state": {"type": "SCHEDULED"},
        "tags": ["drifted"],
    }
    try:
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(deployment)
            answer = client.request(
                "POST", "/deployments/{id}/create_flow_run", path_params={"id": str(found.id)}, json=body
            )
    except ObjectNotFound:
        _log.warning("no retraining was started: there is no deployment %s; run it: %s", deployment, data.run_command)
        return None
    except Exception as error:
        # The client may raise anything. The next look tries again.
        _log.warning("no retraining was started: %s: %s", type(error).__name__, error)
        return None
    run = answer.json()
    drifts.note_retraining(noted.number, str(run["id"]))
    if answer.status_code != _CREATED:
        return None
    _log.info("%s: a retraining was started, the flow run %r of %s", data.name, run["name"], deployment)
    return str(run["name"])
