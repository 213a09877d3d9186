"""Turn archives of images and of labels into a split: one Parquet file, or a part for each million rows.

An archive of images and that of its labels are a pair. A split of several pairs consists of the parts of all, in the
order of the manifest.
"""

from __future__ import annotations

import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import Dataset
from storage.records import Archive, Done, Split, SplitName
from storage.store import Store
from tasks.decoding import pairs
from tasks.ui.steps import log_step

_log = logging.getLogger(__name__)


@task(task_run_name="decode-{name}", cache_policy=NO_CACHE)
def decode(store: Store, dataset: Dataset, name: SplitName, images: Archive, labels: Archive) -> Done[Split]:
    """Decode one split of `dataset` from its archives, or find it already decoded.

    Args:
        images: all archives of the images of the split.
        labels: all archives of their labels.

    Raises:
        FormatError: an archive is not a complete IDX file of the declared type, shape and number of rows.
    """
    if images.parts:
        result = pairs.of_several(store, dataset, name, images, labels)
    else:
        result = pairs.of_one(pairs.Pair(store, dataset, name, images, labels))
    log_step(_log, result.step)
    return result
