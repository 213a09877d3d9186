"""Search for better training parameters: carry out the trials of a study, each scored on held-out rows only.

    8-studies/<key>/                 the study: its space, and what is the same in all trials
    8-studies/<key>-<number>/        a trial: its values, its score, the keys of its models

The key of a study has everything that its trials depend on, but not how many there are: with more trials it goes on. A
trial is a training like any other, or several with a seed and held-out rows each, so its models are those of `train`,
and a run with the same parameters finds them.

Nothing here has the test split.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import Dataset
from storage.datasets.model_errors import checked
from storage.datasets.own_models import Source
from storage.datasets.training import TrainingConfig, with_other
from storage.errors import ConfigError, DamagedEntry, TrainingFailed
from storage.formats import members
from storage.formats.history import read_history
from storage.records import Done, Epoch, FolderEntry, Normalization, Split, Study, TrainedModel, Trial
from storage.runtime import code_digests
from storage.store import FOLDERS, Plan, Store
from tasks.model import training_rows
from tasks.train import Abandoned, Training, made, planned, source_of_model
from tasks.tuning.optuna_study import Judge, Search, of_epoch
from tasks.tuning.space import to_toml
from tasks.ui import summaries
from tasks.ui.steps import log_step

_log = logging.getLogger(__name__)


@task(task_run_name="study", cache_policy=NO_CACHE)
def begin(store: Store, training: Training, search: Search) -> Done[Study]:
    """Begin a study, or find that it was begun.

    Args:
        training: that of the configuration before the search; its normalization has the held-out rows. The source of a
            user's own model has been read: all trials are of that one.
    """
    dataset, split, normalization, config = training.dataset, training.split, training.normalization, training.config
    parameters: dict[str, Any] = {
        "space": {name: values.to_json() for name, values in search.space.items()},
        "config": config.deciding(),
        **source_of_model(training.source),
        "classes": len(dataset.classes),
        **{name: getattr(search, name) for name in ("sampler", "pruner", "by", "seed", "seeds")},
    }
    if training_rows.rows_at_once(dataset.name, split, config, split.rows) < split.rows:
        # Then the budget decides the order of the rows.
        parameters["memory"] = config.memory
    plan = Plan(
        dataset.name,
        "tune",
        inputs={"train": split.digest, "normalization": normalization.digest},
        parameters=parameters,
        code=code_digests.digests(__name__),
        libraries=code_digests.library_versions("tensorflow", "keras", "numpy", "optuna"),
    )

    def make(folder: Path) -> Study:
        study = Study(
            FolderEntry(folder),
            parameters["space"],
            config.model_dump(mode="json"),
            search.sampler,
            search.pruner,
            search.by,
            search.seed,
            search.seeds,
            split.rows - normalization.held_out_rows,
            normalization.held_out_rows,
        )
        study.space_file.write_text(to_toml(search.space), encoding="utf-8")
        return study

    result = store.get_or_make(plan, Study, make, summaries.study)
    log_step(_log, result.step)
    return result


@dataclass(frozen=True)
class Candidate:
    """A trial to be carried out, on this machine or on another one that reaches the store."""

    store: Store
    study: str
    """Its key."""
    dataset: Dataset
    split: Split
    normalizations: tuple[Normalization, ...]
    """Of each training."""
    config: TrainingConfig
    """Before the search."""
    search: Search
    number: int
    values: Mapping[str, Any]
    earlier: tuple[Trial, ...] = field(default=(), repr=False)
    """The trials that have ended, by which this one is judged."""
    source: Source | None = field(default=None, repr=False)
    """Of the user's own model, if there is one, as it was when the study was begun."""


def tried(candidate: Candidate) -> Done[Trial]:
    """Carry out a trial, or find that it was; workers call this, too.

    Raises:
        DataRefused: a label is not a class of the data set.
        StoreError: the store cannot be used.
    """
    plan = Plan(
        candidate.dataset.name,
        "tune",
        "trial",
        inputs={"study": candidate.study},
        parameters={"number": candidate.number},
        name=name_of(candidate.study, candidate.number),
    )
    return candidate.store.get_or_make(plan, Trial, lambda folder: _Trying(candidate).into(folder), summaries.trial)


def configuration(candidate: Candidate, training: int = 0) -> TrainingConfig:
    """Return the complete configuration of one of a trial's trainings.

    Raises:
        ConfigError: its values do not go together.
    """
    other = {**candidate.values, "seed": candidate.config.seed + training}
    return checked(TrainingConfig, with_other(candidate.config.model_dump(), other), "training parameters")


def name_of(study: str, number: int) -> str:
    """Return the name of the folder of a trial."""
    return f"{study}-{number:06d}"


def trials_of(store: Store, dataset: str, study: str) -> list[Trial]:
    """Return the trials of a study that have ended, in the order of their numbers; a damaged one counts as missing.

    Raises:
        StoreError: the store cannot be read.
    """
    names = store.objects.list(store.key(dataset, FOLDERS["tune"])).folders
    return [*_found(store, dataset, sorted(name for name in names if re.fullmatch(rf"{study}-[0-9]{{6}}", name)))]


def _found(store: Store, dataset: str, names: Iterable[str]) -> Iterator[Trial]:
    for name in names:
        try:
            # In object storage, what a killed process has left has the name of an entry, too.
            if store.has(dataset, "tune", name):
                yield store.get(dataset, "tune", name, Trial)
        except DamagedEntry as error:
            _log.warning("%s: %s; carrying out this trial again", dataset, error)


class _Trying:
    """A trial that is being carried out."""

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate
        self._since = time.perf_counter()
        self._curve: list[float] = []
        self._models: list[TrainedModel] = []
        search = candidate.search
        epochs = int(candidate.values.get("epochs", candidate.config.epochs))
        self._judge = Judge(search.pruner, search.by, epochs, candidate.earlier)

    def into(self, folder: Path) -> Trial:
        """Train, and write the keys of the models into `folder`; return the record of the trial."""
        state, reason = "complete", ""
        try:
            for number, normalization in enumerate(self._candidate.normalizations):
                self._models.append(self._trained(number, normalization))
        except Abandoned as ended:
            state, reason = "pruned", str(ended)
        except (TrainingFailed, ConfigError) as error:
            state, reason = "failed", str(error)
        members.write(folder, (), (model.entry.key for model in self._models))
        return self._record(folder, state, reason)

    def _trained(self, number: int, normalization: Normalization) -> TrainedModel:
        """Carry out one of the trainings. Only the first may be abandoned, and only if it is not in the store."""
        candidate, config = self._candidate, configuration(self._candidate, number)
        training = Training(candidate.dataset, candidate.split, normalization, config, source=candidate.source)
        item = planned(candidate.store, training)
        model = made(item, None if number else self._watch).record
        if not number:
            self._curve = [of_epoch(epoch, candidate.search.by) for epoch in read_history(model.history_source)]
        return model

    def _watch(self, epoch: Epoch) -> None:
        search = self._candidate.search
        self._curve.append(of_epoch(epoch, search.by))
        if self._judge(epoch):
            raise Abandoned(f"its held-out {search.by} after epoch {epoch.epoch} was among the worse ones")

    def _record(self, folder: Path, state: Any, reason: str) -> Trial:
        candidate, histories = self._candidate, [read_history(model.history_source) for model in self._models]
        kept = [history[model.chosen_epoch - 1] for history, model in zip(histories, self._models, strict=True)]
        complete = state == "complete"
        return Trial(
            FolderEntry(folder),
            candidate.number,
            state,
            candidate.values,
            tuple(of_epoch(epoch, "accuracy") for epoch in kept if complete),
            tuple(of_epoch(epoch, "loss") for epoch in kept if complete),
            tuple(value for value in self._curve if math.isfinite(value)),
            sum(map(len, histories)) or len(self._curve),
            self._models[0].parameters if self._models else 0,
            round(time.perf_counter() - self._since, 3),
            reason,
            self._judge.notes,
        )
