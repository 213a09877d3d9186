"""What a run has recorded: the entries of its steps, its parameters, and what its data set was declared to be.

Nothing but the archives is read besides `entry.json`, and the manifest is not needed: the entry of each step says what
it was made from, with every value of the manifest that decides its bytes. Today's manifest stands in only for entries
that were removed from the store.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import datasets, trainings
from flows.dataset_in_store import DatasetInStore
from storage.datasets import catalog
from storage.datasets.catalog import ROLES, ArchiveSpec, Dataset
from storage.datasets.chosen import chosen, day_of
from storage.datasets.manifest import Behaviour, Floors, Gate, Limits, Quarantine, Slices
from storage.datasets.training import TrainingConfig
from storage.errors import ConfigError, DamagedEntry, IdxflowError
from storage.formats import members
from storage.outcomes import steps_of
from storage.records import SPLITS, Archive, RunRecord, Step
from storage.store import FOLDERS, Store
from storage.words import brief
from tasks.probe import NAMED_IMAGES

LEFT_OUT = ("publish", "tune")
"""Steps whose results say nothing that others do not say."""
_PERCENT = re.compile(r"at least (\d{1,3}\.\d\d)%")
"""A floor, as a rule of a decision shows it."""


@dataclass(frozen=True)
class Kept:
    """A step of a run, and what the store still has of its result."""

    step: Step
    entry: Mapping[str, Any] | None
    """Its `entry.json`; None if it was removed or cannot be read."""
    where: str
    """The path or address of the entry."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        parameters: Mapping[str, Any] = self.entry["made_from"]["parameters"] if self.entry else {}
        return parameters


@dataclass(frozen=True)
class Recorded:
    """A run as the ledger and the store have recorded it."""

    data: DatasetInStore
    values: Mapping[str, Any]
    """Its record in the ledger."""
    record: RunRecord
    """The same, without the results of its steps."""
    steps: Mapping[str, Kept]
    """By name, in order. A step that was done twice is there as it was done last."""

    @property
    def id(self) -> str:
        return self.record.id

    def parameters(self, *names: str) -> Mapping[str, Any] | None:
        """Return the parameters of the first of these steps whose entry is in the store; None if no entry is."""
        kept = (self.steps[name] for name in names if name in self.steps)
        return next((each.parameters for each in kept if each.entry), None)

    def lost(self) -> list[str]:
        """Return the names of the steps whose entries are no longer in the store."""
        return [name for name, kept in self.steps.items() if kept.entry is None]


def recorded(data: DatasetInStore, run: str) -> Recorded:
    """Return what a run has recorded.

    Raises:
        ConfigError: there is no such run, or it has recorded no step.
    """
    from tasks.report.past_runs import run_record

    values = data.run(run)
    record = run_record(data.store, {**values, "steps": []})
    steps = {step.name: step for step in steps_of(values) if step.key and step.step not in LEFT_OUT}
    if not steps:
        raise ConfigError(
            f"expected a run of {data.name} that has done a step; run {record.id} ended before that; give another one: "
            f"`{data.store.command(f'runs list {data.name}')}`"
        )
    return Recorded(data, values, record, {name: _kept(data, step) for name, step in steps.items()})


def _kept(data: DatasetInStore, step: Step) -> Kept:
    entry = None
    with suppress(DamagedEntry):
        entry = data.store.described(data.name, FOLDERS[step.step], step.key)
    return Kept(step, entry, data.store.where_entry(data.name, step.step, step.key))


def config_of(run: Recorded) -> TrainingConfig:
    """Return the complete training configuration of a run: as its training was made from, otherwise as the ledger says.

    Raises:
        ConfigError: it was not recorded, or this version does not know it.
    """
    from tasks.report.diagnosis import config_of as of_ledger

    known = run.parameters("train") or {}
    values = {**run.record.config, **{name: known[name] for name in known if name in TrainingConfig.model_fields}}
    config = of_ledger(dataclasses.replace(run.record, config=values)) if values else None
    if config is None:
        raise _of_another_version(run, "training parameters", "others" if values else "none")
    return config


def _of_another_version(run: Recorded, what: str, found: str) -> ConfigError:
    return ConfigError(
        f"expected the {what} of run {run.id} of {run.data.name}, as this version records them; found {found}: another "
        f"version of idxflow made it; give a later run: `{run.data.store.command(f'runs list {run.data.name}')}`"
    )


def manifest_today(run: Recorded, given: str | None) -> Dataset | None:
    """Return the data set as its manifest declares it today; None if nothing says where that is.

    Args:
        given: the manifest that the user has named.

    Raises:
        ConfigError: that one cannot be used, or is that of another data set.
    """
    name = run.data.name
    if given:
        dataset = catalog.read(Path(given))
        if dataset.name != name:
            raise ConfigError(
                f"{dataset.manifest}: expected the manifest of {name}; found that of {dataset.name}; give the right "
                "one with --dataset-file, or leave it out"
            )
        return dataset
    if name in catalog.names() and not (run.record.facts and run.record.facts.manifest):
        return catalog.find(name)
    noted = datasets.manifest_of(run.data.store, name)
    with suppress(ConfigError):
        # Nobody has named this one, so what is wrong with it is no reason to stop.
        return catalog.read(noted) if noted else None
    return None


def dataset_of(run: Recorded, scratch: Store, today: Dataset | None) -> Dataset:
    """Return the data set as the run had it; where its entries are gone, as today's manifest has it.

    Args:
        scratch: it has the archives of the run.
        today: `manifest_today`.

    Raises:
        ConfigError: neither says how the archives are to be read or checked, or another version has recorded it.
    """
    decoded = run.parameters(*(f"decode {name}" for name in SPLITS))
    needed = {"decode": decoded, "validate": run.parameters("validate"), "quarantine": run.parameters("quarantine")}
    gone = [name for name in run.lost() if needed.get(name.partition(" ")[0], {}) is None]
    if gone and today is None:
        raise ConfigError(
            f"expected in the store what {gone[0]} of run {run.id} was made from; its entry was removed, or cannot be "
            f"read; give the manifest that says it: `{_command(run)} --dataset-file FILE`"
        )
    dataset = today or trainings.dataset_of(run.record)
    dataset = dataclasses.replace(
        dataset,
        archives=tuple(_specs(run, scratch)),
        # Nothing is fetched: the archives are there.
        source=None,
        zipped=None,
        embedded=False,
        rows=_rows(run, today),
    )
    try:
        return _with_decision(
            run, _with_behaviour(run, _with_quarantine(run, _with_contract(run, _with_layout(decoded, dataset))))
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _of_another_version(run, "declarations", f"others ({catalog.one_line(str(error))})") from error


def _command(run: Recorded) -> str:
    return run.data.store.command(f"reproduce {run.data.name} {run.id}")


def _specs(run: Recorded, scratch: Store) -> Iterator[ArchiveSpec]:
    """Yield the archives as they were declared, with the digests by which they were fetched."""
    for role in ROLES:
        if f"fetch {role}" in run.steps:
            archive = scratch.get(run.data.name, "fetch", run.steps[f"fetch {role}"].step.key, Archive)
            for number, one in enumerate(members.of(archive)):
                inputs = scratch.made_from(run.data.name, "fetch", one.entry.key)["inputs"]
                digests = {"sha256": inputs.get("archive"), "payload_sha256": inputs.get("payload")}
                yield ArchiveSpec(role, one.file_name, number=number, **digests)


def _rows(run: Recorded, today: Dataset | None) -> dict[Any, int]:
    found: dict[Any, int] = {}
    declared = _on_that_day(run, today).rows if today else {}
    for name in SPLITS:
        parameters = run.parameters(f"decode {name}")
        rows = declared.get(name) if parameters is None else parameters.get("rows")
        if rows is not None:
            found[name] = rows
    return found


def _with_layout(decoded: Mapping[str, Any] | None, dataset: Dataset) -> Dataset:
    if decoded is None:
        return dataset
    return dataclasses.replace(
        dataset,
        classes=tuple(decoded["classes"]),
        image_shape=tuple(decoded["image_shape"]),
        label_column=decoded.get("label_column"),
        labels=tuple(decoded.get("labels", ())),
        transpose=bool(decoded.get("transpose")),
    )


def _with_contract(run: Recorded, dataset: Dataset) -> Dataset:
    contract = run.parameters("validate")
    if contract is None:
        return dataset
    limits = {name: contract[name] for name in (f.name for f in dataclasses.fields(Limits)) if name in contract}
    if not contract.get("known_centroid_hit"):
        # It was not set, and the value is the one that follows from the number of classes.
        limits.pop("min_centroid_hit", None)
    return dataclasses.replace(dataset, limits=Limits(**limits), ink=contract.get("ink"))


def _with_quarantine(run: Recorded, dataset: Dataset) -> Dataset:
    if "quarantine" not in run.steps:
        return dataclasses.replace(dataset, quarantine=Quarantine())
    parameters = run.parameters("quarantine")
    if parameters is None:
        facts = run.record.facts
        if not facts or facts.quarantine is None:
            return dataset
        parameters = {"checks": facts.quarantine, "max_share": facts.max_share}
    rules = Quarantine(checks=tuple(parameters["checks"]), max_share=parameters["max_share"])
    return dataclasses.replace(dataset, quarantine=rules)


def _with_decision(run: Recorded, dataset: Dataset) -> Dataset:
    decision = run.record.decision
    if decision is None:
        return dataset
    limits: dict[str, Any] = {name: float(value) for name, value in decision.limits.items()}
    if "budget_decisions" in limits:
        limits["budget_decisions"] = int(limits["budget_decisions"])
    gate = Gate(policy=decision.policy, **limits) if decision.policy else dataset.gate  # type: ignore[arg-type]
    floors = [float(match[1]) / 100 for rule in decision.rules[:2] if (match := _PERCENT.fullmatch(rule.limit))]
    return dataclasses.replace(
        dataset,
        gate=gate,
        floors=Floors(*floors) if len(floors) == 2 else dataset.floors,
        slices=Slices(**decision.slicing),
    )


def _with_behaviour(run: Recorded, dataset: Dataset) -> Dataset:
    """Return the data set with the tests of behaviour that the run had.

    The images that must be right are those of today. If it is not known where they are, there are no tests.
    """
    if "probe" not in run.steps:
        return dataclasses.replace(dataset, behaviour=None)
    parameters = run.parameters("probe")
    if parameters is None:
        return dataset
    settings = {name: value for name, value in parameters.items() if name != NAMED_IMAGES}
    named = ""
    if NAMED_IMAGES in parameters:
        named = dataset.behaviour.must_be_right if dataset.behaviour else ""
        if not named:
            return dataclasses.replace(dataset, behaviour=None)
    return dataclasses.replace(dataset, behaviour=Behaviour(**settings, must_be_right=named))


def _on_that_day(run: Recorded, today: Dataset) -> Dataset:
    day = day_of(run.record.as_of, "--as-of") if run.record.as_of else None
    try:
        return chosen(today, day)
    except IdxflowError:
        return today


def changes_of_manifest(run: Recorded, dataset: Dataset, today: Dataset) -> list[str]:
    """Return, in words, what decides bytes and is no longer in the manifest as the run had it.

    Args:
        dataset: as the run had it (`dataset_of`).
    """
    declared = _on_that_day(run, today)
    return [
        f"{name}: the run used {brief(used)}, the manifest now says {brief(now)}"
        for name, used, now in (*_settings(dataset, declared), *_digests(dataset, declared))
        if used != now
    ]


def _settings(dataset: Dataset, declared: Dataset) -> Iterator[tuple[str, Any, Any]]:
    for name in ("classes", "image_shape", "labels", "label_column", "transpose", "ink"):
        yield name, getattr(dataset, name), getattr(declared, name)
    for split, rows in declared.rows.items():
        yield f"[rows] {split}", dataset.rows.get(split), rows
    limits = _limits(declared)
    for name, value in _limits(dataset).items():
        yield f"[limits] {name}", value, limits[name]
    rules = (each.quarantine for each in (dataset, declared))
    names = ("checks", "max_share") if dataset.quarantine.checks else ("checks",)
    used, now = (dataclasses.asdict(each) for each in rules)
    for name in names:
        yield f"[quarantine] {name}", used[name], now[name]


def _digests(dataset: Dataset, declared: Dataset) -> Iterator[tuple[str, Any, Any]]:
    for spec in declared.archives:
        used = [each.sha256 for each in dataset.archives_of(spec.role) if each.sha256]
        if spec.sha256 and used and spec.sha256 not in used:
            yield f"archives.{spec.role}.sha256", used[min(spec.number, len(used) - 1)], spec.sha256


def _limits(dataset: Dataset) -> dict[str, Any]:
    limits, classes = dataset.limits, len(dataset.classes)
    values = dataclasses.asdict(limits)
    return {
        **values,
        "min_class_share": limits.least_class_share(classes),
        "min_centroid_hit": limits.least_centroid_hit(classes),
    }
