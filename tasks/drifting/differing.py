"""The tests: each has a p-value, which says whether chance explains a difference, and the size of the difference.

Chance makes sums of squares larger, the more so the fewer rows there are. What it adds on average is subtracted, so
that a limit means the same for a hundred rows as for a million.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_LEAST_EXPECTED = 5
"""Expected count below which the chi-squared distribution is no good approximation (Cochran 1954)."""
_BINS = 10


@dataclass(frozen=True)
class Tested:
    """The result of one test."""

    p: float
    """The probability of at least this difference, in [0, 1], if both are samples of the same distribution."""
    effect: float
    """The size of the difference."""


NOTHING = Tested(1.0, 0.0)
"""The result where there is nothing to compare."""


def shares(old: np.ndarray, new: np.ndarray) -> Tested:
    """Compare the shares of classes by a chi-squared test of two samples; the size is Cohen's w.

    w is the root of the sum of (new share - old share)² / old share: 0.1 is small, 0.3 medium, 0.5 large. It does not
    depend on the numbers of rows, as Cramér's V of a table of two rows of unequal size does. Classes of which fewer
    than five new rows are expected are put together.

    Args:
        old: rows of each class, integers of shape (classes,).
        new: the same.

    Source: J. Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, 2nd edition, chapter 7.
    """
    from scipy.stats import chi2_contingency

    table = pooled(old, new)
    if table.shape[1] < 2:
        return NOTHING
    before, after = (row / row.sum() for row in table)
    before = np.maximum(before, 0.5 / table[0].sum())
    squared = ((after - before) ** 2 / before).sum() - _by_chance(table)
    return Tested(float(chi2_contingency(table, correction=False).pvalue), float(np.sqrt(max(0.0, squared))))


def stability(old: np.ndarray, new: np.ndarray) -> Tested:
    """Compare values by the population stability index over the tenths of the old ones; p is of a chi-squared test.

    The index is the sum of (new share - old share) · ln(new share / old share). Below 0.1 is usually taken as stable,
    above 0.25 as a shift.

    Source: B. Yurdakul and J. Naranjo 2020, Journal of Risk Model Validation 14(4) (its distribution).
    """
    from scipy.stats import chi2_contingency

    old, new = old[np.isfinite(old)], new[np.isfinite(new)]
    if not len(old) or not len(new):
        return NOTHING
    edges = np.unique(np.quantile(old, np.arange(1, _BINS) / _BINS))
    table = pooled(*(np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) for values in (old, new)))
    if table.shape[1] < 2:
        return NOTHING
    before, after = ((row + 0.5) / (row + 0.5).sum() for row in table)
    index = float(((after - before) * np.log(after / before)).sum()) - _by_chance(table)
    return Tested(float(chi2_contingency(table, correction=False).pvalue), max(0.0, index))


def _by_chance(table: np.ndarray) -> float:
    """Return the mean of w² and of the stability index, for samples of these sizes of the same distribution."""
    return float((table.shape[1] - 1) * (1 / table.sum(axis=1)).sum())


def distributions(old: np.ndarray, new: np.ndarray) -> Tested:
    """Compare values by the two-sample Kolmogorov-Smirnov test; the size is D, the largest difference of shares."""
    from scipy.stats import ks_2samp

    old, new = old[np.isfinite(old)], new[np.isfinite(new)]
    if not len(old) or not len(new):
        return NOTHING
    found = ks_2samp(old, new, method="asymp")
    return Tested(float(found.pvalue), float(found.statistic))


@dataclass(frozen=True)
class Spread:
    """The mean of some images, and how they spread around it."""

    mean: np.ndarray
    """float64, shape (pixels,)."""
    rows: int
    variance: float
    """The sum of the variances of all pixels."""
    of_squares: float
    """The sum of the squares of the entries of the covariance matrix."""


def spread(images: np.ndarray) -> Spread:
    """Return the mean of images, float32 of shape (n, pixels), and how they spread around it."""
    mean = images.mean(axis=0, dtype=np.float64)
    away = images - mean.astype(np.float32)
    covariance = (away.T @ away).astype(np.float64) / max(1, len(images) - 1)
    return Spread(mean, len(images), float(np.trace(covariance)), float((covariance**2).sum()))


def mean_images(old: Spread, new: np.ndarray) -> Tested:
    """Compare mean images; the size is their distance in units of the spread of an image around the mean.

    The squared distance of two means of the same distribution is a sum of squares with unequal weights, which the
    covariance of the pixels gives; its distribution is approximated by a scaled chi-squared one.

    Args:
        old: of `spread`.
        new: float32, shape (n, pixels).

    Source: G. E. P. Box 1954, Annals of Mathematical Statistics 25, 290-302 (theorem 3.1).
    """
    from scipy.stats import chi2

    squared = float(((new.mean(axis=0, dtype=np.float64) - old.mean) ** 2).sum())
    if old.variance <= 0:
        return Tested(1.0 if squared == 0 else 0.0, 0.0 if squared == 0 else float("inf"))
    scale, freedom = old.of_squares / old.variance, old.variance**2 / old.of_squares
    by_chance = 1 / len(new) + 1 / old.rows
    p = float(chi2.sf(squared / (by_chance * scale), freedom))
    return Tested(p, float(np.sqrt(max(0.0, squared / old.variance - by_chance))))


def pooled(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return the counts as a table of two rows, int64, in which at least five new ones are expected in each column.

    Columns with fewer are put together, and if they are still too few, with the smallest of the others.
    """
    table = np.stack([old, new]).astype(np.int64)
    table = table[:, table.sum(axis=0) > 0]
    share = table[1].sum() / max(1, table.sum())
    expected = table.sum(axis=0) * share
    small = expected < _LEAST_EXPECTED
    if not small.any():
        return table
    rest, joined = table[:, ~small], table[:, small].sum(axis=1)
    if joined.sum() * share < _LEAST_EXPECTED and rest.shape[1]:
        smallest = int(rest.sum(axis=0).argmin())
        joined, rest = joined + rest[:, smallest], np.delete(rest, smallest, axis=1)
    return np.column_stack([rest, joined])
