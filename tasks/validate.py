"""Check both splits against the contract of their data set, and stop the run before training if they break it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Collection, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task
from prefect.cache_policies import NO_CACHE
from threadpoolctl import threadpool_limits

from expectations import run_suites, suites, summary
from storage.datasets.catalog import Dataset
from storage.errors import ValidationFailed
from storage.files import canonical
from storage.formats import arrays, parquet, split_rows
from storage.records import Check, Done, FolderEntry, Split, SplitName, Validation, to_json
from storage.runtime import code_digests
from storage.store import Plan, Store
from tasks.ui import artifacts, progress, summaries, verdicts
from tasks.ui.steps import log_step

PART_ROWS = 1 << 18
"""Rows passed to Great Expectations at a time, 25 MB of numbers: common data sets fit in one part."""

_COLUMNS = pa.schema({"split": pa.string()} | {n: pa.from_numpy_dtype(t) for n, t in summary.IMAGE_COLUMNS.items()})

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

    def make(folder: Path) -> Validation:
        with progress.working("validate"):
            return judge(dataset, train, test, folder)

    result = store.get_or_make(
        plan, Validation, make, lambda verdict: summaries.validation(verdict, train.rows + test.rows)
    )
    log_step(_log, result.step)
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
    validation = Validation(FolderEntry(folder), True, "", (), {})
    checks: list[Check] = []
    counts: dict[str, tuple[int, ...]] = {}
    # The matrix products are small: on a busy machine, BLAS threads would mostly wait for each other.
    with (
        threadpool_limits(1, "blas"),
        pq.ParquetWriter(validation.summary, _COLUMNS, compression="zstd", write_page_checksum=True) as writer,
    ):
        surveys = {split.name: summary.survey(split_rows.blocks(split), split.classes) for split in (train, test)}
        rows = {name: len(survey.labels) for name, survey in surveys.items()}
        arrays.write(validation.means, {"mean": surveys["train"].exact_means.reshape(-1, *train.image_shape)})
        checks += run_suites.run(suites.archives(dataset), [summary.archive_table(dataset, (train, test), rows)])
        for split in (train, test):
            labels, of_train = surveys[split.name].labels, None if split is train else surveys["train"]
            parts = summary.images(split_rows.blocks(split), surveys[split.name], of_train, PART_ROWS)
            classes = summary.class_table(labels, len(dataset.classes))
            matches, pixels = summary.Matches(), summary.PixelRange()
            written = _written(writer, split.name, parts, (matches, pixels))
            checks += run_suites.run(suites.images(dataset, split.name), written)
            checks += run_suites.run(suites.match(dataset, split.name), [summary.match_table(matches)])
            if dataset.ink:
                ground = summary.ground_table(surveys[split.name], split.image_shape, pixels)
                checks += run_suites.run(suites.ground(dataset.ink, split.name), [ground])
            checks += run_suites.run(suites.classes(dataset, split.name), [classes])
            counts[split.name] = tuple(classes["rows"].tolist())
    return dataclasses.replace(
        validation,
        passed=all(c.passed or c.severity != "critical" for c in checks),
        digest=hashlib.sha256(canonical([train.digest, test.digest, to_json(checks), counts])).hexdigest(),
        checks=tuple(checks),
        class_counts=counts,
    )


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
        "payload_sha256": {spec.role: spec.payload_sha256 for spec in dataset.archives},
        **dataclasses.asdict(dataset.limits),
        "min_centroid_hit": dataset.limits.least_centroid_hit(len(dataset.classes)),
        "known_centroid_hit": dataset.limits.min_centroid_hit is not None,
        "min_class_share": dataset.limits.least_class_share(len(dataset.classes)),
        **({"ink": dataset.ink} if dataset.ink else {}),
    }


def _written(
    writer: pq.ParquetWriter,
    name: SplitName,
    parts: Iterable[summary.Table],
    counters: Collection[summary.Matches | summary.PixelRange],
) -> Iterator[summary.Table]:
    """Write and count each part of a table, then yield it."""
    for part in parts:
        for counter in counters:
            counter.add(part)
        numbers = [parquet.column_of(part[column].astype(kind)) for column, kind in summary.IMAGE_COLUMNS.items()]
        columns = [parquet.column_of_text(name, len(part["index"])), *numbers]
        writer.write_table(pa.Table.from_arrays(columns, schema=_COLUMNS))
        yield part
