"""Measure the training pixels: the mean of each, and one standard deviation over all."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import parquet, source
from storage.ahead import ahead
from storage.catalog import Dataset
from storage.errors import DataRefused, TrainingFailed
from storage.records import Done, Normalization, Split
from storage.store import Plan, Store
from tasks.config import TrainingConfig
from tasks.scaling import Statistics, write
from tasks.steps import log_step

_log = logging.getLogger(__name__)


@task(task_run_name="normalize", cache_policy=NO_CACHE)
def normalize(store: Store, dataset: Dataset, train: Split, config: TrainingConfig) -> Done[Normalization]:
    """Compute the statistics of the training rows that `config` says, or find them computed.

    Raises:
        TrainingFailed: there is no row to fit, or all pixels have one value.
    """
    fitted = fitted_rows(dataset, train, config)
    rows = fitted if config.normalize_on == "fitted" else train.rows
    plan = Plan(
        dataset.name,
        "normalize",
        inputs={"train": train.digest},
        parameters={"rows": rows},
        code=source.digests(__name__),
    )
    done = store.once(plan, Normalization, lambda folder: _write(dataset, train, rows, folder), _line)
    log_step(_log, done.step)
    return done


def fitted_rows(dataset: Dataset, train: Split, config: TrainingConfig) -> int:
    """Return how many rows of `train`, from the first on, the weights are fitted to: at least 1.

    Raises:
        TrainingFailed: the configuration leaves none, or none to watch where it has patience.
    """
    fitted = config.fitted_rows(train.rows)
    if fitted < 1:
        raise TrainingFailed(
            f"{dataset.name}: expected at least 1 row to fit weights to; {train.rows:,} training rows with a "
            f"validation_fraction of {config.validation_fraction:g} leave 0; lower validation_fraction or add rows"
        )
    if config.patience is not None and fitted == train.rows:
        raise TrainingFailed(
            f"{dataset.name}: expected held-out rows, because patience is {config.patience}; {train.rows:,} training "
            f"rows with a validation_fraction of {config.validation_fraction:g} hold out 0; raise validation_fraction"
        )
    return fitted


def check_labels(dataset: Dataset, split: Split, labels: np.ndarray) -> None:
    """Make sure that every label is a class.

    Raises:
        DataRefused: one is not.
    """
    if labels.max() >= len(dataset.classes):
        raise DataRefused(
            f"{dataset.name}: expected labels from 0 to {len(dataset.classes) - 1}; row {labels.argmax()} of the "
            f"{split.name} split is {labels.max()}; correct the labels or the classes of the manifest"
        )


def statistics(train: Split, rows: int) -> Statistics:
    """Return mean and standard deviation of the first `rows` rows, scaled as `((x / 255) - 0.5) * 2`, and their range.

    The sums are exact, in whole numbers, so the result depends on no order and no block size. The standard
    deviation is over all pixels of all rows around their one mean, as `numpy.std` of the whole array.
    """
    sums = np.zeros(math.prod(train.image_shape), np.int64)
    squares, missing = 0, rows
    darkest, brightest = 255, 0
    for images, _ in ahead(parquet.blocks(train.file)):
        pixels = images[:missing].reshape(-1, len(sums))
        sums += pixels.sum(axis=0, dtype=np.int64)
        # 255 squared still fits 16 bits.
        squares += int(np.square(pixels, dtype=np.uint16).sum(dtype=np.int64))
        darkest, brightest = min(darkest, int(pixels.min())), max(brightest, int(pixels.max()))
        missing -= len(pixels)
        if not missing:
            break
    count, total = rows * len(sums), int(sums.sum())
    # Python divides whole numbers of any size to the nearest float64.
    variance = (count * squares - total * total) / (count * count)
    return Statistics(2 * sums / (255 * rows) - 1, 2 / 255 * math.sqrt(variance), (darkest, brightest))


def _write(dataset: Dataset, train: Split, rows: int, folder: Path) -> Normalization:
    found = statistics(train, rows)
    if found.std == 0:
        raise TrainingFailed(
            f"{dataset.name}: expected pixels that differ; all pixels of the first {rows:,} training rows are "
            f"{round((found.mean[0] + 1) / 2 * 255)}, and nothing can be learned from them; check the image archive"
        )
    record = Normalization(folder, rows, float(found.mean.mean()), found.std, "")
    record.file.unlink(missing_ok=True)
    return Normalization(folder, rows, record.mean_of_means, found.std, write(record.file, found), found.pixel_range)


def _line(record: Normalization) -> str:
    return f"mean {record.mean_of_means:.4f}, standard deviation {record.std:.4f} over {record.rows:,} rows"
