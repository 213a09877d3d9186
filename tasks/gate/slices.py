"""Judge a candidate on slices of the test split: by a floor for each, and by a paired test against the champion.

On each slice, McNemar's exact one-sided test asks whether the champion is better (`criteria.exact_p`). Its p-values are
corrected for the number of slices that are judged (`holm`), so that `[slices] alpha` bounds the chance that a model as
good as the champion fails any of them, however much the slices overlap. Pure: no input or output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from storage.datasets.catalog import Dataset
from storage.datasets.manifest import Slices
from storage.records import Rule, SliceScore
from tasks.gate import criteria, holm
from tasks.slicing.cuts import Tally

KINDS = 4
"""Kinds of rows that are counted on each slice: 2 if the candidate is right, and 1 more if the champion is."""


def kinds(labels: np.ndarray, candidate: np.ndarray, champion: np.ndarray | None) -> np.ndarray:
    """Return the kind of each row, int64 of shape (rows,), of arrays as for `criteria.paired`."""
    found: np.ndarray = 2 * (candidate == labels).astype(np.int64)
    return found if champion is None else found + (champion == labels)


def scores(settings: Slices, tallies: Sequence[Tally], compared: bool) -> tuple[SliceScore, ...]:
    """Return the score on each slice that has rows.

    Args:
        settings: of the manifest.
        tallies: rows by `kinds`, of each way to divide them.
        compared: whether there is a champion.
    """
    found = [score for tally in tallies for score in _counted(settings, tally, compared)]
    return _tested(found) if compared else tuple(found)


def of_champion(known: Sequence[SliceScore]) -> tuple[SliceScore, ...]:
    """Return the scores of a model compared with itself, from those of its comparison with another."""
    same: dict[str, Any] = {"only_candidate": 0, "only_champion": 0}
    return _tested([dataclasses.replace(score, champion_right=score.right, **same) for score in known])


def floor_rules(dataset: Dataset, found: Sequence[SliceScore]) -> tuple[Rule, ...]:
    """Return the rule that every model has to meet on the slices, if there is a floor: that of the worst one.

    A floor of a slice that is not there, or has too few rows to judge it, is not met.
    """
    settings, by_name = dataset.slices, {score.name: score for score in found}
    missed = [_unmet(settings, name, by_name.get(name)) for name in settings.floors]
    judged = sorted((s for s in found if s.judged and s.floor), key=lambda s: (_accuracy(s) - s.floor, s.name))
    rules = [*filter(None, missed), *(_floor_rule(score) for score in judged)]
    broken = [rule for rule in rules if not rule.passed]
    more = len(broken) - 1
    if more > 0:
        others = f"; {more} more {'slice is' if more == 1 else 'slices are'} below the floor"
        return (dataclasses.replace(broken[0], observed=f"{broken[0].observed}{others}"),)
    return tuple((broken or rules)[:1])


def worse_rule(settings: Slices, found: Sequence[SliceScore], champion: str) -> Rule | None:
    """Return the rule that no slice is worse than the champion on the same rows; None if no slice is judged.

    Args:
        settings: of the manifest.
        found: the scores on all slices, compared with the champion.
        champion: its name, such as `v6`.
    """
    tested = [(score.corrected, score.p or 0, score.name, score) for score in found if score.corrected is not None]
    if not tested:
        return None
    corrected, _, name, worst = min(tested)
    number = len(tested)
    slices = "1 slice" if number == 1 else f"each of {number:,} slices"
    limit = f"corrected p above {settings.alpha:.6g} on {slices} (McNemar's exact test, one-sided; Holm)"
    observed = (
        f"{name}: only the candidate {worst.only_candidate:,} right, only the champion {worst.only_champion:,}, "
        f"corrected {criteria.p_text(corrected, settings.alpha)}"
    )
    title = f"no slice is worse than champion {champion} on the same rows"
    return Rule(title, limit, observed, corrected > settings.alpha)


def _counted(settings: Slices, tally: Tally, compared: bool) -> list[SliceScore]:
    ends = zip(tally.lowest.tolist(), tally.highest.tolist(), strict=True)
    found = []
    for name, counts, (lowest, highest) in zip(tally.cut.names, tally.counts.tolist(), ends, strict=True):
        rows = sum(counts)
        _, theirs, ours, both = counts
        score = SliceScore(
            name=name,
            by=tally.cut.by,
            lowest=lowest,
            highest=highest,
            rows=rows,
            right=both + ours,
            champion_right=both + theirs if compared else None,
            only_candidate=ours if compared else None,
            only_champion=theirs if compared else None,
            p=None,
            corrected=None,
            floor=settings.floor(name),
            judged=rows >= settings.min_rows,
        )
        found += [score] if rows else []
    return found


def _tested(found: Sequence[SliceScore]) -> tuple[SliceScore, ...]:
    judged = [score for score in found if score.judged]
    p = np.array([_p_worse(score) for score in judged])
    corrected = dict(
        zip((s.name for s in judged), zip(p.tolist(), holm.corrected(p).tolist(), strict=True), strict=True)
    )
    untested = (None, None)
    return tuple(
        dataclasses.replace(score, p=p, corrected=all_together)
        for score in found
        for p, all_together in (corrected.get(score.name, untested),)
    )


def _p_worse(score: SliceScore) -> float:
    ours, theirs = score.only_candidate or 0, score.only_champion or 0
    # If no row tells them apart, p is 1 and SciPy need not be imported.
    return float(criteria.exact_p(theirs, ours)) if ours or theirs else 1.0


def _accuracy(score: SliceScore) -> float:
    return score.right / score.rows


def _unmet(settings: Slices, name: str, score: SliceScore | None) -> Rule | None:
    """Return a rule that is not met if a slice cannot be judged that has a floor of its own."""
    if score is not None and score.judged:
        return None
    rows = "no test rows" if score is None else f"{score.rows:,} test rows, and {settings.min_rows:,} are needed"
    floor = f"at least {settings.floor(name):.2%}"
    return Rule(f"accuracy on the slice {name}", floor, f"unknown: it has {rows}", False)


def _floor_rule(score: SliceScore) -> Rule:
    observed = f"{_accuracy(score):.2%} ({score.right:,} of {score.rows:,})"
    floor = f"at least {score.floor:.2%}"
    return Rule(f"accuracy on the slice {score.name}", floor, observed, _accuracy(score) >= score.floor)
