"""Confident learning: find the rows whose label is likely wrong from probabilities that a model gives to unseen rows.

C. G. Northcutt, L. Jiang, I. L. Chuang: Confident Learning: Estimating Uncertainty in Dataset Labels. Journal of
Artificial Intelligence Research 70, 2021, arXiv:1911.00068. The package cleanlab has the same and much more, and needs
pandas; this is the part of it that is used here, with memory that does not grow with the number of classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tasks.auditing.cross_validation import Judgement
from tasks.auditing.tables import Suspects


def thresholds(judgements: Iterable[Judgement], classes: int) -> np.ndarray:
    """Return how probable a class must be to count as confident, float64 of shape (classes,).

    It is the mean probability of the class over the rows with its label (equation 2 of the paper). Infinite for a class
    without rows.
    """
    sums, counts = np.zeros(classes), np.zeros(classes, np.int64)
    for _, labels, probability in judgements:
        given = probability[np.arange(len(labels)), labels].astype(np.float64)
        sums += np.bincount(labels, given, classes)
        counts += np.bincount(labels, minlength=classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def suspects(judgements: Iterable[Judgement], limits: np.ndarray) -> Suspects:
    """Return the rows for which another class than that of their label is the most probable, most suspicious first.

    Flagged are those that are off the diagonal of the confident joint (equation 1 of the paper): another class is
    confident, and more probable than all other confident ones. Most suspicious are those whose label has the lowest
    probability ("self-confidence").

    Args:
        limits: from `thresholds`.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    for rows, labels, probability in judgements:
        predicted = probability.argmax(axis=1)
        confident = np.where(probability >= limits, probability, -1)
        guessed = confident.argmax(axis=1)
        places = np.arange(len(rows))
        flagged = (confident[places, guessed] >= 0) & (guessed != labels)
        kept = np.flatnonzero(predicted != labels)
        parts.append(
            (
                rows[kept],
                labels[kept],
                predicted[kept].astype(np.uint8),
                probability[kept, labels[kept]],
                probability[kept, predicted[kept]],
                flagged[kept],
            )
        )
    if not parts:
        return Suspects.none()
    found = Suspects(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    # Equally suspicious rows in their order, which is not that of the blocks' parts.
    order = np.lexsort((found.row, found.probability))
    return Suspects(*(values[order] for values in found.columns().values()))
