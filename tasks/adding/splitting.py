"""Draw a test split: a share of each class, with equal images and groups kept on one side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def drawn(labels: np.ndarray, ties: Sequence[np.ndarray], fraction: float, seed: int) -> np.ndarray:
    """Return whether each row is drawn for the test split, bool of shape (n,).

    Rows are drawn by units: what is tied together, directly or by others, stays together. Units come in a random
    order, and each is drawn if at least half of it is still missing from the quotas of its classes.

    Args:
        labels: the class of each row, from 0.
        ties: arrays of shape (n,); rows with the same value in one of them stay together.
        fraction: share of the rows of each class to draw, above 0 and below 1.
        seed: of the order.
    """
    unit = _units(ties, len(labels))
    order = np.argsort(unit, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(unit[order])) + 1)
    rows_of = np.bincount(labels)
    # Some are drawn, and some are left.
    missing = np.minimum(np.maximum(1, np.rint(fraction * rows_of)), rows_of - 1).astype(np.int64)
    is_drawn = np.zeros(len(labels), bool)
    for place in np.random.Generator(np.random.PCG64(seed)).permutation(len(members)):
        rows = members[place]
        counts = np.bincount(labels[rows], minlength=len(missing))
        if 2 * np.minimum(counts, np.maximum(missing, 0)).sum() >= len(rows):
            is_drawn[rows] = True
            missing -= counts
    return is_drawn


def _units(ties: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Return the number of the unit of each row: the connected parts of the graph of rows and what ties them."""
    if not ties:
        return np.arange(rows)
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    starts, ends, nodes = [], [], rows
    for tie in ties:
        _, value = np.unique(tie, return_inverse=True)
        starts.append(np.arange(rows))
        ends.append(nodes + value)
        nodes += int(value.max()) + 1
    edges = (np.ones(rows * len(ties), np.int8), (np.concatenate(starts), np.concatenate(ends)))
    unit: np.ndarray = connected_components(coo_matrix(edges, shape=(nodes, nodes)), directed=False)[1][:rows]
    return unit
