"""Compare the answers of a candidate and of the champion, as they are stored, on the same test rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from storage.datasets.catalog import Dataset
from storage.datasets.manifest import COLUMN
from storage.errors import DamagedEntry
from storage.formats import members, predictions, split_rows
from storage.records import Paired
from storage.runtime import cancellation
from tasks.gate import criteria, slices
from tasks.gate.judging import Candidate, Evidence, Incumbent
from tasks.slicing import cuts, label_columns, measures
from tasks.slicing.columns import Column
from tasks.slicing.cuts import Cut, Tally
from tasks.slicing.measures import Blocks
from tasks.ui import progress


class _Slice:
    """Counts the rows of the slices of one cut, part by part."""

    def __init__(self, cut: Cut, values: Column | None) -> None:
        self.tally = Tally(cut, slices.KINDS)
        self._values = values
        """Of all test rows; None: their labels."""

    def add(self, start: int, labels: np.ndarray, kinds: np.ndarray) -> None:
        """Count the rows of a part that begins at row `start`."""
        stop = start + len(labels)
        self.tally.add(labels if self._values is None else self._values.between(start, stop), kinds)


def gather(dataset: Dataset, candidate: Candidate, champion: Incumbent | None) -> Evidence:
    """Return what the rules of `dataset` look at, read from the answers of both models.

    Raises:
        ConfigError: the label files have no column that `[slices]` names.
        DamagedEntry: the labels or a model's answers cannot be read.
    """
    if not dataset.slices.by:
        return Evidence(compare(dataset, candidate, champion))
    with progress.working("decide"):
        counters = _slices(dataset, candidate)
        paired = compare(dataset, candidate, champion, counters)
    found = slices.scores(dataset.slices, [counter.tally for counter in counters], paired is not None)
    return Evidence(paired, found)


def compare(
    dataset: Dataset, candidate: Candidate, champion: Incumbent | None, counters: Sequence[_Slice] = ()
) -> Paired | None:
    """Compare the answers of both models on the test rows; return None without a champion to compare with.

    Args:
        counters: of slices, to which the rows are added, also without a champion.

    Raises:
        DamagedEntry: the labels or a model's answers cannot be read.
    """
    is_compared = champion is not None and champion.score is not None
    if not is_compared and not counters:
        return None
    table, differing, start = np.zeros(4, np.int64), 0, 0
    for labels, ours, theirs in _answers(candidate, champion):
        kinds = slices.kinds(labels, ours, theirs) if counters else labels
        for counter in counters:
            counter.add(start, labels, kinds)
        if theirs is not None:
            here, differing_here = criteria.counted(labels, ours, theirs)
            table, differing = table + here, differing + differing_here
        start += len(labels)
    if not is_compared:
        return None
    both, only_ours, only_theirs, neither = table.tolist()
    return criteria.compared((both, only_ours, only_theirs, neither), differing, dataset.gate.alpha)


def _answers(
    candidate: Candidate, champion: Incumbent | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Yield the labels of each part of the test split, and the answers of both models; those of a champion, if any."""
    scores = [candidate.evaluation]
    if champion is not None and champion.score is not None:
        scores.append(champion.score)
    for part, *of_part in zip(split_rows.parts(candidate.test), *map(members.of, scores), strict=True):
        labels, (ours, *theirs) = split_rows.labels(part), map(predictions.predicted, of_part)
        if {len(ours), *map(len, theirs)} != {len(labels)}:
            others = f" and the {len(theirs[0]):,} of the champion" if theirs else ""
            raise DamagedEntry(
                f"{part.source}: expected a label for each of the {len(ours):,} predictions of the candidate{others}; "
                f"found {len(labels):,}; run again to score both"
            )
        yield labels, ours, theirs[0] if theirs else None


def _slices(dataset: Dataset, candidate: Candidate) -> list[_Slice]:
    """Return what counts the slices that the manifest asks for; measures and columns of all rows are read here."""
    found = []
    for by in dataset.slices.by:
        cut, values = _cut(dataset, candidate, by)
        if cut is not None:
            found.append(_Slice(cut, values))
    return found


def _cut(dataset: Dataset, candidate: Candidate, by: str) -> tuple[Cut | None, Column | None]:
    test, parts = candidate.test, dataset.slices.quantiles
    if by == "class":
        return cuts.by_class(dataset.classes), None
    if column := COLUMN.fullmatch(by):
        if candidate.test_labels is None:
            raise ValueError(f"expected the archives of the test labels, of which [slices] names {by}; found none")
        values = label_columns.read(dataset, candidate.test_labels, test, int(column[1]))
        return cuts.by_value(by, values, parts), values
    values = measures.measured(by, _cancellable(split_rows.blocks(test)))
    return cuts.by_quantile(by, values, parts), values


def _cancellable(blocks: Blocks) -> Blocks:
    for block in blocks:
        cancellation.check()
        yield block
