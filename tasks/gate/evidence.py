"""Compare the answers of a candidate and of the champion, as they are stored, on the same test rows."""

from __future__ import annotations

import numpy as np

from storage.datasets.catalog import Dataset
from storage.errors import DamagedEntry
from storage.formats import members, predictions, split_rows
from storage.records import Paired
from tasks.gate import criteria
from tasks.gate.judging import Candidate, Evidence, Incumbent


def gather(dataset: Dataset, candidate: Candidate, champion: Incumbent | None) -> Evidence:
    """Return what the rules of `dataset` look at, read from the answers of both models.

    Raises:
        DamagedEntry: the labels or a model's answers cannot be read.
    """
    return Evidence(compare(dataset, candidate, champion))


def compare(dataset: Dataset, candidate: Candidate, champion: Incumbent | None) -> Paired | None:
    """Compare the answers of both models on the test rows; return None without a champion to compare with.

    Raises:
        DamagedEntry: the labels or a model's answers cannot be read.
    """
    if champion is None or champion.score is None:
        return None
    table, differing = np.zeros(4, np.int64), 0
    of_parts = (
        split_rows.parts(candidate.test),
        members.of(candidate.evaluation),
        members.of(champion.score),
    )
    for part, *scores in zip(*of_parts, strict=True):
        labels, (ours, theirs) = split_rows.labels(part), map(predictions.predicted, scores)
        if not len(labels) == len(ours) == len(theirs):
            raise DamagedEntry(
                f"{part.source}: expected a label for each of the {len(ours):,} predictions of the candidate and "
                f"the {len(theirs):,} of the champion; found {len(labels):,}; run again to score both"
            )
        here, differing_here = criteria.counted(labels, ours, theirs)
        table, differing = table + here, differing + differing_here
    both, only_ours, only_theirs, neither = table.tolist()
    return criteria.compared((both, only_ours, only_theirs, neither), differing, dataset.gate.alpha)
