"""Bad rows: which ones are set aside and why, and dividing a split, or a part of one, into these and the others."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import get_args

import numpy as np

from storage.datasets.catalog import BadRow
from storage.formats import parquet, quarantined, split_rows
from storage.formats.quarantined import SetAside
from storage.records import Split
from storage.runtime import cancellation

CHECKS: tuple[BadRow, ...] = get_args(BadRow)
"""All checks; in the reasons of a row, each has the bit of its place here."""
_MEASURED = ("blank", "duplicate", "conflict", "leaked")
"""The checks that are columns of `summary.IMAGE_COLUMNS`."""


def bit(check: BadRow) -> int:
    """Return the bit of a check in the reasons of a row."""
    return 1 << CHECKS.index(check)


def failed(checks: Iterable[BadRow], columns: Mapping[str, np.ndarray], classes: int) -> np.ndarray:
    """Return which checks each row fails, as bits, uint8 of shape (rows,); all rows pass one that this cannot tell.

    Args:
        checks: those to look at.
        columns: `label`, and those of `summary.IMAGE_COLUMNS` that are checks.
        classes: labels from this number on are no class.
    """
    reasons = np.zeros(len(columns["label"]), np.uint8)
    for check in checks:
        if check in _MEASURED:
            reasons |= bit(check) * (columns[check] == 1).astype(np.uint8)
        elif check == "label":
            reasons |= bit(check) * (columns["label"] >= classes).astype(np.uint8)
    return reasons


def counts(checks: Iterable[BadRow], reasons: np.ndarray) -> dict[str, int]:
    """Return the number of rows that fail each check."""
    return {check: int(np.count_nonzero(reasons & bit(check))) for check in checks}


def release(split: Split, reasons: np.ndarray, free: Collection[str]) -> int:
    """Clear the reasons of the rows whose digest is among `free`; return how many these are."""
    count = 0
    if free and reasons.any():
        for start, images, labels in _blocks(split):
            for row in np.flatnonzero(reasons[start : start + len(labels)]):
                if quarantined.row_digest(images[row], labels[row]) in free:
                    reasons[start + row] = 0
                    count += 1
    return count


def digest_without(split: Split, bad: Iterable[np.ndarray]) -> str:
    """Return the digest of what is left of a split without the rows `bad`: their numbers, ascending, in pieces."""
    digest = hashlib.sha256(f"{split.digest} without ".encode())
    for rows in bad:
        digest.update(rows.astype("<i8").tobytes())
    return digest.hexdigest()


def divide(
    split: Split,
    left: Split,
    classes: tuple[str, ...],
    reasons: np.ndarray,
    writer: quarantined.Writer,
    numbers: np.ndarray,
) -> None:
    """Write the bad rows of a split with `writer`, and the others, if there are any, to the file of `left`.

    Args:
        split: one without parts.
        left: what is left of it.
        classes: their names.
        reasons: of each row, see `failed`; 0: it is not bad.
        writer: of the bad rows.
        numbers: those in the archive of the rows that are missing in `left`.
    """
    with ExitStack() as stack:
        rest = stack.enter_context(parquet.Writer(left.file, split.image_shape, classes)) if left.rows else None
        for start, images, labels in _blocks(split):
            here = reasons[start : start + len(labels)]
            if rest and not here.all():
                rest.write(images[here == 0], labels[here == 0])
            rows = np.flatnonzero(here)
            writer.write(
                [
                    SetAside(
                        split.name,
                        int(start + row),
                        int(labels[row]),
                        classes[labels[row]] if labels[row] < len(classes) else "",
                        tuple(check for check in CHECKS if here[row] & bit(check)),
                        quarantined.row_digest(images[row], labels[row]),
                    )
                    for row in rows
                ],
                [_png(image) for image in images[rows]],
            )
        if rest:
            rest.close(
                {
                    "image_shape": split.image_shape,
                    "rows": left.rows,
                    "digest": left.digest,
                    "sources": dict(split.sources),
                    "set_aside": numbers.tolist(),
                }
            )


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def _blocks(split: Split) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the blocks of a split, each with the number of its first row."""
    start = 0
    for images, labels in split_rows.blocks(split):
        cancellation.check()
        yield start, images, labels
        start += len(labels)
