"""Compare two models on the same test rows, and decide whether one may replace the other. Pure: no input or output.

Only rows that one model gets right and the other wrong tell the two apart. Equally good models are equally likely to be
the one that is right on such a row, so the count is binomial with probability one half (McNemar 1947).

- `better` uses the exact one-sided test. Its probability of promoting a model that is no better is at most alpha for
  any number of such rows. The mid-p test is less strict and exceeds alpha if there are few
  (`benchmarks/gate_simulation.py` measures both), so it is only reported.
- `not_worse` uses the lower end of the confidence interval of the difference, at confidence 1 - 2 alpha.

Sources: McNemar 1947, Psychometrika 12, 153-157. Mid-p: Fagerland, Lydersen, Laake 2013, BMC Medical Research
Methodology 13, 91. Interval: Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from storage.datasets.manifest import Gate
from storage.records import Evaluation, Paired, Rule
from tasks.gate import wilson

Table = tuple[int, int, int, int]
"""Numbers of rows that both models get right, only the candidate, only the champion, neither."""

_LEAST_P = 1e-4
_SUREST = 1 - 1e-15
"""The highest confidence of an interval: closer to 1, rounding leaves nothing of the error."""


def paired(labels: np.ndarray, candidate: np.ndarray, champion: np.ndarray, alpha: float = 0.05) -> Paired:
    """Compare the answers of two models, row by row.

    Args:
        labels: the true classes, integers of shape (rows,), at least one.
        candidate: the classes that the candidate predicts, of the same shape.
        champion: the classes that the champion predicts, of the same shape.
        alpha: the interval has confidence 1 - 2 alpha; above 0, below 0.5.

    Raises:
        ValueError: the three differ in length, or are empty.
    """
    if not len(labels) == len(candidate) == len(champion) or not len(labels):
        raise ValueError(
            f"expected predictions of both models for the same test rows, at least one; found {len(labels)} labels, "
            f"{len(candidate)} and {len(champion)} predictions; score both models again"
        )
    return compared(*counted(labels, candidate, champion), alpha)


def counted(labels: np.ndarray, candidate: np.ndarray, champion: np.ndarray) -> tuple[Table, int]:
    """Return the counts for `compared`, of arrays as for `paired`."""
    ours, theirs = candidate == labels, champion == labels
    table = [int(np.sum(rows)) for rows in (ours & theirs, ours & ~theirs, ~ours & theirs, ~ours & ~theirs)]
    return (table[0], table[1], table[2], table[3]), int(np.sum(candidate != champion))


def compared(table: Table, differing: int, alpha: float = 0.05) -> Paired:
    """Return the comparison for these counts; `differing` rows are those with different answers, right or wrong."""
    both, ours, theirs, neither = table
    rows = sum(table)
    low, high = interval(table, 1 - 2 * alpha)
    # If no row tells them apart, as in every unchanged run, p is 1 and SciPy need not be imported.
    apart = ours or theirs
    return Paired(
        rows=rows,
        both_right=both,
        only_candidate=ours,
        only_champion=theirs,
        both_wrong=neither,
        differing=differing,
        net=ours - theirs,
        p_value=float(mid_p(ours, theirs)) if apart else 1.0,
        p_better=float(exact_p(ours, theirs)) if apart else 1.0,
        difference=(ours - theirs) / rows,
        low=low,
        high=high,
        confidence=1 - 2 * alpha,
    )


def exact_p(ours: Any, theirs: Any) -> Any:
    """Return the exact one-sided p-value of McNemar's test: P(at least `ours` of `ours + theirs`) at probability 1/2.

    Takes counts or integer arrays of counts; returns the same shape, in (0, 1].
    """
    from scipy.stats import binom

    return binom.sf(np.asarray(ours) - 1, np.asarray(ours) + theirs, 0.5)


def one_sided_mid_p(ours: Any, theirs: Any) -> Any:
    """Return `exact_p` minus half the probability of the observed count (Fagerland et al. 2013)."""
    from scipy.stats import binom

    return exact_p(ours, theirs) - binom.pmf(ours, np.asarray(ours) + theirs, 0.5) / 2


def mid_p(ours: Any, theirs: Any) -> Any:
    """Return the two-sided mid-p: twice the smaller one-sided mid-p, 1 if the counts are equal."""
    return np.minimum(1.0, 2 * np.minimum(one_sided_mid_p(ours, theirs), one_sided_mid_p(theirs, ours)))


def interval(table: Table, confidence: float) -> tuple[float, float]:
    """Return the confidence interval of (candidate's accuracy) - (champion's accuracy), in [-1, 1].

    Newcombe's method 10: combines the two Wilson intervals with the correlation of the two models.
    """
    both, ours, theirs, _ = table
    rows, confidence = sum(table), min(confidence, _SUREST)
    first, second = (both + ours) / rows, (both + theirs) / rows
    first_low, first_high = wilson.interval(both + ours, rows, confidence)
    second_low, second_high = wilson.interval(both + theirs, rows, confidence)
    correlation, difference = _correlation(table), (ours - theirs) / rows
    below = _side(first - first_low, second_high - second, correlation)
    above = _side(first_high - first, second - second_low, correlation)
    return max(-1.0, difference - below), min(1.0, difference + above)


def _side(first: float, second: float, correlation: float) -> float:
    return math.sqrt(max(0.0, first**2 - 2 * correlation * first * second + second**2))


def _correlation(table: Table) -> float:
    """Return phi of the two models being right, corrected for continuity if positive (Newcombe 1998, method 10)."""
    both, ours, theirs, neither = table
    scale = (both + ours) * (theirs + neither) * (both + theirs) * (ours + neither)
    product = float(both * neither - ours * theirs)
    if product > 0:
        product = max(0.0, product - sum(table) / 2)
    return product / math.sqrt(scale) if scale else 0.0


def replaces(gate: Gate, comparison: Paired) -> bool:
    """Tell whether the paired comparison lets the candidate replace the champion under the policy of `gate`.

    Two models that give the same answers are equally good: the champion stays, under any policy.
    """
    if not comparison.differing:
        return False
    if gate.policy == "not_worse":
        return comparison.low >= -gate.margin
    return comparison.net > 0 and comparison.p_better <= gate.alpha


def close_call(gate: Gate, comparison: Paired) -> str:
    """Return why the candidate's lead is neither clear nor clearly too small, for a gate with `borderline`, or ""."""
    factor = gate.borderline or 1.0
    if comparison.net > 0 and gate.alpha / factor <= comparison.p_better <= gate.alpha * factor:
        return f"{p_text(comparison.p_better, gate.alpha)} is within a factor of {factor:.4g} of {gate.alpha:.6g}"
    return ""


def difference_rule(gate: Gate, comparison: Paired, champion: str) -> Rule:
    """Return the rule that `replaces` applies, as text; `champion` is its name, such as `v6`."""
    passed = replaces(gate, comparison)
    if not comparison.differing:
        name = f"answers differ from champion {champion}'s"
        return Rule(name, "on at least 1 test row", f"the same on all {comparison.rows:,}", passed)
    counts = f"{_lead(comparison)} right (only the candidate {comparison.only_candidate:,}, "
    counts += f"only the champion {comparison.only_champion:,})"
    if gate.policy == "not_worse":
        limit = (
            f"difference at least {_points(-gate.margin)} points, by the {100 * comparison.confidence:.4g}% interval"
        )
        low = _points(comparison.low, -gate.margin)
        return Rule(
            f"not worse than champion {champion} on the same rows", limit, f"{counts}, from {low} points", passed
        )
    limit = f"more test images right, p at most {gate.alpha:.6g} (McNemar's exact test, one-sided)"
    return Rule(
        f"better than champion {champion} on the same rows",
        limit,
        f"{counts}, {p_text(comparison.p_better, gate.alpha)}",
        passed,
    )


def class_rule(gate: Gate, candidate: Evaluation, champion: Evaluation) -> Rule:
    """Return the rule on the class whose recall falls most below the champion's on the same rows.

    A limit of 1 cannot be exceeded: the rule is off, but still reports the loss.
    """
    before = {score.label: score.recall for score in champion.per_class if score.rows}
    shared = [score for score in candidate.per_class if score.rows and score.label in before]
    worst = max(shared, key=lambda score: before[score.label] - score.recall)
    loss = before[worst.label] - worst.recall
    # Recalls are quotients: 0.95 - 0.9 is a little more than 0.05.
    passed = loss <= gate.max_class_loss + 1e-9
    limit = f"at most {100 * gate.max_class_loss:.4g} points" if gate.max_class_loss < 1 else "no limit"
    drop = _points(-loss, None if passed else -gate.max_class_loss).removeprefix("-")
    observed = f"{drop} points (class {worst.name})" if loss > 0 else "none"
    return Rule("largest drop in class recall", limit, observed, passed)


def sentence(gate: Gate, comparison: Paired) -> str:
    """Return the deciding result: `31 more of 10,000 test images right than the champion, beyond luck (p 0.01)`."""
    passed, rows = replaces(gate, comparison), f"{comparison.rows:,}"
    if not comparison.differing:
        return f"the same answers on all {rows} test rows, so there is nothing to choose"
    than = f"{_lead(comparison)} right {'than' if comparison.net else 'as'} the champion"
    if gate.policy == "not_worse":
        low = _points(comparison.low, -gate.margin)
        sure = (
            f"may be {low.lstrip('-')} points worse"
            if comparison.low < 0
            else f"is at least {low.lstrip('+')} points better"
        )
        return f"{than}; it {sure}, and {'' if passed else 'only '}{100 * gate.margin:.2f} points worse are allowed"
    if comparison.net <= 0:
        return than
    p = p_text(comparison.p_better, gate.alpha)
    return f"{than}, beyond luck ({p})" if passed else f"{than}, which may be luck ({p} > {gate.alpha:.6g})"


def _lead(comparison: Paired) -> str:
    """Return the candidate's lead over the champion in right answers, such as `31 more of 10,000 test images`."""
    much = f"{abs(comparison.net):,} {'more' if comparison.net > 0 else 'fewer'}" if comparison.net else "as many"
    return f"{much} of {comparison.rows:,} test images"


def p_text(p: float, alpha: float) -> str:
    """Return a p-value with enough digits to stay on its side of `alpha`: `p 0.031`."""
    if p < _LEAST_P <= alpha:
        return f"p < {_LEAST_P:.4f}"
    texts = (f"{p:.{digits}g}" for digits in range(2, 18))
    return "p " + next(t for t in texts if (float(t) <= alpha) == (p <= alpha))


def _points(share: float, limit: float | None = None) -> str:
    """Return a share as signed percentage points, with enough digits to stay on its side of `limit`."""
    texts = [f"{100 * share:+.{digits}f}" for digits in range(2, 14)]
    if limit is None:
        return texts[0]
    return next((t for t in texts if (float(t) >= 100 * limit) == (share >= limit)), texts[-1])
