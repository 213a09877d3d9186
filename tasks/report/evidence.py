"""Gather what a report needs beyond the record of its run, leaving out damaged or missing parts with a warning."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq

from storage.datasets.training import TrainingConfig
from storage.files import check_regular
from storage.formats import arrays, members, predictions, probabilities, quarantined, split_rows
from storage.formats.history import read_history
from storage.formats.quarantined import SetAside
from storage.ledger import Ledger, Place, place
from storage.records import (
    CUT_OFF,
    Epoch,
    Evaluation,
    Normalization,
    Quarantine,
    RunRecord,
    Split,
    Step,
    TrainedModel,
    Validation,
)
from storage.registry import Registry, Version
from storage.runtime.ranged import Source
from storage.store import Store
from tasks.auditing.tables import NearDuplicates, Suspects
from tasks.checking import image_table, measuring
from tasks.drifting.compare import Comparison
from tasks.model import holdout, sides
from tasks.model.sides import Sides
from tasks.report import past_runs
from tasks.report.slices import Measures
from tasks.slicing import measures
from tasks.slicing.columns import Column, together

S = TypeVar("S")
T = TypeVar("T")
F = TypeVar("F", bound=Source)

MAX_SET_ASIDE = 25
"""Maximum number of rows in quarantine that are shown."""
MOST_SUSPECTS = 25
MOST_PAIRS = 12
"""Maximum numbers of rows of an audit that are shown."""
MAX_PAST = 29
"""Maximum number of earlier runs in the trend."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """The inputs of a step's result: `Plan.made_from`."""

    step: str
    inputs: Mapping[str, str]
    parameters: Mapping[str, Any]
    code: Mapping[str, str]
    libraries: Mapping[str, str]


Origins = Mapping[str, Origin]
"""The inputs of each step of a run, by the step's name."""


@dataclass(frozen=True)
class ChampionSnapshot:
    """The model in use before the run, and its inputs."""

    number: int
    run: RunRecord
    origins: Origins


@dataclass(frozen=True)
class DriftFound:
    """How the training images of a run differ from those of the champion before it (`tasks.report.drift`)."""

    comparison: Comparison
    rows: np.ndarray
    """int64, shape (n,): the row of each image that was compared."""
    labels: np.ndarray | None
    """int64, shape (n,): its class."""


@dataclass(frozen=True)
class Labels:
    """What a report needs of the labels of a split: less than one for each row."""

    rows: int
    counts: np.ndarray
    """int64, shape (256,): number of rows by label."""
    first: Mapping[int, int]
    """The first row of each label that occurs."""
    some: Mapping[int, int]
    """The label of each row that a check names."""

    @staticmethod
    def of(arrays: Iterable[np.ndarray], wanted: Collection[int] = ()) -> Labels:
        """Return this of the labels of a split, in pieces of type uint8 and shape (n,); `wanted` rows are kept."""
        rows, counts, first, some = 0, np.zeros(256, np.int64), dict[int, int](), dict[int, int]()
        for labels in arrays:
            counts += np.bincount(labels, minlength=256)
            values, places = np.unique(labels, return_index=True)
            first = {int(v): rows + int(n) for v, n in zip(values, places, strict=True)} | first
            some |= {row: int(labels[row - rows]) for row in wanted if rows <= row < rows + len(labels)}
            rows += len(labels)
        return Labels(rows, counts, dict(sorted(first.items())), some)


@dataclass(frozen=True)
class Evidence:
    """The evidence of a report beyond the run's record. Empty or None if missing or unreadable.

    Memory: about 17 bytes for each row of one part of the test split, and nothing for other rows of splits in parts.
    Temporary files: 25 bytes for each test row.
    """

    history: tuple[Epoch, ...] = ()
    labels: Mapping[str, Labels] = field(default_factory=dict)
    """By split."""
    test_labels: Column | None = None
    """uint8, of each test row, as the following."""
    predicted: Column | None = None
    """uint8: the predicted classes."""
    right: Column | None = None
    """Whether each test row was predicted correctly, bool."""
    sure: Column | None = None
    """float32: the probabilities of the predicted classes."""
    mistakes: Mapping[int, np.ndarray] = field(default_factory=dict)
    """The probabilities of all classes, float32 of shape (classes,), for the rows of `Evaluation.mistakes`."""
    champion_predicted: Column | None = None
    """uint8, of each test row."""
    set_aside: tuple[tuple[SetAside, bytes], ...] = ()
    """The first rows in quarantine, each with its picture as PNG."""
    leaked: Column | None = None
    """Whether each test image is also in the training split, bool; None if none is."""
    suspects: Sequence[Mapping[str, Any]] | None = None
    """The first rows of the table, see `Suspects`."""
    near_duplicates: Sequence[Mapping[str, Any]] | None = None
    """The nearest pairs that are not equal, see `NearDuplicates`: the data checks show those that are."""
    measures: Measures | None = None
    """Measures of the test images."""
    sides: Sides | None = None
    """The fitted and the held-out training rows; None if unknown or if none were held out."""
    means: Mapping[int, np.ndarray] = field(default_factory=dict)
    """The mean training image of each class that has images, by label, see `measures.class_means`."""
    past: tuple[Mapping[str, Any], ...] = ()
    """The last runs in the ledger before this one, oldest first, as many as the trend shows."""
    by_hand: tuple[str, ...] = ()
    """Manual changes of the champion since the previous run, oldest first."""
    origins: Origins = field(default_factory=dict)
    champion: ChampionSnapshot | None = None
    drift: DriftFound | None = None
    """None if there is no new training data, or nothing to compare it with."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Digests of the code that decided, by module."""


def gather(registry: Registry, run: RunRecord) -> Evidence:
    """Read the evidence for the report of `run` from the store, the registry and the ledger."""
    labels: dict[str, Labels] = {
        split.name: values
        for split in (run.train, run.test)
        if split and (values := readable(lambda split: _labels(run, split), split)) is not None
    }
    ledger = registry.ledger
    test_labels = readable(lambda split: Column(map(split_rows.labels, split_rows.parts(split)), np.uint8), run.test)
    predicted = _predicted(run.evaluation)
    return Evidence(
        history=(readable(_history, run.model) or ()) if run.model else (),
        labels=labels,
        test_labels=test_labels,
        predicted=predicted,
        right=readable(lambda _: _right(test_labels, predicted), run.evaluation),
        sure=readable(lambda score: Column(_confidence(score), np.float32), run.evaluation),
        mistakes=readable(_mistakes, run.evaluation) or {},
        champion_predicted=_predicted(run.champion_evaluation),
        set_aside=_set_aside(run),
        leaked=_leaked(run),
        suspects=readable(lambda audit: _some(Suspects, audit.suspects, MOST_SUSPECTS), run.audit),
        near_duplicates=readable(
            lambda audit: _some(NearDuplicates, audit.near_duplicates, MOST_PAIRS, audit.equal_rows), run.audit
        ),
        measures=_measures(run),
        sides=_sides(run),
        means=_means(run),
        past=readable(lambda _: _past(ledger, run.id), "ledger/runs") or (),
        by_hand=readable(lambda _: by_hand(registry, run.id), run.dataset) or (),
        origins=made_from(registry.store, run),
        champion=readable(lambda _: champion_before(registry, run), run.dataset),
        code=readable(lambda _: _code(registry, run.id), "ledger/decisions") or {},
    )


def of_training(run: RunRecord) -> Evidence:
    """Read only what the rules about a training look at (`tasks.report.diagnosis`); the test split is not read."""
    counted = run.validation and run.validation.class_counts.get("train")
    labels = None if counted else readable(lambda split: _labels(run, split), run.train)
    return Evidence(
        history=(readable(_history, run.model) or ()) if run.model else (),
        labels={"train": labels} if labels else {},
        sides=_sides(run),
    )


def readable(read: Callable[[S], T], source: S | None) -> T | None:
    """Return the result of `read`, or None if it fails: damaged or missing data must not prevent a report.

    Args:
        source: what is read, such as a record, of which `read` gets a file; None: there is nothing.
    """
    if source is None:
        return None
    try:
        return read(source)
    except Exception as error:
        _log.warning("report: left out %s: %s", _named(source), error)
        return None


def regular(source: F) -> F:
    """Return a file after checking that it is one: opening a FIFO could wait forever."""
    if isinstance(source, Path):
        check_regular(source)
    return source


def _named(source: object) -> object:
    entry = getattr(source, "entry", None)
    return entry.where() if entry else source


def made_from(store: Store, run: RunRecord) -> dict[str, Origin]:
    """Return the inputs of each step of a run, by its name, without the scoring of the champion."""
    origins = {}
    for step in run.steps:
        if step.key and not step.of and (origin := _made_from(store, run.dataset, step)):
            origins[step.name] = origin
    return origins


def champion_before(registry: Registry, run: RunRecord) -> ChampionSnapshot | None:
    """Return the champion that `run` was compared with, and its inputs; None before the first promotion.

    Raises:
        StoreError: the version is missing.
        DamagedEntry: the registry or the ledger cannot be read.
    """
    number = run.decision.previous if run.decision else _champion_met(registry, run)
    if number is None:
        return None
    version = registry.version(number)
    record = past_runs.find(registry, version.run) or _record_of(registry.store, version)
    return ChampionSnapshot(number, record, made_from(registry.store, record))


def by_hand(registry: Registry, run: str) -> tuple[str, ...]:
    """Return the manual changes of the champion between the last run that published a report and `run`.

    Raises:
        DamagedEntry: the registry or the ledger cannot be read.
    """
    ledger = registry.ledger
    # Go by their order, not their times: clocks can be wrong. A run that decided nothing new has no decision.
    turns = registry.outline()
    decided = (turn.place for turn in reversed(turns) if turn.run == run)
    until = next(decided, None) or ledger.place_of("runs", run)
    moved = [turn for turn in turns if turn.by_hand and turn.took_effect and (until is None or turn.place < until)]
    if not moved:
        return ()
    since = _last_published(ledger, run)
    moved = [registry.whole(turn) for turn in moved if since is None or turn.place > since]
    return tuple(f"{turn.time:%Y-%m-%d %H:%M} UTC: {turn.sentence}" for turn in moved)


def _last_published(ledger: Ledger, run: str) -> Place | None:
    """Return the place in the ledger of the last run before `run` that published a report, if any."""
    end = ledger.place_of("runs", run)
    for name in reversed(ledger.names("runs")):
        if end is None or place(name) < end:
            record = ledger.record("runs", name)
            if record.get("state") not in ("unchanged", *CUT_OFF):
                return place(name)
    return None


def _past(ledger: Ledger, run: str) -> tuple[Mapping[str, Any], ...]:
    """Return the last records in the ledger before `run`, oldest first."""
    newest = ledger.newest("runs", ledger.place_of("runs", run))
    return tuple(islice(newest, MAX_PAST))[::-1]


def _made_from(store: Store, dataset: str, step: Step) -> Origin | None:
    try:
        return Origin(step.step, **store.made_from(dataset, step.step, step.key))
    except Exception as error:
        _log.debug("report: %s %s: %s", step.name, step.key, error)
        return None


def _champion_met(registry: Registry, run: RunRecord) -> int | None:
    """Return the champion at the start of a run that did not reach a decision."""
    end, record = registry.ledger.place_of("runs", run.id), registry.ledger.find("runs", run.id)
    began = datetime.fromisoformat(run.started)
    ended = datetime.fromisoformat(record["time"]) if record else datetime.now(UTC)
    for turn in reversed(registry.outline()):
        # A decision made while the run was active does not count; one with a later time does: its clock was wrong.
        if turn.took_effect and (end is None or turn.place < end) and not began < turn.time <= ended:
            return turn.after
    return None


def _record_of(store: Store, version: Version) -> RunRecord:
    """Return the record, as far as known, of the run that made a version but was killed before the ledger had it."""
    keys = {"train": version.model, "evaluate": version.evaluation}
    parameters = store.made_from(version.dataset, "train", version.model)["parameters"]
    # Not all of them are configuration.
    config = {name: value for name, value in parameters.items() if name in TrainingConfig.model_fields}
    steps = tuple(Step(name, key, "", 0.0, True, "") for name, key in keys.items())
    return RunRecord(version.run, version.dataset, version.time, "unknown", "unknown", config, steps)


def _code(registry: Registry, run: str) -> Mapping[str, str]:
    code = (registry.decision_of(run) or {}).get("code")
    return code if isinstance(code, dict) else {}


def _history(model: TrainedModel) -> tuple[Epoch, ...]:
    epochs = read_history(regular(model.history_source))
    return tuple(epoch for epoch in epochs if _is_finite(epoch))


def _is_finite(epoch: Epoch) -> bool:
    values = dict(vars(epoch))
    norms = values.pop("gradients")
    return all(value is None or math.isfinite(value) for value in (*values.values(), *norms.values()))


def answers(score: Evaluation | None) -> np.ndarray | None:
    """Return the predicted classes, uint8 of shape (test rows,); None if they cannot be read."""
    return readable(predictions.predicted, score)


def _predicted(score: Evaluation | None) -> Column | None:
    return readable(lambda score: Column(map(predictions.predicted, members.of(score)), np.uint8), score)


def _confidence(score: Evaluation) -> Iterator[np.ndarray]:
    for predicted, probability in probabilities.blocks(score):
        yield probability[np.arange(len(predicted)), predicted]


def _right(labels: Column | None, predicted: Column | None) -> Column | None:
    blocks = together(labels, predicted)
    return None if blocks is None else Column((true == found for true, found in blocks), np.bool_)


def _mistakes(score: Evaluation) -> dict[int, np.ndarray]:
    rows, first, found = [mistake.row for mistake in score.mistakes], 0, dict[int, np.ndarray]()
    for _, probability in probabilities.blocks(score) if rows else ():
        here = (row for row in rows if first <= row < first + len(probability))
        found |= {row: probability[row - first].copy() for row in here}
        first += len(probability)
    return found


def _labels(run: RunRecord, split: Split) -> Labels:
    checks = run.validation.checks if run.validation else ()
    named = {row for check in checks if check.table == split.name for row in check.rows}
    return Labels.of((split_rows.labels(part) for part in split_rows.parts(split)), named)


def _blocks(split: Split, read: Callable[[Any], T]) -> T | None:
    return readable(lambda split: read(split_rows.blocks(split)), split)


def _measures(run: RunRecord) -> Measures | None:
    if not run.test or not run.evaluation:
        return None
    ink, slant = _ink(run, run.test), _blocks(run.test, partial(measures.measured, "slant"))
    return None if ink is None or slant is None else Measures(ink, slant)


def _ink(run: RunRecord, split: Split) -> Column | None:
    """Return the mean pixel of each image of a split, as measured by validation or, failing that, now."""
    stored = readable(lambda found: Column(_of_summary(found, split.name, "mean"), np.float64), run.validation)
    if stored is not None and stored.rows == split.rows:
        return stored
    return _blocks(split, partial(measures.measured, "ink"))


def _means(run: RunRecord) -> Mapping[int, np.ndarray]:
    """Return the mean training image of each class with images, as measured by validation or, failing that, now."""
    train, validation = run.train, run.validation
    if train is None:
        return {}
    stored = readable(lambda found: _stored_means(found, train), validation)
    return stored or _blocks(train, lambda blocks: measures.class_means(blocks, train.classes)) or {}


def _stored_means(validation: Validation, train: Split) -> dict[int, np.ndarray]:
    # Entries of earlier versions have none.
    if not validation.means.exists():
        return {}
    labels = [label for label, rows in enumerate(validation.class_counts["train"]) if rows]
    expected: arrays.Expected = {"mean": (np.float64, (len(labels), *train.image_shape))}
    return dict(zip(labels, arrays.read(regular(validation.means), expected)["mean"], strict=True))


def _set_aside(run: RunRecord) -> tuple[tuple[SetAside, bytes], ...]:
    return readable(_first_set_aside, run.quarantine) or ()


def _first_set_aside(quarantine: Quarantine) -> tuple[tuple[SetAside, bytes], ...]:
    return tuple(islice(quarantined.read(regular(quarantine.file)), MAX_SET_ASIDE))


def _some(kind: type[Suspects | NearDuplicates], file: Path, count: int, first: int = 0) -> list[dict[str, Any]]:
    """Return `count` rows of a table of an audit from row `first` on, or as many as there are."""
    with pq.ParquetFile(regular(file), page_checksum_verification=True) as table:
        rows = (row for batch in table.iter_batches(1024, use_threads=False) for row in batch.to_pylist())
        chosen = [
            {name: of_kind(row[name]).item() for name, of_kind in kind.KINDS.items()}
            for row in islice(rows, first, first + count)
        ]
    if not all(math.isfinite(value) for row in chosen for value in row.values()):
        raise ValueError(f"{file}: expected finite numbers")
    return chosen


def _leaked(run: RunRecord) -> Column | None:
    validation = run.validation
    # A check names rows even if its limit allows them.
    if not validation or not any(check.column == "leaked" and check.rows for check in validation.checks):
        return None
    return readable(lambda found: Column(_of_summary(found, "test", "leaked"), np.bool_), validation)


def _of_summary(validation: Validation, split: str, column: str) -> Iterator[np.ndarray]:
    """Yield a column of the table that was checked for the rows of each part of a split, shape (rows of the part,)."""
    tables = (part.table for part in measuring.of(validation, split)) if validation.parts else (validation.summary,)
    return (image_table.column(regular(table), split, column) for table in tables)


def _sides(run: RunRecord) -> Sides | None:
    train, model = run.train, run.model
    if not train or not model:
        return None
    if train.parts:
        return readable(lambda found: sides.read(regular(found.sides)), run.normalization)
    held = readable(lambda found: _chosen(found, train, model.validation_rows), run.normalization)
    labels = readable(lambda split: split_rows.labels(split), train)
    if held is None or labels is None or len(labels) != len(held):
        return None
    ink = _ink(run, train)
    brightness = None if ink is None else np.concatenate([numbers.astype(np.float32) for numbers in ink.blocks()])
    return sides.of_rows(labels, held, brightness)


def _chosen(normalization: Normalization, train: Split, validation_rows: int) -> np.ndarray:
    # Entries of earlier versions have no choice: they held out the last rows.
    if not normalization.held_out.exists():
        return holdout.tail(train.rows, validation_rows)
    return holdout.read(regular(normalization.held_out), train.rows)
