"""Choose the held-out rows, and compute the mean of each training pixel and one standard deviation over all."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import Dataset
from storage.datasets.training import TrainingConfig
from storage.errors import TrainingFailed
from storage.formats import split_rows
from storage.records import Done, FolderEntry, Normalization, Split
from storage.runtime import code_digests
from storage.runtime.prefetch import prefetch
from storage.store import Plan, Store
from tasks.model import holdout
from tasks.model.scaling import Statistics, write
from tasks.ui import summaries
from tasks.ui.steps import log_step

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
    result = store.get_or_make(
        plan, Normalization, lambda folder: _write(dataset, train, config, folder), summaries.normalization
    )
    log_step(_log, result.step)
    return result


def statistics(train: Split, left_out: np.ndarray | None = None) -> Statistics:
    """Return mean and standard deviation of the rows, scaled as `((x / 255) - 0.5) * 2`, and their range.

    The sums are exact integers, so the result does not depend on the order of rows or the block size. The standard
    deviation is over all pixels of all rows around their overall mean, like `numpy.std` of the whole array.

    Args:
        left_out: rows to ignore, bool of shape (rows,); None uses all rows.
    """
    sums = np.zeros(math.prod(train.image_shape), np.int64)
    squares, start, rows = 0, 0, 0
    darkest, brightest = 255, 0
    for images, _ in prefetch(split_rows.blocks(train)):
        pixels = images.reshape(len(images), -1)
        if left_out is not None:
            pixels = pixels[~left_out[start : start + len(images)]]
        sums += pixels.sum(axis=0, dtype=np.int64)
        # 255 squared fits in 16 bits.
        squares += int(np.square(pixels, dtype=np.uint16).sum(dtype=np.int64))
        darkest = min(darkest, int(pixels.min(initial=255)))
        brightest = max(brightest, int(pixels.max(initial=0)))
        start, rows = start + len(images), rows + len(pixels)
    count, total = rows * len(sums), int(sums.sum())
    # Python divides integers of any size and rounds to the nearest float64.
    variance = (count * squares - total * total) / (count * count)
    return Statistics(2 * sums / (255 * rows) - 1, 2 / 255 * math.sqrt(variance), (darkest, brightest))


def _write(dataset: Dataset, train: Split, config: TrainingConfig, folder: Path) -> Normalization:
    held = holdout.choose(dataset, train, config)
    held_out_rows = int(held.sum())
    left_out = held if held_out_rows and config.normalize_on == "fitted" else None
    rows = train.rows - (held_out_rows if left_out is not None else 0)
    measured = statistics(train, left_out)
    if measured.std == 0:
        raise TrainingFailed(
            f"{dataset.name}: expected pixels that differ; all pixels of the {rows:,} training rows that count are "
            f"{round((measured.mean[0] + 1) / 2 * 255)}, and nothing can be learned from them; check the image archive"
        )
    record = Normalization(
        FolderEntry(folder),
        rows,
        float(measured.mean.mean()),
        measured.std,
        "",
        measured.pixel_range,
        held_out_rows,
    )
    for file in (record.file, record.held_out):
        file.unlink(missing_ok=True)
    holdout.write(record.held_out, held)
    return dataclasses.replace(record, digest=write(record.file, measured))
