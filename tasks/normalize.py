"""Choose the held-out rows, and compute the mean of each training pixel and one standard deviation over all."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import Dataset
from storage.datasets.training import TrainingConfig
from storage.errors import TrainingFailed
from storage.formats import members, split_rows
from storage.records import Done, FolderEntry, Normalization, Split
from storage.runtime import code_digests
from storage.runtime.prefetch import prefetch
from storage.store import Plan, Store
from tasks.model import holdout, part_sums, pixel_sums, sides
from tasks.model.pixel_sums import PixelSums
from tasks.model.scaling import Statistics, write
from tasks.ui import summaries
from tasks.ui.steps import log_step, with_new

_log = logging.getLogger(__name__)


@task(task_run_name="normalize", cache_policy=NO_CACHE)
def normalize(store: Store, dataset: Dataset, train: Split, config: TrainingConfig) -> Done[Normalization]:
    """Choose the held-out rows and compute the statistics of the rows that `config` selects, or find both done.

    Raises:
        TrainingFailed: no row is left to fit, to hold out or of some class, or all pixels have the same value.
    """
    parameters: dict[str, Any] = {
        "normalize_on": config.normalize_on,
        "validation_fraction": config.validation_fraction,
    }
    if config.validation_fraction:
        parameters["held_out"] = config.held_out
        if config.held_out == "stratified":
            parameters["seed"] = config.seed
    plan = Plan(
        dataset.name,
        "normalize",
        inputs={"train": train.digest},
        parameters=parameters,
        code=code_digests.digests(__name__),
    )
    result = (
        _in_parts(store, plan, dataset, train, config) if train.parts else _in_one(store, plan, dataset, train, config)
    )
    log_step(_log, result.step)
    return result


def statistics(train: Split, left_out: np.ndarray | None = None) -> Statistics:
    """Return mean and standard deviation of the rows, scaled as `((x / 255) - 0.5) * 2`, and their range.

    The sums are exact integers, so the result does not depend on the order of rows or the block size.

    Args:
        left_out: rows to ignore, bool of shape (rows,); None uses all rows.
    """
    return pixel_sums.total(_sums(train, left_out), math.prod(train.image_shape)).statistics()


def _sums(train: Split, left_out: np.ndarray | None) -> Iterator[PixelSums]:
    start = 0
    for images, _ in prefetch(split_rows.blocks(train)):
        pixels = images.reshape(len(images), -1)
        yield PixelSums.of(pixels if left_out is None else pixels[~left_out[start : start + len(images)]])
        start += len(images)


def _in_one(store: Store, plan: Plan, dataset: Dataset, train: Split, config: TrainingConfig) -> Done[Normalization]:
    def make(folder: Path) -> Normalization:
        held = holdout.choose(dataset, train, config)
        held_out_rows = int(held.sum())
        leaves_out = held_out_rows and config.normalize_on == "fitted"
        rows = train.rows - (held_out_rows if leaves_out else 0)
        record = _record(dataset, folder, rows, held_out_rows, statistics(train, held if leaves_out else None))
        holdout.write(record.held_out, held)
        return record

    return store.get_or_make(plan, Normalization, make, summaries.normalization)


def _in_parts(store: Store, plan: Plan, dataset: Dataset, train: Split, config: TrainingConfig) -> Done[Normalization]:
    started, plan = time.perf_counter(), store.explained(plan)
    found = part_sums.of_parts(store, dataset, train, config)

    def make(folder: Path) -> Normalization:
        holdout.check(dataset, config, *found.labels)
        held_out_rows = int(found.labels[1].sum())
        record = _record(dataset, folder, found.pixels.rows, held_out_rows, found.pixels.statistics(), train.parts)
        sides.write(record.sides, found.labels, found.brightness, math.prod(train.image_shape))
        members.write(folder, found.records)
        return record

    result = store.get_or_make(plan, Normalization, make, summaries.normalization)
    return with_new(result, train.parts, found.new, time.perf_counter() - started)


def _record(
    dataset: Dataset, folder: Path, rows: int, held_out_rows: int, measured: Statistics, parts: int = 0
) -> Normalization:
    """Write the statistics of `rows` rows into an empty folder, and return their record."""
    if measured.std == 0:
        raise TrainingFailed(
            f"{dataset.name}: expected pixels that differ; all pixels of the {rows:,} training rows that count are "
            f"{round((measured.mean[0] + 1) / 2 * 255)}, and nothing can be learned from them; check the image archive"
        )
    for file in folder.iterdir():
        file.unlink()
    mean = float(measured.mean.mean())
    record = Normalization(
        FolderEntry(folder), rows, mean, measured.std, "", measured.pixel_range, held_out_rows, parts
    )
    return dataclasses.replace(record, digest=write(record.file, measured))
