"""Check both splits against the contract of their data set, and stop the run before training if they break it.

Splits in one file each are checked here. If one of them is in parts, each part is surveyed, all parts are compared, and
each part is measured and checked, by the workers of the run (`tasks.checking`); what was found is put together here.
Both ways give the same checks, the same digest and the same table of images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from threadpoolctl import threadpool_limits

from expectations import run_suites, suites, summary
from storage.datasets.catalog import ROLES, Dataset
from storage.errors import ValidationFailed
from storage.files import canonical
from storage.formats import arrays, members, split_rows
from storage.records import Check, Done, FolderEntry, Split, Validation, to_json
from storage.runtime import code_digests
from storage.store import Plan, Store
from tasks.checking import comparing, image_table, measuring
from tasks.checking.comparing import Compared
from tasks.checking.measuring import Measured
from tasks.ui import artifacts, progress, summaries, verdicts
from tasks.ui.steps import log_step, with_new

_log = logging.getLogger(__name__)


@task(task_run_name="validate", cache_policy=NO_CACHE)
def validate(store: Store, dataset: Dataset, train: Split, test: Split) -> Done[Validation]:
    """Check both splits of `dataset`, or find their earlier verdict.

    Every verdict is stored, so the same bad data is refused again at once, and shown as a table artifact before a
    failure is raised.

    Raises:
        ValidationFailed: a critical expectation is not met; carries the verdict and the step.
        IdxflowError: an expectation could not be evaluated; nothing is stored.
    """
    plan = Plan(
        dataset.name,
        "validate",
        inputs={"train": train.digest, "test": test.digest},
        parameters=_contract(dataset),
        code=code_digests.digests(__name__),
        libraries={"great-expectations": version("great-expectations")},
    )
    if train.parts or test.parts:
        result = _validate_parts(store, dataset, (train, test), plan)
    else:

        def make(folder: Path) -> Validation:
            with progress.working("validate"):
                return judge(dataset, train, test, folder)

        result = store.get_or_make(plan, Validation, make, _describe((train, test)))
    log_step(_log, result.step)
    for warning in verdicts.warnings(dataset, result.record, (train, test)):
        _log.warning("%s", warning)
    artifacts.show_table(
        artifacts.key("checks", dataset.name), verdicts.table_rows(result.record, (train, test)), result.step.summary
    )
    if not result.record.passed:
        raise ValidationFailed(verdicts.refusal(dataset, result.record, (train, test)), result.record, result.step)
    return result


def judge(dataset: Dataset, train: Split, test: Split, folder: Path) -> Validation:
    """Evaluate every suite of `dataset`, and write the data they were evaluated on into `folder`.

    `summary.parquet` has a row per image, with a column `split` followed by those of `summary.IMAGE_COLUMNS`.
    `means.npz` has the mean training images, by ascending label.
    """
    dataset = _without_set_aside(dataset, (train, test))
    tallies: dict[str, _Tallies] = {split.name: _Tallies() for split in (train, test)}
    # The matrix products are small: on a busy machine, BLAS threads would mostly wait for each other.
    with threadpool_limits(1, "blas"), image_table.writer(folder / image_table.FILE) as writer:
        surveys = {split.name: summary.survey(split_rows.blocks(split), split.classes) for split in (train, test)}
        rows = {name: len(survey.labels) for name, survey in surveys.items()}
        checks = [*run_suites.run(suites.archives(dataset), [summary.archive_table(dataset, (train, test), rows)])]
        for split in (train, test):
            of_train, counters = None if split is train else surveys["train"], tallies[split.name]
            parts = summary.images(split_rows.blocks(split), surveys[split.name], of_train, image_table.TABLE_ROWS)
            written = image_table.written(writer, split.name, parts, (counters.matches, counters.pixels))
            look = run_suites.look(suites.images(dataset, split.name), written)
            checks += _checks(dataset, split, [look], surveys[split.name].means, counters)
    return _verdict(folder, (train, test), surveys["train"].means, checks, tallies)


def _validate_parts(store: Store, dataset: Dataset, splits: tuple[Split, Split], plan: Plan) -> Done[Validation]:
    """Do the same part by part. Each part is looked up even if the verdict is there: a damaged one is made again."""
    started, plan = time.perf_counter(), store.explained(plan)
    dataset = _without_set_aside(dataset, splits)
    with progress.working("validate"):
        compared = comparing.compare(store, dataset.name, splits)
        done = measuring.measure(store, dataset, splits, compared)
        make = partial(_put_together, dataset, splits, compared, [part.record for part in done])
        result = store.get_or_make(plan, Validation, make, _describe(splits))
    new = sum(not part.step.reused for part in done)
    return with_new(result, len(done), new, time.perf_counter() - started)


def _put_together(
    dataset: Dataset, splits: tuple[Split, Split], compared: Compared, measured: Sequence[Measured], folder: Path
) -> Validation:
    """Put together what was found in the parts, one after the other."""
    tallies: dict[str, _Tallies] = {split.name: _Tallies() for split in splits}
    by_split = {split.name: [part for part in measured if part.name == split.name] for split in splits}
    footers = {split.name: _footer(split, by_split[split.name]) for split in splits}
    rows = {name: sum(part.rows for part in parts) for name, parts in by_split.items()}
    checks = [*run_suites.run(suites.archives(dataset), [summary.archive_table(dataset, splits, rows, footers)])]
    for split in splits:
        looks = _looks(by_split[split.name], suites.images(dataset, split.name), tallies[split.name])
        checks += _checks(dataset, split, looks, compared.of(split.name).means(), tallies[split.name])
        checks += _checks_of_parts(dataset, split, by_split[split.name], tallies[split.name].matches)
    members.write(folder, measured, compared.keys())
    validation = _verdict(folder, splits, compared.train.means(), checks, tallies)
    return dataclasses.replace(validation, parts=len(measured))


def _checks_of_parts(
    dataset: Dataset, split: Split, parts: Sequence[Measured], whole: summary.Matches
) -> Iterator[Check]:
    """Yield what a split in one file cannot be asked: whether each part has the labels of its own images."""
    each = ((part.start, part.matches()) for part in parts)
    table = summary.part_table(each, whole, dataset.limits.max_label_chance)
    yield from run_suites.run(suites.parts(dataset, split.name), [table])


def _looks(parts: Iterable[Measured], suite: suites.Suite, tallies: _Tallies) -> Iterator[run_suites.Look]:
    for part in parts:
        part.count(tallies.matches, tallies.pixels)
        yield part.look(suite)


def _footer(split: Split, measured: Iterable[Measured]) -> Mapping[str, Any]:
    """Return the shape and the digest found in the files of a split: of the first part that is not as recorded."""
    for part, found in zip(split_rows.parts(split), measured, strict=True):
        if found.image_shape != split.image_shape or found.digest != part.digest:
            return {"image_shape": found.image_shape, "digest": found.digest}
    return {"image_shape": split.image_shape, "digest": split.digest}


@dataclass(frozen=True)
class _Tallies:
    """What is counted over the image table of a split."""

    matches: summary.Matches = field(default_factory=summary.Matches)
    pixels: summary.PixelRange = field(default_factory=summary.PixelRange)

    def class_table(self, classes: int) -> summary.Table:
        labels = self.matches.labels
        return summary.class_table_of(labels[:classes], int(labels.sum()))


def _checks(
    dataset: Dataset,
    split: Split,
    looks: Iterable[run_suites.Look],
    means: summary.Centroids,
    tallies: _Tallies,
) -> Iterator[Check]:
    """Yield the results of all suites of a split, from what was found in its image table."""
    yield from run_suites.checks(suites.images(dataset, split.name), looks)
    yield from run_suites.run(suites.match(dataset, split.name), [summary.match_table(tallies.matches)])
    if dataset.ink:
        ground = summary.ground_table(means, split.image_shape, tallies.pixels)
        yield from run_suites.run(suites.ground(dataset.ink, split.name), [ground])
    classes = tallies.class_table(len(dataset.classes))
    yield from run_suites.run(suites.classes(dataset, split.name), [classes])


def _verdict(
    folder: Path,
    splits: Sequence[Split],
    means: summary.Centroids,
    checks: Sequence[Check],
    tallies: Mapping[str, _Tallies],
) -> Validation:
    """Write the mean training images into `folder`, and return the verdict on both splits."""
    validation = Validation(FolderEntry(folder), True, "", (), {})
    train = splits[0]
    arrays.write(validation.means, {"mean": means.exact.reshape(-1, *train.image_shape)})
    counts = {name: tuple(one.class_table(train.classes)["rows"].tolist()) for name, one in tallies.items()}
    of = [split.digest for split in splits]
    return dataclasses.replace(
        validation,
        passed=all(c.passed or c.severity != "critical" for c in checks),
        digest=hashlib.sha256(canonical([*of, to_json(checks), counts])).hexdigest(),
        checks=tuple(checks),
        class_counts=counts,
    )


def _describe(splits: Sequence[Split]) -> Callable[[Validation], str]:
    rows = sum(split.rows for split in splits)
    return lambda verdict: summaries.validation(verdict, rows)


def _without_set_aside(dataset: Dataset, splits: Collection[Split]) -> Dataset:
    """Return `dataset` with the number of rows that it declares less those that were set aside."""
    aside = {split.name: split.set_aside for split in splits}
    return dataclasses.replace(dataset, rows={name: rows - aside[name] for name, rows in dataset.rows.items()})


def _contract(dataset: Dataset) -> dict[str, Any]:
    """Return all settings of the manifest that the suites are built from."""
    return {
        "classes": len(dataset.classes),
        "image_shape": list(dataset.image_shape),
        "rows": dict(dataset.rows),
        "payload_sha256": {role: dataset.payload_sha256(role) for role in ROLES},
        **dataclasses.asdict(dataset.limits),
        "min_centroid_hit": dataset.limits.least_centroid_hit(len(dataset.classes)),
        "known_centroid_hit": dataset.limits.min_centroid_hit is not None,
        "min_class_share": dataset.limits.least_class_share(len(dataset.classes)),
        **({"ink": dataset.ink} if dataset.ink else {}),
    }
