"""The held-out rows: do they resemble the fitted ones? If not, they reveal little about overfitting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from storage.records import RunRecord
from tasks.report.evidence import Evidence
from tasks.report.phrases import class_name

LEAST_P = 0.001
"""Significance level below which two samples count as different."""


def held_out(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    """Return how the held-out rows differ from the fitted ones; None if unknown or if none were held out.

    `classes_p` is the probability of class shares at least this far apart if the rows were drawn at random; `ink_p` is
    the same for mean ink.
    """
    held, labels = evidence.held_out, evidence.labels.get("train")
    if held is None or labels is None or len(labels) != len(held) or not held.any() or held.all():
        return None
    counts = np.stack([np.bincount(labels[side], minlength=256) for side in (~held, held)])
    present = np.flatnonzero(counts.sum(axis=0))
    without = [class_name(run, int(label)) for label in present if not counts[1, label]]
    classes_p = homogeneity_p(counts[:, present])
    ink = evidence.training_ink
    ink_p = None if ink is None or len(ink) != len(held) else means_p(ink[~held], ink[held])
    return {
        "sentence": _sentence(without, classes_p, ink_p),
        "like": not without and classes_p >= LEAST_P and (ink_p is None or ink_p >= LEAST_P),
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


def means_p(first: np.ndarray, second: np.ndarray) -> float:
    """Return the two-sided p-value of equal means of two samples, with the normal approximation of Welch's t.

    1 if a sample has fewer than 30 values, too few for the approximation.
    """
    if min(len(first), len(second)) < 30:
        return 1.0
    spread = math.sqrt(sum(float(np.var(sample, dtype=np.float64)) / (len(sample) - 1) for sample in (first, second)))
    apart = abs(float(first.mean(dtype=np.float64)) - float(second.mean(dtype=np.float64)))
    return min(1.0, 2 * _above(apart / spread)) if spread else float(apart == 0)


def _above(deviate: float) -> float:
    return math.erfc(deviate / math.sqrt(2)) / 2


def _sentence(without: Sequence[str], classes_p: float, ink_p: float | None) -> str:
    differences = []
    if without:
        named = ", ".join(without[:5]) + (", …" if len(without) > 5 else "")
        differences.append(f"no row of {'class' if len(without) == 1 else 'classes'} {named}")
    if classes_p < LEAST_P:
        differences.append("different shares of the classes")
    if ink_p is not None and ink_p < LEAST_P:
        differences.append("a different mean brightness")
    if not differences:
        compared = "classes" if ink_p is None else "classes and brightness"
        return f"The held-out rows are like the fitted rows: {compared} differ no more than chance allows."
    return (
        f"The held-out rows differ from the fitted rows: {', '.join(differences)}. So the gap between the two says "
        "little about overfitting."
    )
