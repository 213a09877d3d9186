"""Rebuild the record of a past run from the ledger and the store, to make its report again.

The ledger keeps the request of a run, its outcome and the key of each step's result; the results themselves are entries
of the store. A missing or damaged entry is left out, as if the run had not reached that step; the report says what is
missing.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING, Any, TypeVar

from storage.datasets import catalog
from storage.datasets.catalog import CATALOG, Dataset
from storage.errors import ConfigError, IdxflowError
from storage.outcomes import steps_of
from storage.records import (
    Archive,
    Audit,
    Behaviour,
    Confirmation,
    DatasetFacts,
    Decision,
    Environment,
    Evaluation,
    Failure,
    Normalization,
    Quarantine,
    RunRecord,
    Split,
    Step,
    TrainedModel,
    Validation,
    from_json,
    to_json,
)
from storage.registry import Registry
from storage.runtime import processor
from storage.runtime.code_digests import version_of
from storage.store import Store, Stored

if TYPE_CHECKING:
    from storage.datasets.manifest import Drift

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

_log = logging.getLogger(__name__)


def facts(dataset: Dataset, asked: bool = False) -> DatasetFacts:
    """Return the facts from a data set's manifest that a report shows.

    Args:
        asked: whether the run said what to set aside, instead of the manifest.
    """
    rules = dataset.quarantine
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
        chosen=dataset.chosen,
        quarantine=rules.checks if rules.checks or asked else None,
        max_share=rules.max_share if rules.checks else None,
        drift=_changed(dataset.drift),
    )


def _changed(limits: Drift) -> dict[str, float]:
    """Return the limits that are not the defaults."""
    usual = type(limits)()
    return {name: value for name, value in dataclasses.asdict(limits).items() if value != getattr(usual, name)}


def environment() -> Environment:
    """Describe this process: versions, system and processor, without user or host names."""
    versions = {}
    for package in sorted(PACKAGES):
        try:
            versions[package] = version_of(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    machine = f"{platform.system()}, {platform.machine()}, {os.cpu_count() or 1} processors"
    return Environment(platform.python_version(), machine, versions, processor.described())


def for_ledger(run: RunRecord) -> dict[str, Any]:
    """Return what the ledger must keep of a run, besides its outcome and its steps, to rebuild its report."""
    return {
        "asked_by": run.asked_by,
        "profile": run.profile,
        "config": to_json(run.config),
        "started": run.started,
        "confirmation": to_json(run.confirmation) if run.confirmation else None,
        "decision": to_json(run.decision) if run.decision else None,
        "test_rows": run.evaluation.rows if run.evaluation else None,
        "facts": to_json(run.facts) if run.facts else None,
        "environment": to_json(run.environment) if run.environment else None,
    }


def find(registry: Registry, run: str) -> RunRecord | None:
    """Return the record of the run with this id; None if the ledger has none.

    Raises:
        DamagedEntry: the ledger cannot be read.
    """
    values = registry.ledger.find("runs", run)
    return run_record(registry.store, values) if values else None


def run_record(store: Store, values: Mapping[str, Any]) -> RunRecord:
    """Return the record of a run from its ledger record (`Ledger.find`) and the store's entries."""
    dataset = str(values.get("dataset") or "")
    steps = tuple(step for step in steps_of(values) if step.step != "publish")

    def entries(kind: type[R], name: str, subject: str | None = None, of: str = "") -> list[R]:
        matching = (step for step in steps if (step.step, step.of) == (name, of) and subject in (None, step.subject))
        return [record for step in matching if (record := _entry(store, dataset, step, kind)) is not None]

    def entry(kind: type[R], name: str, subject: str | None = None, of: str = "") -> R | None:
        return next(iter(entries(kind, name, subject, of)), None)

    quarantine = entry(Quarantine, "quarantine")

    def split(name: str) -> Split | None:
        decoded = entry(Split, "decode", name)
        return quarantine.rest(decoded) if decoded and quarantine else decoded

    record = RunRecord(
        id=str(values.get("run") or ""),
        dataset=dataset,
        started=str(values.get("started") or ""),
        asked_by=str(values.get("asked_by") or "unknown"),
        profile=str(values.get("profile") or "unknown"),
        config=values.get("config") or {},
        steps=steps,
        archives=tuple(entries(Archive, "fetch")),
        audit=entry(Audit, "audit"),
        decoded=tuple(entries(Split, "decode")),
        train=split("train"),
        test=split("test"),
        quarantine=quarantine,
        validation=entry(Validation, "validate"),
        normalization=entry(Normalization, "normalize"),
        model=entry(TrainedModel, "train"),
        evaluation=entry(Evaluation, "evaluate"),
        confirmation=_part(Confirmation, values.get("confirmation")) or entry(Confirmation, "confirm"),
        behaviour=entry(Behaviour, "probe"),
        champion_evaluation=entry(Evaluation, "evaluate", of="champion"),
        decision=_part(Decision, values.get("decision")),
        failure=_part(Failure, values.get("error")),
        facts=_part(DatasetFacts, values.get("facts")) or _facts_of_dataset(store, dataset, steps),
        environment=_part(Environment, values.get("environment")),
        as_of=str(values.get("as_of") or ""),
        study=str(values.get("study") or ""),
    )
    # Nothing else says which rows the run had: those of the decoded splits may have other numbers.
    return dataclasses.replace(record, train=None, test=None) if is_quarantine_lost(record) else record


def is_quarantine_lost(run: RunRecord) -> bool:
    """Return whether a run had a quarantine that can no longer be read from the store."""
    return run.quarantine is None and any(step.step == "quarantine" and step.key for step in run.steps)


def missing(run: RunRecord) -> list[str]:
    """Return the steps of a run, in order, whose results can no longer be read from the store."""
    return [step.name for step in run.steps if step.key and not _has_result(run, step)]


def _has_result(run: RunRecord, step: Step) -> bool:
    """Tell whether the record has the result of a step; always True if a report does not need that result."""
    if step.step == "fetch":
        return any(archive.role == step.subject for archive in run.archives)
    if step.step == "decode":
        return any(split.name == step.subject for split in run.decoded)
    results = {
        "audit": run.audit,
        "quarantine": run.quarantine,
        "validate": run.validation,
        "normalize": run.normalization,
        "train": run.model,
        "evaluate": run.champion_evaluation if step.of else run.evaluation,
        "confirm": run.confirmation,
        "probe": run.behaviour,
    }
    return results.get(step.step, step) is not None


def _entry(store: Store, dataset: str, step: Step, kind: type[R]) -> R | None:
    try:
        return store.get(dataset, step.step, step.key, kind)
    except IdxflowError as error:
        _log.warning("report: left out %s: %s", step.name, error)
        return None


def _part(kind: type[Any], values: Any) -> Any:
    """Return a part of a ledger record; None if another version wrote it in another form."""
    try:
        return from_json(kind, values) if values else None
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        _log.warning("report: left out %s: %s", kind.__name__, error)
        return None


def _facts_of_dataset(store: Store, dataset: str, steps: Sequence[Step]) -> DatasetFacts | None:
    """Return the facts of a run whose ledger record has none: from the catalog, otherwise from its decode step."""
    try:
        return facts(catalog.find(dataset))
    except ConfigError:
        pass
    for step in (step for step in steps if step.step == "decode"):
        try:
            parameters = store.made_from(dataset, "decode", step.key)["parameters"]
            return DatasetFacts(
                dataset,
                tuple(parameters["classes"]),
                tuple(parameters["image_shape"]),
                manifest=f"{dataset}.toml",
                labels=tuple(parameters.get("labels", ())),
            )
        except (IdxflowError, KeyError, TypeError):
            continue
    return None
