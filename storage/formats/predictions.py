"""Read what a model predicts for each row of a test split, whether the split is one file or in parts.

Memory: what a caller asks for, and the probabilities of one part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from storage.formats import arrays, members
from storage.records import Evaluation
from storage.runtime.ranged import Source


def predicted(evaluation: Evaluation) -> np.ndarray:
    """Return the class that is predicted for each row, uint8 of shape (rows,).

    Raises:
        DamagedEntry: a file does not hold the predictions of that many rows.
    """
    found = [_read(part, part.source, "predicted")["predicted"] for part in members.of(evaluation)]
    return found[0] if len(found) == 1 else np.concatenate(found)


def confidence(evaluation: Evaluation) -> np.ndarray:
    """Return the probability of the predicted class for each row, float32 of shape (rows,).

    Raises:
        DamagedEntry: a file does not hold the predictions of that many rows.
    """
    found = []
    for part in members.of(evaluation):
        values = _read(part, part.file)
        found.append(values["probability"][np.arange(part.rows), values["predicted"]])
    return np.concatenate(found)


def probability(evaluation: Evaluation, rows: Sequence[int]) -> np.ndarray:
    """Return the probabilities of all classes for some rows, float32 of shape (len(rows), classes).

    Raises:
        DamagedEntry: a file does not hold the predictions of that many rows.
        LookupError: there is no such row.
    """
    by_row: dict[int, np.ndarray] = {}
    first = 0
    for part in members.of(evaluation):
        here = [row for row in rows if first <= row < first + part.rows]
        if here:
            found = _read(part, part.file, "probability")["probability"]
            by_row |= {row: found[row - first].copy() for row in here}
        first += part.rows
    return np.stack([by_row[row] for row in rows])


def _read(part: Evaluation, source: Source, *only: str) -> dict[str, np.ndarray]:
    expected: arrays.Expected = {
        "predicted": (np.uint8, (part.rows,)),
        "probability": (np.float32, (part.rows, len(part.per_class))),
    }
    return arrays.read(source, expected, only)
