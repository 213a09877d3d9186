"""Check that a fresh process can load the saved model and predict: a published model must work without its trainer."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import Dataset
from storage.errors import ModelRefused
from storage.formats import arrays, predictions, split_rows
from storage.records import Confirmation, Done, Evaluation, FolderEntry, Split, TrainedModel
from storage.runtime import code_digests
from storage.store import Plan, Store
from tasks.model import confirm_worker
from tasks.model.classifier import libraries_of
from tasks.ui import progress, summaries
from tasks.ui.steps import log_step

TOLERANCE = 1e-5
"""Largest difference in a probability that counts as rounding; both processes do the same arithmetic."""
TIMEOUT_SECONDS = 600
ROWS = 64
"""The most rows to predict again."""
PARTS = 8
"""The most parts of a split in which these are."""

_log = logging.getLogger(__name__)


@task(task_run_name="confirm", cache_policy=NO_CACHE)
def confirm(
    store: Store, dataset: Dataset, model: TrainedModel, test: Split, evaluation: Evaluation
) -> Done[Confirmation]:
    """Compare a fresh process's predictions with those behind `evaluation`, or find the earlier comparison.

    Raises:
        ModelRefused: the process cannot load the model, or its predictions differ.
    """
    plan = Plan(
        dataset.name,
        "confirm",
        inputs={"weights": model.weights_digest, "evaluation": evaluation.entry.key},
        parameters={"rows": ROWS},
        code=code_digests.digests(__name__),
        libraries=code_digests.library_versions("numpy", "scipy", *libraries_of(model)),
    )

    def make(folder: Path) -> Confirmation:
        with progress.working("confirm"):
            return confirm_into(folder, dataset, model, test, evaluation)

    result = store.get_or_make(plan, Confirmation, make, summaries.confirmation)
    log_step(_log, result.step)
    return result


def confirm_into(
    folder: Path, dataset: Dataset, model: TrainedModel, test: Split, evaluation: Evaluation
) -> Confirmation:
    """Write the fresh process's probabilities to `<folder>/probability.npz` and compare them.

    Raises:
        ModelRefused: see `confirm`.
    """
    images, output = folder / "images.npz", folder / "probability.npz"
    output.unlink(missing_ok=True)
    rows, classes = sample_rows([part.rows for part in split_rows.parts(test)]), len(dataset.classes)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", confirm_worker.__name__, str(images), str(output)],
            input=confirm_worker.request(model, images, split_rows.images(test, rows)),
            cwd=code_digests.ROOT,
            env=_without_secrets(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(dataset, f"it had not ended after {TIMEOUT_SECONDS} seconds") from error
    if ended.returncode:
        stderr_lines = ended.stderr.strip().splitlines()
        raise _refused(dataset, stderr_lines[-1] if stderr_lines else f"it ended with code {ended.returncode}")
    images.unlink()
    answered = arrays.read(output, {"probability": (np.float32, (len(rows), classes))})["probability"]
    own = predictions.probability(evaluation, rows)
    difference = float(np.abs(answered - own).max())
    if not difference <= TOLERANCE:
        raise _refused(dataset, f"its probabilities differ by up to {difference:g}, allowed is {TOLERANCE:g}")
    return Confirmation(FolderEntry(folder), len(rows), difference)


def sample_rows(sizes: Sequence[int]) -> list[int]:
    """Return the numbers of the rows to predict again: at most `ROWS`, evenly spaced over the split.

    They are in few of its parts, because the probabilities of a part are in one file, which may have to be fetched.

    Args:
        sizes: the rows of each part.
    """
    firsts, few = [0, *accumulate(sizes)], _spaced(len(sizes), PARTS)
    return [firsts[part] + row for part in few for row in _spaced(sizes[part], ROWS // len(few))]


def _spaced(count: int, most: int) -> list[int]:
    numbers: list[int] = np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist()
    return numbers


def _without_secrets() -> dict[str, str]:
    """Return this process's environment without the variables that give access to a Prefect server or its database."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PG"))}


def _refused(dataset: Dataset, problem: str) -> ModelRefused:
    return ModelRefused(
        f"{dataset.name}: expected a fresh process to load the saved model and predict what its trainer does; "
        f"{problem}; the champion stays, train again"
    )
