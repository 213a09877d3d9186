"""Carry out a run once more, from its archives to what its decision rests on, in a scratch store."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Task

from flows.dataset_in_store import DatasetInStore
from flows.pipeline import Directly, to_candidate, to_validation
from flows.reproducing import scratch as scratches
from flows.reproducing.comparing import Comparison, Result, compared, recorded_results, result_of
from flows.reproducing.recorded import (
    Recorded,
    changes_of_manifest,
    config_of,
    dataset_of,
    manifest_today,
    recorded,
)
from flows.run import Job
from storage import copying
from storage.datasets.catalog import Dataset
from storage.datasets.training import TrainingConfig
from storage.errors import ConfigError, DamagedEntry, IdxflowError, StoreError, WorkersFailed
from storage.files import digest_of
from storage.formats import members
from storage.records import Archive, Paired, Rule, RunRecord, TrainedModel, to_json
from storage.runtime import cancellation, code_digests
from storage.store import FOLDERS, Store
from tasks.evaluate import evaluate
from tasks.gate import looks
from tasks.gate.evidence import gather
from tasks.gate.judging import Candidate, Incumbent, judge
from tasks.probe import NAMED_IMAGES
from tasks.train import own_source

P = ParamSpec("P")
R = TypeVar("R")

DECIDE = "decide"
_PROBE = "probe"
_OF_CHAMPION = "evaluate champion"
_BY_A_PERSON = "a person approves"
"""The rule that no computation can repeat."""


@dataclass(frozen=True)
class Reproduction:
    """What came of making a run again."""

    run: Recorded
    comparison: Comparison
    notes: tuple[str, ...]
    """What could not be compared, what today's manifest was needed for, and how the run ended if that was early."""
    folder: Path | None
    """The scratch store, if it was kept."""


class _Enough(Exception):
    """All steps that the run has recorded are done. Never shown to people."""


class _AsFarAs(Directly):
    """Calls steps up to the last that the run has recorded, and knows which of them it has called last."""

    def __init__(self, steps: frozenset[str]) -> None:
        self._steps = steps
        self.last = ""

    def call(self, step: Task[P, R], *arguments: P.args, **named: P.kwargs) -> R:
        """Call a step, unless the run has not come to it."""
        if step.name not in self._steps:
            raise _Enough
        self.last = step.name
        return super().call(step, *arguments, **named)


def reproduce(data: DatasetInStore, text: str, manifest: str | None = None, keep: Path | None = None) -> Reproduction:
    """Make a run again in a scratch store, and compare all that it has recorded with what comes of it.

    Nothing in the store of the run is changed.

    Args:
        text: names the run (`DatasetInStore.run`).
        manifest: of the data set, as a file; needed only for what is no longer in the store, and for a model of the
            user's own.
        keep: a new or empty folder for the scratch store; None: a temporary one, which is removed.

    Raises:
        ConfigError: there is no such run, it has recorded too little, or the source of the user's own model is not
            that of the run.
        StoreError: an archive of the run was removed or is damaged, or a store cannot be read or written.
    """
    run = recorded(data, text)
    config, today = config_of(run), manifest_today(run, manifest)
    with scratches.opened(keep) as scratch, data.store.in_use(data.name), cancellation.cancellable():
        scratches.bring_archives(run, scratch)
        dataset = dataset_of(run, scratch, today)
        _check_own_source(run, dataset, config)
        scratches.release_as_then(run, scratch)
        again = _Again(run, _job(run, scratch, dataset, config))
        again.carry_out()
        comparison = compared(run, again.before, again.made, again.failed, again.left_out)
        notes = (*_notes(run, dataset, today), *again.notes)
        return Reproduction(run, comparison, notes, keep)


def _job(run: Recorded, scratch: Store, dataset: Dataset, config: TrainingConfig) -> Job:
    of = run.record
    record = RunRecord(run.id, dataset.name, of.started, of.asked_by, of.profile, config.model_dump(mode="json"))
    again = str((run.parameters("train") or {}).get("again", ""))
    return Job(scratch, dataset, None, config, record, again, audit="audit" in run.steps)


def _check_own_source(run: Recorded, dataset: Dataset, config: TrainingConfig) -> None:
    """Check that the source of the user's own model is that which the run has trained.

    Raises:
        ConfigError: it is another, or it is not at hand.
    """
    if not config.model or "train" not in run.steps:
        return
    source, trained = own_source(dataset, config), (run.parameters("train") or {}).get("source_of_model")
    if source and trained and source.digest != trained:
        raise ConfigError(
            f"{source.path}: expected the source of {source.name} that run {run.id} has trained, with the digest "
            f"{trained:.12}…; found {source.digest:.12}…, so it was changed, or a file that it imports; put that back, "
            "or name the manifest beside which it is with --dataset-file"
        )


class _Again:
    """A run that is made again: what it had made, and what it makes now."""

    def __init__(self, run: Recorded, job: Job) -> None:
        self.run, self.job = run, job
        self.before = recorded_results(run)
        """By the name of the step."""
        self.made: dict[str, Result] = {}
        """Likewise."""
        self.failed: tuple[str, str] | None = None
        """The step that has ended with an error now, of which the run has a result, and the sentence of the error."""
        self.left_out: Collection[str] = ()
        """Steps that cannot be done again."""
        self.notes: list[str] = []

    def carry_out(self) -> None:
        """Carry out the steps that the run has recorded.

        Raises:
            ConfigError, StoreError, WorkersFailed: see `reproduce`.
        """
        steps = frozenset(kept.step.step for kept in self.run.steps.values())
        caller = _AsFarAs(steps)
        try:
            if "normalize" in steps:
                self._judge(to_candidate(self.job, caller))
            else:
                to_validation(self.job, caller, self.job.audit)
        except _Enough:
            pass
        except (ConfigError, StoreError, WorkersFailed):
            raise
        except IdxflowError as error:
            self._note_made()
            # Data that was refused has a verdict, which is compared.
            missing = (name for name, kept in self.run.steps.items() if kept.step.step == caller.last)
            name = next((name for name in missing if name not in self.made), None)
            self.failed = (name, str(error)) if name else None
        self._note_made()

    def _note_made(self) -> None:
        archives = {archive.role: archive for archive in self.job.record.archives}
        for step in self.job.record.steps:
            if step.key:
                result = result_of(step.step, self._described(step.step, step.key))
                # The entry is a copy, but its files were read.
                found = {"SHA-256": self._sha256(archives[step.subject])} if step.step == "fetch" else result.values
                self.made[step.name] = dataclasses.replace(result, values=found)

    def _described(self, step: str, key: str) -> dict[str, Any]:
        return self.job.store.described(self.job.dataset.name, FOLDERS[step], key)

    def _sha256(self, archive: Archive) -> str:
        """Return the digest of an archive, or of those of a role, by the files themselves."""
        each = [
            str(self._described("fetch", one.entry.key)["files"][one.file_name]["sha256"])
            for one in members.of(archive)
        ]
        return digest_of(each) if archive.parts else each[0]

    def _judge(self, candidate: Candidate) -> None:
        """Score the champion of that time, and judge the candidate by the rules of then, as far as both are known."""
        self._note_made()
        decision = self.run.record.decision
        if decision is None or not decision.rules:
            return
        if _PROBE in self.run.steps and candidate.behaviour is None:
            self.left_out = (_PROBE, DECIDE)
            return
        try:
            champion = self._champion(candidate, decision.previous)
        except DamagedEntry as error:
            self.left_out = (_OF_CHAMPION, DECIDE)
            self.notes.append(
                f"champion v{decision.previous}, which the model was compared with, was removed from the store or is "
                f"damaged, so that comparison is left out: {error}"
            )
            return
        self._note_made()
        budget = looks.budget(decision.limits, self._before_it(), candidate.evaluation.split_digest)
        dataset = looks.governed(self.job.dataset, budget)
        evidence = dataclasses.replace(gather(dataset, candidate, champion), budget=budget)
        judgement = judge(dataset, candidate, champion, evidence)
        of_step = code_digests.digests("tasks.decide")
        past = (self.run.data.registry.decision_of(self.run.id) or {}).get("code")
        code = {name: past[name] for name in of_step if name in past} if past else None
        self.before[DECIDE] = _judged(self.before, decision.rules, decision.paired, code)
        self.made[DECIDE] = _judged(self.made, judgement.rules, judgement.evidence.paired, of_step)

    def _before_it(self) -> list[dict[str, Any]]:
        """Return the decisions that were made before that of the run."""
        past = self.run.data.registry.decisions()
        return [each for each in past if each.get("run") != self.run.id and each["time"] < self.run.values["time"]]

    def _champion(self, candidate: Candidate, number: int | None) -> Incumbent | None:
        """Return the champion of that time, scored as in the run.

        Raises:
            DamagedEntry: it is no longer in the store, or damaged.
        """
        data = self.run.data
        if number is None:
            return None
        version = data.registry.version(number)
        if _OF_CHAMPION not in self.run.steps:
            # It could not be compared.
            return Incumbent(version, None)
        copying.bring(data.store, self.job.store, data.name, "train", version.model)
        model = self.job.store.get(data.name, "train", version.model, TrainedModel)
        finished = evaluate.fn(self.job.store, self.job.dataset, model, candidate.test, whose="champion")
        return Incumbent(version, model, score=self.job.keep("champion_evaluation", finished))


def _judged(
    results: dict[str, Result], rules: tuple[Rule, ...], paired: Paired | None, code: dict[str, str] | None
) -> Result:
    """Return what is compared of a decision: its rules with what was observed, without what a person has answered."""
    scores = {name: results[name].values for name in ("evaluate", _OF_CHAMPION) if name in results}
    inputs = {f"{name} {what}": value for name, values in scores.items() for what, value in values.items()}
    origin = {"inputs": inputs, "parameters": {}, "code": code, "libraries": {}} if code else None
    applied = [to_json(rule) for rule in rules if rule.name != _BY_A_PERSON]
    return Result({"rules": digest_of([applied, to_json(paired) if paired else None])}, origin)


def _notes(run: Recorded, dataset: Dataset, today: Dataset | None) -> Iterator[str]:
    """Yield what limits the comparison, in sentences."""
    failure, lost = run.record.failure, run.lost()
    if failure and "confirm" not in run.steps:
        yield f"run {run.id} ended early, so only what it had done is compared: {failure.sentence}"
    elif "normalize" not in run.steps:
        yield f"run {run.id} only checked its data"
    if lost:
        yield f"removed from the store, or damaged, so not all of it can be compared: {', '.join(lost)}"
    if "validate" in lost or any(name.startswith("decode") for name in lost):
        yield "what the manifest decides in these steps is that of today's manifest"
    if "quarantine" in lost:
        yield "the rows that were released then are no longer recorded; those released today are taken"
    if (run.parameters(_PROBE) or {}).get(NAMED_IMAGES):
        kept = dataset.behaviour and dataset.behaviour.must_be_right
        yield (
            f"the images that must be right are not in the store; those of today in {kept} are taken"
            if kept
            else "the images that must be right are not in the store, and no manifest says where they are, so they are "
            "left out, with the decision; name the manifest with --dataset-file"
        )
    if today and (changes := changes_of_manifest(run, dataset, today)):
        yield f"{today.manifest}: not what the run used, which is what counts here: {'; '.join(changes)}"
