"""Score a trained model on every row of the test split."""

from __future__ import annotations

import logging
from dataclasses import replace

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import Dataset
from storage.errors import DamagedEntry, made_again
from storage.files import sha256_of
from storage.records import Done, Evaluation, Split, TrainedModel
from storage.runtime import code_digests
from storage.store import Plan, Store
from tasks.model.classifier import libraries_of
from tasks.scoring.scores import evaluate_into, in_parts
from tasks.ui import summaries
from tasks.ui.steps import log_step

_log = logging.getLogger(__name__)


@task(task_run_name="evaluate-{whose}", cache_policy=NO_CACHE)
def evaluate(
    store: Store, dataset: Dataset, model: TrainedModel, test: Split, whose: str = "candidate"
) -> Done[Evaluation]:
    """Score `model` on all rows of `test`, or find an earlier score. `whose` only names the step.

    Raises:
        ConfigError: the model is for other classes or another image size.
        DataRefused: a label is not a class of the data set.
        DamagedEntry: a file of the model is not what its record says.
    """
    plan = Plan(
        dataset.name,
        "evaluate",
        inputs={
            "weights": model.weights_digest,
            "architecture": _digest(model, "architecture.json"),
            "normalization": _digest(model, "normalization.npz"),
            "test": test.digest,
        },
        parameters={"classes": list(dataset.classes)},
        code=code_digests.digests(__name__),
        libraries=code_digests.library_versions("numpy", "scipy", *libraries_of(model)),
    )
    if test.parts:
        result = in_parts(store, plan, dataset, model, test)
    else:
        result = store.get_or_make(
            plan, Evaluation, lambda folder: evaluate_into(folder, dataset, model, test), summaries.evaluation
        )
    if whose != "candidate":
        result = replace(result, step=replace(result.step, of=whose))
    log_step(_log, result.step)
    return result


def _digest(model: TrainedModel, name: str) -> str:
    try:
        return model.entry.sha256(name) or sha256_of(model.entry.path(name))
    except OSError as error:
        file = model.entry.path(name)
        raise DamagedEntry(
            f"{file}: expected a file of a trained model; {error.strerror}; {made_again(file)}"
        ) from error
