"""Divide rows into folds for a cross-validation: each class evenly, and equal images together.

A copy of an image among the fitted rows would give away its label, so copies are judged by a network that saw none of
them.
"""

from __future__ import annotations

import numpy as np

FOLDS = 4
SEED = 1

_LABELS = 256


def divided(labels: np.ndarray, digests: np.ndarray, classes: int) -> np.ndarray:
    """Return the fold of each row, int8 of shape (rows,), from 0 to `FOLDS` - 1; -1 if its label is not a class.

    Each class is dealt out in a random order, and the next class begins with the fold at which that ended: so the folds
    are as large as each other, and the rows of small classes do not all fall into the first. Memory: about 60 bytes
    for each row.

    Args:
        labels: uint8 of shape (rows,).
        digests: of the images, int64 of shape (rows,).
        classes: number of classes; labels from this number on are not classes.
    """
    known = np.flatnonzero(labels < classes)
    fold = np.full(len(labels), -1, np.int8)
    if not len(known):
        return fold
    order = known[np.argsort(digests[known], kind="stable")]
    ordered = digests[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    # An image with several labels counts as the label of its first row.
    kinds = labels[order[starts]]
    images = np.random.Generator(np.random.PCG64([SEED, 0])).permutation(len(starts))
    by_class = images[np.argsort(kinds[images], kind="stable")]
    of_image = np.empty(len(starts), np.int8)
    of_image[by_class] = np.arange(len(starts)) % FOLDS
    fold[order] = np.repeat(of_image, np.diff(starts, append=len(order)))
    return fold


def judged(labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return whether the label of each row can be judged, bool of shape (rows,).

    A network cannot know a class that none of its rows has. So the class must have rows in two folds or more.
    """
    known = fold >= 0
    present = np.zeros((_LABELS, FOLDS), bool)
    present[labels[known], fold[known]] = True
    can: np.ndarray = known & (present.sum(axis=1) > 1)[labels]
    return can
