"""The models of a data set in MLflow: what `mlflow.pyfunc.load_model` loads, and the versions and their alias."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.dataset_in_store import DatasetInStore
from flows.sharing.contents import Contents
from storage.registry import Version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
"""The alias of the champion's version."""
VERSION, RETIRED = "idxflow.version", "idxflow.retired"


@dataclass(frozen=True)
class Experiment:
    """Where the model of a run goes."""

    client: MlflowClient
    id: str
    run: str
    """MLflow's id of the run."""
    name: str
    """Of the registered model."""


@dataclass(frozen=True)
class Aligned:
    """The versions that are registered in MLflow, and the champion among them."""

    versions: Mapping[int, str]
    """MLflow's number for each of idxflow's."""
    champion: int | None
    """The version that has the alias; None: no version has it."""
    moved: bool
    """Whether the alias was somewhere else before."""


def register(at: Experiment, data: DatasetInStore, contents: Contents) -> str | None:
    """Log the model of a run, and register the version that it made; return MLflow's id of the model.

    Returns:
        None if the run made no version, or its model was removed by `gc`.

    Raises:
        ExportFailed: the model that MLflow would load does not predict what idxflow's own does.
        StoreError: the store cannot be read.
    """
    version = _made_by(data, contents.run)
    if version is None:
        return None
    model_id = _logged(at, version)
    if model_id is None:
        if data.registry.retired(version):
            return None
        model_id = _log(at, data, version)
    if version.number not in _registered(at.client, at.name):
        _create_registered_model(at)
        at.client.create_model_version(
            at.name,
            f"models:/{model_id}",
            run_id=at.run,
            tags={VERSION: str(version.number), "idxflow.run": version.run, "idxflow.weights": version.weights_digest},
            description=contents.sentence,
            model_id=model_id,
        )
    return model_id


def align(client: MlflowClient, data: DatasetInStore, name: str) -> Aligned:
    """Give the champion's version the alias `champion`, and mark those whose models `gc` has removed from the store."""
    registered = _registered(client, name)
    for version in data.registry.versions():
        there = registered.get(version.number)
        is_retired = data.registry.retired(version)
        if there and is_retired != (RETIRED in there.tags):
            if is_retired:
                client.set_model_version_tag(name, there.version, RETIRED, "true")
            else:
                client.delete_model_version_tag(name, there.version, RETIRED)
    numbers = {number: str(there.version) for number, there in sorted(registered.items())}
    champion = data.registry.champion()
    wanted = numbers.get(champion.number) if champion else None
    present = client.get_registered_model(name).aliases.get(CHAMPION) if registered else None
    if wanted == (None if present is None else str(present)):
        return Aligned(numbers, champion.number if champion and wanted else None, False)
    if wanted is None:
        # Better none than a version that is not the champion.
        client.delete_registered_model_alias(name, CHAMPION)
        return Aligned(numbers, None, True)
    client.set_registered_model_alias(name, CHAMPION, wanted)
    return Aligned(numbers, champion.number if champion else None, True)


def _made_by(data: DatasetInStore, run: str) -> Version | None:
    return next((version for version in data.registry.versions() if version.run == run), None)


def _registered(client: MlflowClient, name: str) -> dict[int, ModelVersion]:
    """Return the versions of a registered model by idxflow's number; empty if there is no such model."""
    found: dict[int, ModelVersion] = {}
    token = None
    while True:
        page = client.search_model_versions(f"name='{name}'", max_results=1000, page_token=token)
        for version in page:
            # Anybody can change a tag.
            if re.fullmatch(r"[1-9]\d{0,9}", version.tags.get(VERSION, ""), re.ASCII):
                # Of two, the first one counts.
                number = int(version.tags[VERSION])
                found[number] = min((found.get(number, version), version), key=lambda one: int(one.version))
        token = page.token
        if not token:
            return found


def _create_registered_model(at: Experiment) -> None:
    from mlflow.exceptions import MlflowException

    try:
        at.client.create_registered_model(at.name, tags={"idxflow.dataset": at.name})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _logged(at: Experiment, version: Version) -> str | None:
    """Return the id of the model that is complete; delete what an interrupted call has begun."""
    from mlflow.entities import LoggedModelStatus

    found = at.client.search_logged_models([at.id], f"source_run_id = '{at.run}'")
    complete = None
    for model in found:
        if model.tags.get(VERSION) == str(version.number):
            if model.status == LoggedModelStatus.READY:
                complete = str(model.model_id)
            else:
                at.client.delete_logged_model(model.model_id)
    return complete


def _log(at: Experiment, data: DatasetInStore, version: Version) -> str:
    """Write the model as MLflow's flavour `keras`, check what it predicts, and upload it."""
    from mlflow.entities import LoggedModelOutput

    from tasks.serving.export import export
    from tasks.serving.mlflow_model import save
    from tasks.serving.predict import load_champion

    model = load_champion(data.name, data.store, version)
    with tempfile.TemporaryDirectory() as folder:
        exported = export(model, "keras", Path(folder, "exported")).folder
        logged = at.client.create_logged_model(
            at.id, f"{data.name}-v{version.number}", at.run, {VERSION: str(version.number)}, model_type="classifier"
        )
        saved = Path(folder, "mlflow")
        save(model, exported, saved, (str(logged.model_id), at.run))
        at.client.log_artifact(at.run, str(exported / "README.md"))
        at.client.log_model_artifacts(logged.model_id, str(saved))
    at.client.log_outputs(at.run, [LoggedModelOutput(logged.model_id, step=0)])
    at.client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)
