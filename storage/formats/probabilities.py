"""Read what a model answers for each row of a test split some rows at a time: the most of it are probabilities."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from storage.formats import members
from storage.records import Evaluation

ROWS = 8192
"""Rows of a block."""


def blocks(evaluation: Evaluation, rows: int = ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the predicted classes, uint8 of shape (n,), and the probabilities, float32 of shape (n, classes).

    Args:
        evaluation: of a test split in one file or in parts.
        rows: at most so many are in a block.

    Raises:
        DamagedEntry: the list of parts cannot be read.
        OSError, LookupError, ValueError, RuntimeError, zipfile.BadZipFile: a file does not hold the predictions of that
            many rows. A wrong checksum is found after the last block of a part.
    """
    for part in members.of(evaluation):
        yield from _of_part(part.file, (part.rows, len(part.per_class)), rows)


def _of_part(path: Path, shape: tuple[int, int], rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with zipfile.ZipFile(path) as archive, ExitStack() as opened:
        predicted, probability = (
            opened.enter_context(archive.open(f"{name}.npy")) for name in ("predicted", "probability")
        )
        _check_header(predicted, np.dtype(np.uint8), shape[:1])
        _check_header(probability, np.dtype(np.float32), shape)
        for start in range(0, shape[0], rows):
            count = min(rows, shape[0] - start)
            classes = np.frombuffer(predicted.read(count), np.uint8)
            of_classes = np.frombuffer(probability.read(4 * count * shape[1]), np.float32).reshape(count, shape[1])
            yield classes, of_classes
        # Reading past the end makes the ZIP reader check the CRC.
        if predicted.read(1) or probability.read(1):
            raise ValueError(f"expected {shape[0]:,} rows; found more")


def _check_header(stream: IO[bytes], kind: np.dtype, shape: tuple[int, ...]) -> None:
    np.lib.format.read_magic(stream)
    found, in_fortran_order, found_kind = np.lib.format.read_array_header_1_0(stream)
    if (found, in_fortran_order, found_kind) != (shape, False, kind):
        raise ValueError(f"expected {kind} of shape {shape}; found {found_kind} of shape {found}")
