"""The record of a run, made again from the ledger and the store: what a report of long ago is built from.

The ledger keeps what a run was asked for, how it ended and the key of each step's result; the results
themselves are entries of the store. An entry that is gone or damaged is left out, as if the run had not
come so far; the report says what is missing.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any, TypeVar

from storage.datasets import catalog
from storage.datasets.catalog import CATALOG, Dataset
from storage.errors import ConfigError, IdxflowError
from storage.ledger import Ledger
from storage.records import (
    SPLITS,
    Archive,
    DatasetFacts,
    Decision,
    Environment,
    Evaluation,
    Failure,
    Normalization,
    RunRecord,
    Split,
    Step,
    TrainedModel,
    Validation,
    from_json,
    to_json,
)
from storage.store import Store, Stored

R = TypeVar("R", bound=Stored)

PACKAGES = (
    "tensorflow",
    "keras",
    "numpy",
    "scikit-learn",
    "scipy",
    "great-expectations",
    "pyarrow",
    "prefect",
    "matplotlib",
    "pillow",
    "jinja2",
)
_HOPS = ("fetch", "decode", "validate", "normalize", "train", "evaluate", "confirm")
_LAST = "evaluate champion"

_log = logging.getLogger(__name__)


def facts(dataset: Dataset) -> DatasetFacts:
    """Return what a report shows of a data set's manifest."""
    return DatasetFacts(
        title=dataset.title or dataset.name,
        classes=dataset.classes,
        image_shape=dataset.image_shape,
        licence=dataset.licence,
        homepage=dataset.homepage,
        citation=dataset.citation,
        manifest="" if dataset.manifest.parent == CATALOG else dataset.manifest.name,
        training=dict(dataset.training),
        labels=dataset.labels,
    )


def environment() -> Environment:
    """Describe this process: versions, system and processor; no names of user or host."""
    versions = {}
    for package in sorted(PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    machine = f"{platform.system()}, {platform.machine()}, {os.cpu_count() or 1} processors"
    return Environment(platform.python_version(), machine, versions)


def for_ledger(run: RunRecord) -> dict[str, Any]:
    """Return what the ledger must keep of a run, besides its outcome and its steps, to make its report again."""
    return {
        "asked_by": run.asked_by,
        "profile": run.profile,
        "config": to_json(run.config),
        "started": run.started,
        "decision": to_json(run.decision) if run.decision else None,
        "test_rows": run.evaluation.rows if run.evaluation else None,
        "facts": to_json(run.facts) if run.facts else None,
        "environment": to_json(run.environment) if run.environment else None,
    }


def find(store: Store, dataset: str, run: str) -> RunRecord | None:
    """Return the record of the run with this id; None if the ledger has none.

    Raises:
        DamagedEntry: the ledger cannot be read.
    """
    found = Ledger(store, dataset).find("runs", run)
    return run_record(store, found) if found else None


def run_record(store: Store, values: Mapping[str, Any]) -> RunRecord:
    """Return the record of a run from what the ledger has of it (`Ledger.find`) and the store's entries."""
    dataset = str(values.get("dataset") or "")
    steps = in_order(
        Step(name, **{key: told[key] for key in ("key", "summary", "seconds", "reused", "reason")})
        for name, told in (values.get("steps") or {}).items()
        if name != "publish"
    )
    keys = {step.name: step.key for step in steps}

    def entry(step: str, kind: type[R]) -> R | None:
        return _entry(store, dataset, step, keys, kind)

    roles = [step.name for step in steps if step.name.startswith("fetch ")]
    archives = [found for name in roles if (found := entry(name, Archive)) is not None]
    splits = {name: entry(f"decode {name}", Split) for name in SPLITS}
    return RunRecord(
        id=str(values.get("run") or ""),
        dataset=dataset,
        started=str(values.get("started") or ""),
        asked_by=str(values.get("asked_by") or "unknown"),
        profile=str(values.get("profile") or "unknown"),
        config=values.get("config") or {},
        steps=steps,
        archives=tuple(archives),
        train=splits["train"],
        test=splits["test"],
        validation=entry("validate", Validation),
        normalization=entry("normalize", Normalization),
        model=entry("train", TrainedModel),
        evaluation=entry("evaluate", Evaluation),
        champion_evaluation=entry(_LAST, Evaluation),
        decision=_part(Decision, values.get("decision")),
        failure=_part(Failure, values.get("error")),
        facts=_part(DatasetFacts, values.get("facts")) or _known_facts(store, dataset, keys),
        environment=_part(Environment, values.get("environment")),
    )


def missing(run: RunRecord) -> list[str]:
    """Return the steps of a run, in order, whose results it had but that cannot be read from the store any more."""
    fetched = {archive.role for archive in run.archives}
    there = {
        **{f"fetch {role}": role in fetched for role in catalog.ROLES},
        "decode train": run.train is not None,
        "decode test": run.test is not None,
        "validate": run.validation is not None,
        "normalize": run.normalization is not None,
        "train": run.model is not None,
        "evaluate": run.evaluation is not None,
        _LAST: run.champion_evaluation is not None,
    }
    return [step.name for step in run.steps if step.key and not there.get(step.name, True)]


def in_order(steps: Any) -> tuple[Step, ...]:
    """Return steps in the order of the flow, and of splits and archives within one; the ledger has them by name."""
    roles = ("", *catalog.ROLES, *SPLITS)

    def place(step: Step) -> tuple[int, int, str]:
        hop, _, subject = step.name.partition(" ")
        known = _HOPS.index(hop) if hop in _HOPS and step.name != _LAST else len(_HOPS)
        return known, roles.index(subject) if subject in roles else len(roles), step.name

    return tuple(sorted(steps, key=place))


def _entry(store: Store, dataset: str, step: str, keys: Mapping[str, str], kind: type[R]) -> R | None:
    if step not in keys:
        return None
    try:
        return store.get(dataset, step.split()[0], keys[step], kind)
    except IdxflowError as error:
        _log.warning("report: left out %s: %s", step, error)
        return None


def _part(kind: type[Any], values: Any) -> Any:
    """Return a part of a ledger record; None where another version wrote it in another form."""
    try:
        return from_json(kind, values) if values else None
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        _log.warning("report: left out %s: %s", kind.__name__, error)
        return None


def _known_facts(store: Store, dataset: str, keys: Mapping[str, str]) -> DatasetFacts | None:
    """Return the facts of a run whose ledger record has none: from the catalog, else from how it was decoded."""
    try:
        return facts(catalog.find(dataset))
    except ConfigError:
        pass
    for split in SPLITS:
        try:
            made = store.made_from(dataset, "decode", keys[f"decode {split}"])["parameters"]
            return DatasetFacts(
                dataset,
                tuple(made["classes"]),
                tuple(made["image_shape"]),
                manifest=f"{dataset}.toml",
                labels=tuple(made.get("labels", ())),
            )
        except (IdxflowError, KeyError, TypeError):
            continue
    return None
