"""The held-out rows: do they resemble the fitted ones? If not, they reveal little about overfitting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from storage.records import RunRecord
from tasks.model.sides import Sample
from tasks.report.evidence import Evidence
from tasks.report.phrases import class_name

LEAST_P = 0.001
"""Significance level below which two samples count as different."""


def held_out(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    """Return how the held-out rows differ from the fitted ones; None if unknown or if none were held out.

    `classes_p` is the probability of class shares at least this far apart if the rows were drawn at random; `ink_p` is
    the same for mean ink.
    """
    sides = evidence.sides
    if sides is None:
        return None
    present = np.flatnonzero(sides.labels.sum(axis=0))
    without = [class_name(run, int(label)) for label in present if not sides.labels[1, label]]
    classes_p = homogeneity_p(sides.labels[:, present])
    ink_p = None if sides.brightness is None else means_p(*sides.brightness)
    differences = _differences(without, classes_p, ink_p)
    return {
        "sentence": _sentence(differences, ink_p is not None),
        "like": not differences,
        "differences": differences,
        "without": without,
        "classes_p": classes_p,
        "ink_p": ink_p,
    }


def homogeneity_p(counts: np.ndarray) -> float:
    """Return the p-value of the chi-square test that both rows of `counts`, shape (2, classes), have the same shares.

    Chi-square is converted to a normal deviate: E. B. Wilson, M. M. Hilferty 1931, The Distribution of Chi-Square,
    Proceedings of the National Academy of Sciences 17, 684-688. 1 for a single class.
    """
    freedom = counts.shape[1] - 1
    if freedom < 1:
        return 1.0
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    share = 2 / (9 * freedom)
    return _above(((chi_square / freedom) ** (1 / 3) - (1 - share)) / math.sqrt(share))


def means_p(first: Sample, second: Sample) -> float:
    """Return the two-sided p-value of equal means of two samples, with the normal approximation of Welch's t.

    1 if a sample has fewer than 30 values, too few for the approximation.
    """
    if min(first.rows, second.rows) < 30:
        return 1.0
    spread = math.sqrt(sum(sample.variance / (sample.rows - 1) for sample in (first, second)))
    apart = abs(first.mean - second.mean)
    return min(1.0, 2 * _above(apart / spread)) if spread else float(apart == 0)


def _above(deviate: float) -> float:
    return math.erfc(deviate / math.sqrt(2)) / 2


def _differences(without: Sequence[str], classes_p: float, ink_p: float | None) -> list[str]:
    """Return how the held-out rows differ from the fitted ones, in words."""
    differences = []
    if without:
        named = ", ".join(without[:5]) + (", …" if len(without) > 5 else "")
        differences.append(f"no row of {'class' if len(without) == 1 else 'classes'} {named}")
    if classes_p < LEAST_P:
        differences.append("different shares of the classes")
    if ink_p is not None and ink_p < LEAST_P:
        differences.append("a different mean brightness")
    return differences


def _sentence(differences: Sequence[str], with_ink: bool) -> str:
    if not differences:
        compared = "classes and brightness" if with_ink else "classes"
        return f"The held-out rows are like the fitted rows: {compared} differ no more than chance allows."
    return (
        f"The held-out rows differ from the fitted rows: {', '.join(differences)}. So the gap between the two says "
        "little about overfitting."
    )
