"""Send runs of a data set to MLflow: one run there for each, and a registered model with a version for each version.

A run there is known by its tag `idxflow.run`, a version by `idxflow.version`; a run that is complete has
`idxflow.sent`. So what was sent is not sent again, and a run that was cut off is completed by the next call: to log a
parameter, a value of a metric or an input again changes nothing in MLflow's databases.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.alerts import settings
from flows.dataset_in_store import DatasetInStore
from flows.sharing import mlflow_models
from flows.sharing.contents import Contents, contents_of, own_runs, text_of
from flows.sharing.mlflow_place import Place, connected
from flows.terminal.output import remark
from storage.errors import ConfigError
from storage.files import locked
from storage.records import CUT_OFF, HTML, JSON
from storage.runtime.progress import Progress, advance

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Run

RUN, SENT = "idxflow.run", "idxflow.sent"
_FORM = "1"
"""The value of `SENT`: raised when more is sent of a run, so that it is sent again."""
_PAGE, _PARAMETERS, _METRICS, _TAGS = 1000, 100, 1000, 100
"""Runs in an answer; parameters, values and tags in a request (MLflow's limits)."""
_LONGEST_PARAMETER, _LONGEST_TAG, _LONGEST_DIGEST = 6000, 5000, 36
_MILLISECONDS = 1000


@dataclass(frozen=True)
class Request:
    """What to send, and where."""

    data: DatasetInStore
    place: Place
    name: str
    """Of the experiment and of the registered model."""
    runs: tuple[str, ...] = ()
    """By the names that `DatasetInStore.run` takes; empty: all. The run of the champion is sent in any case."""
    files: str | None = None
    """Where a new experiment in a database keeps its files; None: `Place.files`."""


@dataclass(frozen=True)
class Sent:
    """What is in MLflow now."""

    sent: tuple[str, ...]
    """Runs that were sent or completed."""
    present: tuple[str, ...]
    """Runs that were there."""
    deleted: tuple[str, ...]
    """Runs that somebody has deleted there: they are not sent again."""
    models: mlflow_models.Aligned


@dataclass(frozen=True)
class _Sending:
    """A client, the experiment and what is in it."""

    request: Request
    client: MlflowClient
    experiment: str
    """Its id."""
    there: Mapping[str, Run]
    """Runs of MLflow by the id of idxflow's."""


def send(request: Request) -> Sent:
    """Send runs that are not in MLflow yet, register their versions, and set the alias `champion`.

    Raises:
        ConfigError: MLflow is not installed, there is no such run, or nothing says where files go.
        SharingFailed: the server or the database cannot be reached, or refuses.
        StoreError: the store cannot be read.
    """
    data = request.data
    records = _records(data, request.runs)
    # Two calls at once would both create what is missing. On another machine, nothing keeps them apart.
    waiting = partial(remark, "waiting for another call of `idxflow share mlflow`")
    with locked(settings.folder() / "share-mlflow.lock", waiting), connected(request.place) as client:
        experiment = _experiment(client, request)
        sending = _Sending(request, client, experiment, _there(client, experiment))
        states: dict[str, str] = {}
        for number, record in enumerate(records):
            advance(Progress("runs to MLflow", number, len(records), "runs", f"{number} of {len(records)} runs"))
            with data.store.in_use(data.name):
                states[str(record["run"])] = _send(sending, record)
        aligned = mlflow_models.align(client, request.data, request.name)
    advance(Progress("runs to MLflow", 1, 1, "runs"))
    sent, present, deleted = (
        tuple(run for run, state in states.items() if state == each) for each in ("sent", "present", "deleted")
    )
    return Sent(sent, present, deleted, aligned)


def _records(data: DatasetInStore, runs: Sequence[str]) -> list[dict[str, Any]]:
    champion = data.registry.champion()
    known = {str(record["run"]): record for record in own_runs(data, runs)}
    if runs and champion and champion.run not in known:
        # The alias needs its version.
        record = data.ledger.find("runs", champion.run)
        known |= {champion.run: record} if record else {}
    return [known[run] for run in sorted(known)]


def _experiment(client: MlflowClient, request: Request) -> str:
    """Return the id of the experiment, and create it if it does not exist.

    Raises:
        ConfigError: it was deleted, or it would be new in a database, and nothing says where its files go.
    """
    found = client.get_experiment_by_name(request.name)
    if found and found.lifecycle_stage != "active":
        raise ConfigError(
            f"expected to write to the experiment {request.name} at {request.place.shown}; it was deleted there; "
            f"restore it (`mlflow experiments restore --experiment-id {found.experiment_id}`), or choose another --name"
        )
    if found:
        return str(found.experiment_id)
    files = request.files or request.place.files
    if files is None and not request.place.is_server:
        raise ConfigError(
            f"expected --files, where the files of runs go; found none, and the database at {request.place.shown} "
            "keeps no files; name a folder or an address such as s3://bucket/mlflow that all who use it can read"
        )
    # MLflow's pages then begin with training runs, not with traces of prompts.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(request.name, artifact_location=files, tags=tags))


def _there(client: MlflowClient, experiment: str) -> dict[str, Run]:
    from mlflow.entities import ViewType

    found: dict[str, Run] = {}
    token = None
    while True:
        page = client.search_runs([experiment], "", ViewType.ALL, _PAGE, ["attributes.start_time DESC"], token)
        found |= {run.data.tags[RUN]: run for run in page if RUN in run.data.tags}
        token = page.token
        if not token:
            return found


def _send(sending: _Sending, record: dict[str, Any]) -> str:
    """Send a run, or what is missing of it; return `sent`, `present` or `deleted`."""
    run = sending.there.get(str(record["run"]))
    if run and run.info.lifecycle_stage != "active":
        return "deleted"
    if run and run.data.tags.get(SENT) == _FORM:
        return "present"
    client, contents = sending.client, contents_of(sending.request.data, record)
    run_id = run.info.run_id if run else _created(sending, contents)
    for part in _batches(_parameters(contents), _PARAMETERS):
        client.log_batch(run_id, params=part)
    for part in _batches(_tags(contents), _TAGS):
        client.log_batch(run_id, tags=part)
    client.log_inputs(run_id, datasets=[*_inputs(contents)])
    _send_files(sending, run_id, contents)
    sent_to = mlflow_models.Experiment(client, sending.experiment, run_id, sending.request.name)
    model = mlflow_models.register(sent_to, sending.request.data, contents)
    for part in _batches(_metrics(contents, model), _METRICS):
        client.log_batch(run_id, metrics=part)
    client.set_terminated(run_id, _status(contents), int(contents.ended * _MILLISECONDS))
    client.set_tag(run_id, SENT, _FORM)
    return "sent"


def _batches(values: Iterator[Any], most: int) -> Iterator[list[Any]]:
    while part := [*islice(values, most)]:
        yield part


def _created(sending: _Sending, contents: Contents) -> str:
    from mlflow.utils.mlflow_tags import MLFLOW_USER

    tags = {RUN: contents.run, MLFLOW_USER: str(contents.record.get("asked_by") or "unknown")}
    started = int(contents.started * _MILLISECONDS)
    run = sending.client.create_run(sending.experiment, started, tags, contents.run)
    return str(run.info.run_id)


def _status(contents: Contents) -> str:
    if contents.state in CUT_OFF:
        return "KILLED"
    return "FAILED" if contents.record.get("error") else "FINISHED"


def _parameters(contents: Contents) -> Iterator[Any]:
    from mlflow.entities import Param

    for name, value in contents.parameters.items():
        yield Param(name, text_of(value)[:_LONGEST_PARAMETER])


def _tags(contents: Contents) -> Iterator[Any]:
    from mlflow.entities import RunTag

    facts = contents.facts()
    tags = {f"idxflow.{name}": value for name, value in facts.items()} | {
        # What MLflow's pages show as description and source.
        "mlflow.note.content": contents.sentence,
        "mlflow.source.name": facts.get("command", "idxflow"),
        "mlflow.source.type": "LOCAL",
    }
    for name, value in tags.items():
        yield RunTag(name, value[:_LONGEST_TAG])


def _metrics(contents: Contents, model: str | None) -> Iterator[Metric]:
    """Yield the values of all epochs, then the scores, which belong to the model, too, if it was logged."""
    from mlflow.entities import Metric

    for point in contents.points():
        yield Metric(point.whole_name, point.value, int(point.time * _MILLISECONDS), point.epoch)
    for name, value in contents.scores().items():
        yield Metric(name, value, int(contents.ended * _MILLISECONDS), contents.chosen_epoch, model)


def _inputs(contents: Contents) -> Iterator[DatasetInput]:
    """Yield both splits; MLflow's digests have 36 characters, the whole ones are in the profile."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    data = contents.report.get("data") or {}
    source = {
        archive["role"]: {name: archive[name] for name in ("file_name", "sha256", "source")}
        for archive in data.get("archives") or ()
    }
    for split in data.get("splits") or ():
        profile = {name: split.get(name) for name in ("rows", "image_shape", "classes", "set_aside", "digest")}
        dataset = Dataset(
            name=f"{contents.record['dataset']} {split['name']}",
            digest=split["digest"][:_LONGEST_DIGEST],
            source_type="idxflow",
            source=json.dumps(source),
            schema=json.dumps(_schema(split)),
            profile=json.dumps(profile),
        )
        context = "training" if split["name"] == "train" else "testing"
        yield DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])


def _schema(split: Mapping[str, Any]) -> dict[str, Any]:
    def tensor(shape: list[int]) -> str:
        return json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": shape}}])

    return {"mlflow_tensorspec": {"features": tensor([-1, *split["image_shape"]]), "targets": tensor([-1])}}


def _send_files(sending: _Sending, run_id: str, contents: Contents) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in ((HTML, contents.page), (JSON, json.dumps(contents.report, indent=1).encode())):
            file = Path(folder, name)
            file.write_bytes(content)
            sending.client.log_artifact(run_id, str(file))
