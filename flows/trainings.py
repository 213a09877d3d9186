"""What went wrong in the training of a run, and what its network learns from fewer rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import datasets
from flows.dataset_in_store import DatasetInStore
from storage.datasets import catalog
from storage.errors import ConfigError
from storage.formats.history import read_history
from storage.outcomes import steps_of
from storage.records import Finding, RunRecord, Split, TrainedModel, to_json
from storage.runtime import cancellation
from storage.workers.current import using
from storage.workers.protocol import Workers

if TYPE_CHECKING:
    from storage.datasets.catalog import Dataset
    from storage.datasets.own_models import Source
    from storage.datasets.training import TrainingConfig
    from tasks.diagnosing.learning_curve import Point

Said = Callable[[str], None]

_NEEDED = ("decode", "quarantine", "validate", "normalize", "train")
"""The steps whose results are looked at. That of the test split is not: nothing may be learned from it."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found in the training of a run."""

    record: RunRecord
    model: TrainedModel
    findings: tuple[Finding, ...]
    is_judged: bool
    """Whether the rules could look at it: without its history, they cannot."""
    class_shares: tuple[float, ...]
    """Of the training rows; empty if they are unknown."""


@dataclass(frozen=True)
class Curve:
    """The trainings on shares of the fitted rows, and what they say."""

    points: tuple[Point, ...]
    sentence: str
    helps: bool | None
    """Whether more rows would help; None if the curve does not say."""
    fall: float | None
    """By how much twice as many rows would lower the held-out loss, as a share of it; None as for `helps`."""
    finding: Finding | None


def diagnosed(data: DatasetInStore, run: str | None) -> Diagnosis:
    """Return what was found in the training of a run; without one, of the newest run that has trained a model.

    Raises:
        ConfigError: there is no such run, or its model is no longer in the store.
    """
    from tasks.report import diagnosis
    from tasks.report.evidence import of_training
    from tasks.report.past_runs import run_record

    values = data.run(run) if run else _newest(data)
    steps = [to_json(step) for step in steps_of(values) if step.step in _NEEDED and step.subject != "test"]
    record = run_record(data.store, {**values, "steps": steps})
    if record.model is None:
        raise ConfigError(
            f"expected a run of {data.name} with a trained model in the store; run {record.id} has none, or it was "
            f"removed; give another run (`{data.store.command(f'runs list {data.name}')}`), or run it: "
            f"{data.run_command}"
        )
    evidence = of_training(record)
    found = tuple(_here(data, each) for each in diagnosis.findings(record, evidence))
    is_judged = diagnosis.course_of(record, evidence) is not None
    return Diagnosis(record, record.model, found, is_judged, tuple(diagnosis.class_shares(record, evidence)))


def learning_curve(data: DatasetInStore, diagnosis: Diagnosis, seeds: int, workers: Workers, say: Said) -> Curve:
    """Train on shares of the fitted rows as the run did, or find that done; the test split is not read.

    Args:
        seeds: how many seeds to train with, from that of the run on.
        workers: who trains; a training is one item of work.
        say: told of each training as it ends.

    Raises:
        ConfigError: the run held no rows out, its training split is no longer in the store, or the source of its own
            model is not at hand.
        TrainingFailed, DataRefused, WorkersFailed: as `tasks.train.train`.
    """
    from tasks.diagnosing import learning_curve as curves
    from tasks.report.diagnosis import config_of, to_try
    from tasks.train import made

    config, rows = config_of(diagnosis.record), diagnosis.record.train
    if config is None or rows is None:
        raise ConfigError(
            f"expected the training split of run {diagnosis.record.id} in the store; it was removed, or is of another "
            f"version; run it again: {data.run_command}"
        )
    if not diagnosis.model.validation_rows:
        fraction = {"validation_fraction": 0.1}
        command = _here_command(data, to_try(diagnosis.record, fraction))
        raise ConfigError(
            f"expected held-out rows, by which a learning curve is measured; run {diagnosis.record.id} held none out; "
            f"train with some first: `{command}`"
        )
    dataset = dataset_of(diagnosis.record)
    source = _source(data, diagnosis, dataset, config)
    wanted = [(seed, share) for seed in range(config.seed, config.seed + seeds) for share in curves.SHARES]
    points: dict[int, Point] = {}
    with data.store.in_use(data.name), closing(workers), using(workers), cancellation.cancellable():
        items = [_item(data, dataset, rows, (config, *each), source) for each in wanted]
        for number, done in workers.each(made, items, "learning curve"):
            seed, share = wanted[number]
            history = read_history(done.record.history_source)
            points[number] = curves.point(share, seed, done.record.fitted_rows, history, done.step.reused)
            say(_line(points[number], done.step.seconds, f"{len(points)} of {len(items)}"))
    found = tuple(points[number] for number in range(len(wanted)))
    verdict = curves.verdict(found, diagnosis.class_shares)
    finding = curves.finding(verdict, config, dataset.image_shape)
    more = finding and Finding(
        finding.name, finding.sentence, finding.source, finding.settings, to_try(diagnosis.record, finding.settings)
    )
    return Curve(found, verdict.sentence, verdict.helps, verdict.fall, _here(data, more) if more else None)


def _newest(data: DatasetInStore) -> dict[str, Any]:
    latest = data.run("latest")
    runs = data.ledger.newest("runs")
    return next((run for run in runs if any(step.step == "train" for step in steps_of(run))), latest)


def _here(data: DatasetInStore, finding: Finding) -> Finding:
    return replace(finding, remedy=_here_command(data, finding.remedy))


def _here_command(data: DatasetInStore, command: str) -> str:
    """Return a command with the store, if it is not the default."""
    return data.store.command(command.removeprefix("idxflow "))


def _source(data: DatasetInStore, diagnosis: Diagnosis, dataset: Dataset, config: TrainingConfig) -> Source | None:
    """Return the source of the user's own model that the run has trained; None if it has trained another network.

    The store does not have it. It is looked for beside the manifest, where `idxflow dataset` notes that or in the
    current folder, and on Python's path.
    """
    from tasks.train import own_source

    if dataset.name not in catalog.names():
        dataset = replace(dataset, manifest=datasets.manifest_of(data.store, data.name) or dataset.manifest)
    source, trained = own_source(dataset, config), diagnosis.model.own
    if source and trained and source.digest != trained.source:
        raise ConfigError(
            f"{source.path}: expected the source of {source.name} that run {diagnosis.record.id} has trained, for its "
            "learning curve; found another, or it imports another; put that back, or train this one first: "
            f"{data.run_command}"
        )
    return source


def _item(
    data: DatasetInStore, dataset: Dataset, rows: Split, each: tuple[TrainingConfig, int, float], source: Source | None
) -> Any:
    from tasks.diagnosing.learning_curve import config_for
    from tasks.normalize import normalize
    from tasks.train import Training, planned

    config, seed, share = each
    seeded = config.model_copy(update={"seed": seed})
    normalization = normalize.fn(data.store, dataset, rows, seeded).record
    return planned(data.store, Training(dataset, rows, normalization, config_for(seeded, share), share, source))


def _line(point: Point, seconds: float, count: str) -> str:
    how = "reused" if point.reused else f"{seconds:.1f} s"
    return (
        f"{count}: {point.share:.0%} of the rows, seed {point.seed}: held-out loss {point.held_out_loss:.4f}, "
        f"accuracy {point.held_out_accuracy:.2%}, {how}"
    )


def dataset_of(record: RunRecord) -> Dataset:
    """Return the data set of a run, as far as its training depends on it: the manifest may be gone."""
    from storage.datasets.catalog import Dataset
    from storage.datasets.manifest import Drift, Floors, Gate, Limits, Quarantine, Slices

    if record.dataset in catalog.names():
        return catalog.find(record.dataset)
    facts = record.facts
    if facts is None:
        raise ConfigError(
            f"expected the classes of {record.dataset} in the ledger; run {record.id} is of a version that did not "
            "keep them; give a later run"
        )
    place = Path(facts.manifest)
    rest = (Limits(), Floors(), Gate(), Quarantine(), Drift(), Slices())
    return Dataset(record.dataset, facts.title, facts.classes, facts.image_shape, (), place, *rest, labels=facts.labels)
