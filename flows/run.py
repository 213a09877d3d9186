"""The state of one run: its request, its results so far, and its outcome."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar, get_args

from flows import datasets
from flows.settings import SOURCE_VARIABLE
from storage.arrivals import WELL, Arrivals
from storage.datasets import catalog
from storage.datasets.catalog import ArchiveSpec, BadRow, Dataset
from storage.datasets.chosen import chosen, day_of
from storage.datasets.manifest import NOTHING
from storage.datasets.training import Profile, TrainingConfig, parse_overrides, training_config
from storage.errors import ConfigError, DamagedEntry, IdxflowError, ModelRefused, StoreError, error_class, shortage
from storage.opening import open_store
from storage.outcomes import Outcome, steps_of
from storage.records import CUT_OFF, HTML, Done, Failure, Finding, Report, RunRecord, Step, to_json
from storage.registry import Registry
from storage.snapshots import ArrivedFile
from storage.store import LOOKED_AT, Store, command_for, store_address, store_errors
from storage.studies import TUNED, tuned
from storage.underway import Trace, begin
from storage.words import meant
from storage.workers.address import is_unprotected
from storage.workers.here import Here
from storage.workers.opening import workers_for
from storage.workers.protocol import Workers
from tasks.report import past_runs

R = TypeVar("R")

FIRST_YEAR = 1980
"""Keras saves models as ZIP, which has no earlier dates."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """The parameters of a run as the user gave them: on the command line, in a deployment, in the Prefect UI."""

    dataset: str = "digits"
    dataset_file: str | None = None
    profile: Profile = "default"
    training: Mapping[str, Any] = field(default_factory=dict)
    """Individual training parameters by name; checked by `resolve`."""
    settings: tuple[str, ...] = ()
    """The same as given to `--set`, `name=value`; these take precedence."""
    source: str | None = None
    store: str | None = None
    force: bool = False
    """Train, evaluate and decide again even if nothing is new."""
    audit: bool = False
    """Look for wrong labels and near-duplicates, too; the manifest may also ask for it."""
    arrival: str | None = None
    """The set of archives of `dataset` that `idxflow watch` has taken; it replaces any other source."""
    quarantine: tuple[str, ...] | None = None
    """The checks whose rows are set aside; None: those of the manifest."""
    quarantine_limit: float | None = None
    """Largest share of a split's rows to set aside; None: that of the manifest."""
    workers: str | None = None
    """Who computes the parts of the data (`storage.workers.address`); None: what `IDXFLOW_WORKERS` says."""
    insecure_workers: bool = False
    """Whether a scheduler on another machine need not ask for certificates."""
    as_of: str | None = None
    """Use only archives of this day, ISO 8601, or earlier; None: all."""

    def resolve(self) -> tuple[Dataset, TrainingConfig]:
        """Return the data set and the complete training configuration.

        Raises:
            ConfigError: the data set, its manifest or a parameter is wrong, or nobody has tuned it.
            StoreError: it cannot be read what a study has found.
        """
        dataset, config, _ = self.resolve_all()
        return dataset, config

    def resolve_all(self) -> tuple[Dataset, TrainingConfig, str]:
        """Return the same, and the key of the study that found the configuration; empty unless that is `tuned`."""
        if self.source:
            # It imports what downloads.
            from tasks.sources.origins import check_source

            check_source(self.source)
        self.who_computes()
        day = day_of(self.as_of, "--as-of") if self.as_of else None
        dataset = self._with_quarantine(chosen(self.declared(), day))
        return dataset, *self._training(dataset)

    def _training(self, dataset: Dataset) -> tuple[TrainingConfig, str]:
        """Return the complete training configuration, and the study that found it if the profile is `tuned`."""
        found: Mapping[str, Any] = {}
        study = ""
        if self.profile == TUNED:
            command = replace(self, profile="default", training={}, settings=()).command("tune")
            profile = tuned(open_store(self.store), dataset.name, command)
            found, study = profile.config, profile.study
        return training_config(dataset, self.profile, {**found, **self.overrides}), study

    def who_computes(self) -> Workers:
        """Return the workers, none of which is started or asked yet.

        Raises:
            ConfigError: they cannot be used like that.
        """
        return workers_for(self.workers, self.insecure_workers)

    def declared(self) -> Dataset:
        """Return the data set as its manifest declares it.

        Raises:
            ConfigError: there is none of that name, or its manifest is wrong.
        """
        if self.arrival:
            return _arrived(self._arrivals, self.arrival, self.dataset)
        return catalog.read(Path(self.dataset_file)) if self.dataset_file else datasets.named(self.dataset, self.store)

    def _with_quarantine(self, dataset: Dataset) -> Dataset:
        rules, known = dataset.quarantine, get_args(BadRow)
        words: Any = self.quarantine
        for word in words or ():
            if word not in known:
                raise ConfigError(
                    f"--quarantine: expected words from {', '.join(known)}, with commas between, or {NOTHING}; found "
                    f"{catalog.shown(word)}{meant(word, known)}; correct it"
                )
        if words is not None:
            rules = dataclasses.replace(rules, checks=tuple(dict.fromkeys(words)))
        if self.quarantine_limit is not None:
            rules = dataclasses.replace(rules, max_share=self.quarantine_limit)
        return dataclasses.replace(dataset, quarantine=rules)

    @property
    def _arrivals(self) -> Arrivals:
        return Arrivals(open_store(self.store), self.dataset)

    @property
    def overrides(self) -> dict[str, Any]:
        """Individual training parameters by name."""
        return {**self.training, **parse_overrides(self.settings)}

    def command(self, name: str, *more: str) -> str:
        """Return the command `name` for the same request, ready to type, but without `--force`: it would redo steps.

        Args:
            more: other words of the command.
        """
        words = [name, *(["--dataset-file", self.dataset_file] if self.dataset_file else [self.dataset])]
        words += ["--profile", self.profile] if self.profile != "default" else []
        for key, value in self.overrides.items():
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        words += ["--source", self.source] if self.source else []
        words += ["--as-of", self.as_of] if self.as_of else []
        words += ["--audit"] if self.audit else []
        words += ["--quarantine", ",".join(self.quarantine) or NOTHING] if self.quarantine is not None else []
        words += ["--quarantine-limit", str(self.quarantine_limit)] if self.quarantine_limit is not None else []
        words += ["--workers", self.workers] if self.workers else []
        words += ["--insecure-workers"] if self.workers and is_unprotected(self.workers) else []
        words += more
        # Without opening the store: that may take a request to another machine.
        return command_for(store_address(self.store), shlex.join(words))

    def source_for(self, dataset: Dataset) -> str | None:
        """Return where to look first: the given source, otherwise `IDXFLOW_SOURCE` unless the data is embedded.

        In a folder of several data sets, this is the subfolder with the name of this one.
        """
        if self.arrival:
            return self._arrivals.where(self.arrival)
        source = self.source or (None if dataset.embedded else os.environ.get(SOURCE_VARIABLE))
        if source and ":" not in source.split("/")[0]:
            folder = Path(source).expanduser().absolute()
            own = folder / dataset.name
            return str(own if own.is_dir() else folder)
        return source or None


def _arrived(arrivals: Arrivals, arrival: str, name: str) -> Dataset:
    """Return the data set with its archives pinned to the digests of a set that has arrived.

    Raises:
        ConfigError: there is no such set, or the manifest that it was taken with now describes another data set.
    """
    arrived = arrivals.find(arrival)
    if not arrived:
        raise ConfigError(
            f"expected the set {arrival} of {name} in the ledger of {arrivals.store.address}, the store of this run; "
            "found none; start `idxflow watch` and the worker (`idxflow up`) with the same --store or IDXFLOW_STORE"
        )
    dataset = catalog.read(Path(arrived.dataset_file)) if arrived.dataset_file else catalog.find(arrived.dataset)
    if dataset.name != name:
        raise ConfigError(
            f"{dataset.manifest}: expected the manifest of {name}; found that of {dataset.name}; "
            "restore the manifest that the set was announced with"
        )
    catalog.check_four(dataset, "the set that arrived is four files")
    archives = tuple(_pinned(spec, arrived.files[spec.role]) for spec in dataset.archives)
    return dataclasses.replace(dataset, archives=archives, source=None, zipped=None, embedded=False)


def _pinned(spec: ArchiveSpec, file: ArrivedFile) -> ArchiveSpec:
    """Return `spec` pinned by its own digests, otherwise by that of the file; it has no mirrors."""
    if spec.pinned:
        return dataclasses.replace(spec, mirrors=())
    return dataclasses.replace(spec, bytes=file.bytes, sha256=file.sha256, payload_bytes=None, mirrors=())


class RunFailed(Exception):
    """The outcome of a failed run, in the form in which Prefect stores failures."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.sentence)
        self.outcome = outcome


@dataclass
class Job:
    """The state of one run. `record` grows with each step, so that a failed run can report how far it came."""

    store: Store
    dataset: Dataset
    source: str | None
    config: TrainingConfig
    record: RunRecord
    again: str = ""
    """Not empty if the run is forced: it makes the training differ from all earlier ones."""
    audit: bool = False
    arrival: str | None = None
    """The id of the set, if the run is of one that has arrived."""
    workers: Workers = field(default_factory=Here)
    """Who computes the parts of the data."""
    report: Report | None = None
    trace: Trace | None = None
    """Marks the run as under way until its end is recorded."""
    started: float = field(default_factory=time.perf_counter)

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.store, self.dataset.name)

    @property
    def version(self) -> str:
        """` v7` if the decision is about version 7; empty without a version."""
        number = self.record.decision.version if self.record.decision else None
        return f" v{number}" if number else ""

    def keep(self, name: str, finished: Done[R]) -> R:
        """Record a finished step and its result, as a field of the run's record; return the result.

        `archives` are appended one by one.
        """
        before = getattr(self.record, name)
        self.note(**{name: (*before, finished.record) if isinstance(before, tuple) else finished.record})
        return self.passed(finished)

    def passed(self, finished: Done[R]) -> R:
        """Record a finished step whose result is not in the run's record; return the result."""
        self.note(steps=(*self.record.steps, finished.step))
        return finished.record

    def note(self, **fields: Any) -> None:
        """Set fields of the run's record."""
        self.record = dataclasses.replace(self.record, **fields)

    def fail(self, error: Exception) -> None:
        """Record why the run failed; later errors are only logged.

        Errors that idxflow does not raise on purpose are logged with their traceback.
        """
        if isinstance(error, IdxflowError):
            failure = error.failure
        else:
            _log.error("unexpected error", exc_info=error)
            sentence = shortage(error) or f"unexpected {type(error).__name__}: {error}"
            failure = Failure(type(error).__name__, sentence, 1)
        if self.record.failure:
            if failure.sentence != self.record.failure.sentence:
                _log.error("after that: %s", failure.sentence)
        else:
            self.note(failure=failure)

    @contextmanager
    def under_way(self, about: Mapping[str, Any]) -> Iterator[None]:
        """Mark this run in the store as under way while the block runs; the mark remains if the run dies."""
        record = self.record
        origin = {"started": record.started, "asked_by": record.asked_by, "profile": record.profile}
        about = {**about, **origin, "config": to_json(record.config), "arrival": self.arrival}
        try:
            self.trace = begin(self.store, self.dataset.name, record.id, about)
        except (OSError, StoreError) as error:
            # A full disk may still hold everything that the run needs.
            _log.debug("cannot mark the run as under way: %s", error)
        trace = self.trace
        try:
            yield
        finally:
            if trace:
                trace.close()

    def stop(self, how: str, sentence: str) -> None:
        """Record that the run was cut off, unless it had already ended; `how` is a state of `CUT_OFF`."""
        if self.trace:
            if not self.record.failure:
                self.note(failure=Failure(how.capitalize(), sentence, 1))
            with suppress(IdxflowError):
                self.append_to_ledger()

    @property
    def state(self) -> str:
        """`promoted`, `kept`, `unchanged`, `refused` (data or model), `failed`, or `valid` after validation only.

        For a run that was cut off, one of `CUT_OFF`.
        """
        failure = self.record.failure
        if failure:
            how = failure.kind.lower()
            return how if how in CUT_OFF else "refused" if error_class(failure.kind).refuses else "failed"
        return self.record.decision.outcome if self.record.decision else "valid"

    @property
    def words(self) -> str:
        """How it ended in a word or two, for the flow run's name: `promoted v2`, `data refused`, `model refused`."""
        failure = self.record.failure
        if failure and self.state == "refused":
            return f"{error_class(failure.kind).refuses} refused"
        return f"{self.state}{self.version}"

    @property
    def message(self) -> str:
        """How the run ended, for readers who see nothing else of it: the message of its state in Prefect."""
        # All other sentences name the outcome themselves.
        return f"data refused: {self.sentence}" if self.words == "data refused" else self.sentence

    @property
    def sentence(self) -> str:
        """How the run ended, in one sentence."""
        record = self.record
        if record.failure:
            return record.failure.sentence
        return record.decision.sentence if record.decision else "the data is valid"

    def refuse_if_below_floor(self) -> None:
        """Note a refused decision as the run's failure."""
        decision = self.record.decision
        if decision and decision.outcome == "refused":
            self.fail(ModelRefused(f"{self.dataset.name}: model {decision.sentence}"))

    @property
    def outcome(self) -> Outcome:
        """How the run ended, or how far it has come."""
        record, decision = self.record, self.record.decision
        return Outcome(
            self.state,
            self.sentence,
            self.dataset.name,
            self.store.address,
            run=record.id,
            version=decision.version if decision else None,
            champion=decision.champion if decision else None,
            train_accuracy=record.model.train_accuracy if record.model else None,
            test_accuracy=record.evaluation.accuracy if record.evaluation else None,
            epochs=record.model.epochs_run if record.model else None,
            steps=record.steps,
            seconds=round(time.perf_counter() - self.started, 3),
            report=self.report.entry.where(HTML) if self.report else None,
            error=record.failure,
            as_of=record.as_of or None,
            study=record.study or None,
            findings=self._findings(),
        )

    def _findings(self) -> tuple[Finding, ...]:
        """Return what the report says of the training, with commands that can be typed here."""
        # It imports what reads the evidence, which a wrong command line need not wait for.
        from tasks.report.diagnosis import to_try

        facts, found = self.record.facts, self.report.findings if self.report else ()
        if facts and facts.manifest:
            # The report names no folder.
            facts = dataclasses.replace(facts, manifest=str(self.dataset.manifest))
        run = dataclasses.replace(self.record, facts=facts)
        words = (to_try(run, each.settings).removeprefix("idxflow ") for each in found)
        return tuple(
            dataclasses.replace(each, remedy=self.store.command(command))
            for each, command in zip(found, words, strict=True)
        )

    def append_to_ledger(self) -> None:
        """Append the run to the ledger; if it ended well, discard the snapshot of its set."""
        report = self.store.entry_key(self.dataset.name, "publish", self.report.entry.key) if self.report else None
        values = {**self.outcome.for_ledger(), **past_runs.for_ledger(self.record), "report": report}
        values.pop("store")
        if self.arrival:
            values["arrival"] = self.arrival
        self.registry.ledger.append("runs", self.record.id, values)
        if self.trace:
            self.trace.end()
            self.trace = None
        if self.arrival and self.state in WELL:
            with store_errors(self.store.root):
                Arrivals(self.store, self.dataset.name).discard(self.arrival)

    def existing_report(self) -> Report | None:
        """Return the report of the run that made the version that this run reuses; None if it no longer exists.

        If this run has results that not every run has, such as an audit, the report must have the same, so it may be
        that of a later run.
        """
        number = self.record.decision.version if self.record.decision else None
        if number is None:
            return None
        ledger = self.registry.ledger
        # A run that was killed after its decision is missing.
        runs: Iterable[dict[str, Any]] = filter(None, [ledger.find("runs", self.registry.version(number).run)])
        asked = _asked_for(self.record.steps)
        if asked:
            newest = islice(ledger.newest("runs"), LOOKED_AT)
            later = (run for run in newest if run.get("version") == number)
            runs = (run for run in chain(runs, later) if asked.items() <= _asked_for(steps_of(run)).items())
        reports = (self._report(run["report"]) for run in runs if run["report"])
        return next(filter(None, reports), None)

    def _report(self, key: str) -> Report | None:
        with suppress(DamagedEntry):
            return self.store.get(self.dataset.name, "publish", key.rpartition("/")[2], Report)
        return None


def _asked_for(steps: Iterable[Step]) -> dict[str, str]:
    """Return the keys of the steps of a run that only some runs have, and that no model depends on, by name."""
    return {step.step: step.key for step in steps if step.step in ("audit", "probe")}


def prepare(request: Request, asked_by: str) -> Job:
    """Check the whole request before any work starts.

    Raises:
        ConfigError: the data set, its manifest, a parameter or the machine's clock is wrong.
        StoreError: the store cannot be written.
    """
    dataset, config, study = request.resolve_all()
    store = open_store(request.store)
    now = _now()
    store.prepare()
    record = RunRecord(
        id=f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        dataset=dataset.name,
        # As precise as the times in the ledger, so that decisions can be ordered before or after it.
        started=now.isoformat(timespec="milliseconds"),
        asked_by=asked_by,
        profile=request.profile,
        config=config.model_dump(mode="json"),
        facts=past_runs.facts(dataset, request.quarantine is not None),
        environment=past_runs.environment(),
        as_of=request.as_of or "",
        study=study,
    )
    again = record.id if request.force else ""
    return Job(
        store,
        dataset,
        request.source_for(dataset),
        config,
        record,
        again,
        request.audit or dataset.audit,
        request.arrival,
        request.who_computes(),
    )


def _now() -> datetime:
    """Return the time, if it is plausible: without a battery, a clock starts in 1970."""
    now = datetime.now(UTC)
    if now.year < FIRST_YEAR:
        raise ConfigError(
            "expected a clock that is right, because records and archives carry its time; found "
            f"{now:%Y-%m-%d %H:%M} UTC; set it, for example with timedatectl, then run again"
        )
    return now


def refusal(request: Request, error: IdxflowError) -> Outcome:
    """Return the outcome of a request that could not be started."""
    failure = error.failure
    return dataclasses.replace(not_started(request, "failed", failure.sentence), error=failure)


def not_started(request: Request, state: str, sentence: str) -> Outcome:
    """Return the outcome of a request for which no run was started."""
    name = request.dataset_file or request.dataset
    return Outcome(state, sentence, name, store_address(request.store), as_of=request.as_of)
