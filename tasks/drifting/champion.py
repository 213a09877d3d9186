"""What new images are compared with: the training images of a champion, and its answers for test images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from storage.errors import ConfigError
from storage.formats import predictions, split_rows
from storage.outcomes import steps_of
from storage.records import Evaluation, RunRecord, Split, to_json
from storage.registry import Registry, Version
from tasks.drifting.compare import Answers, Reference, reference
from tasks.drifting.sample import MAX_ROWS, Sample, draw
from tasks.report.past_runs import run_record
from tasks.ui.progress import Progress, advance

_NEEDED = ("decode", "quarantine")


def trained_on(registry: Registry, version: Version) -> tuple[RunRecord, Split]:
    """Return the training split of a version, with what is known of its run.

    Raises:
        ConfigError: the store has it no more.
        DamagedEntry: the ledger cannot be read.
    """
    values = registry.ledger.find("runs", version.run) or {}
    # The test split is not needed, nor what was made of the training split.
    steps = [to_json(step) for step in steps_of(values) if step.step in _NEEDED and step.subject != "test"]
    record = run_record(registry.store, {**values, "steps": steps})
    if record.train is None:
        raise ConfigError(
            f"expected the training data of v{version.number} of {registry.dataset} in the store; found that it was "
            "removed or cannot be read; run the data set again, so that the next champion has it"
        )
    return record, record.train


def reference_of(version: Version, train: Split, evaluation: Evaluation | None) -> Reference:
    """Return what new images are compared with: a sample of a training split, and the answers for a test split.

    Args:
        version: a version of the registry.
        train: what it was trained on.
        evaluation: of the version; None: its answers are not to be compared.

    Raises:
        DamagedEntry: the split or the evaluation cannot be read.
    """
    answers = Answers(predictions.predicted(evaluation), predictions.confidence(evaluation)) if evaluation else None
    return reference(sample_of(train), len(version.classes), answers)


def sample_of(split: Split, most: int = MAX_ROWS) -> Sample:
    """Return a sample of a split.

    Raises:
        DamagedEntry: it cannot be read.
    """
    return draw(_blocks(split), most)


def _blocks(split: Split) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    done = 0
    for images, labels in split_rows.blocks(split):
        yield images, labels.astype(np.int64)
        done += len(images)
        advance(Progress("read the champion's training images", done, split.rows, "images"))
