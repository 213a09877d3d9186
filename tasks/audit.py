"""Find training rows whose label is likely wrong, and test images that are almost in the training split.

Nothing is removed: the tables are for people, who look at the images and correct what is wrong.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import Dataset
from storage.datasets.training import TrainingConfig
from storage.files import canonical
from storage.records import Audit, Done, FolderEntry, Split
from storage.runtime import code_digests
from storage.store import Plan, Store
from tasks.auditing import confident, near_duplicates
from tasks.auditing.cross_validation import all_rows_fit, cross_validated, recipe
from tasks.auditing.folds import FOLDS, SEED
from tasks.auditing.survey import surveyed
from tasks.ui import summaries
from tasks.ui.audit_display import AuditDisplay
from tasks.ui.steps import log_step

_log = logging.getLogger(__name__)


@task(task_run_name="audit", cache_policy=NO_CACHE)
def audit(store: Store, dataset: Dataset, train: Split, test: Split, memory: str = "512MiB") -> Done[Audit]:
    """Look for wrong labels in `train` and for its images in `test`, or find that done.

    Args:
        memory: budget for pixels while networks are fitted, as for a training.

    Raises:
        DamagedEntry: a split cannot be read.
    """
    config = recipe(train.rows, memory)
    plan = Plan(
        dataset.name,
        "audit",
        inputs={"train": train.digest, "test": test.digest},
        parameters={
            "classes": len(dataset.classes),
            "recipe": config.model_dump(mode="json", exclude={"memory"}),
            # In shards, the rows come in another order.
            **({} if all_rows_fit(dataset.name, train, config) else {"memory": config.memory_bytes}),
        },
        code=code_digests.digests(__name__),
        libraries=code_digests.library_versions("tensorflow", "keras", "numpy"),
    )
    result = store.get_or_make(
        plan, Audit, lambda folder: audit_into(folder, dataset, (train, test), config), summaries.audit
    )
    log_step(_log, result.step)
    return result


def audit_into(folder: Path, dataset: Dataset, splits: tuple[Split, Split], config: TrainingConfig) -> Audit:
    """Write `suspects.parquet` and `near_duplicates.parquet` into `folder`, and return their record.

    Raises:
        DamagedEntry: see `audit`.
        Cancelled: the run is being ended.
    """
    for left in folder.iterdir():
        left.unlink()
    train, test = splits
    classes = len(dataset.classes)
    display = AuditDisplay(dataset.name)
    survey = surveyed(train, folder)
    validation = cross_validated(dataset.name, survey, classes, config, folder, display.fitted)
    limits = confident.thresholds(validation.judgements(), classes)
    suspects = confident.suspects(validation.judgements(), limits)
    if survey.split is not train:
        survey.split.file.unlink()
    search = near_duplicates.search(train, test, survey.digests, display.compared)
    equal = int((search.found.distance == 0).sum())
    record = Audit(
        FolderEntry(folder),
        "",
        rows=validation.rows,
        left_out=train.rows - validation.rows,
        suspect_rows=len(suspects),
        flagged_rows=int(suspects.flagged.sum()),
        test_rows=test.rows,
        compared_rows=search.compared,
        equal_rows=equal,
        near_rows=len(search.found) - equal,
        near=near_duplicates.NEAR,
        folds=FOLDS,
        seed=SEED,
    )
    digests = [suspects.write(record.suspects), search.found.write(record.near_duplicates)]
    return dataclasses.replace(record, digest=hashlib.sha256(canonical(digests)).hexdigest())
