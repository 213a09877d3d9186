"""Set bad rows aside, so that they do not stop the run: the data checks, and everything after them, get the rest."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE
from threadpoolctl import threadpool_limits

from expectations import summary
from storage import released
from storage.datasets.catalog import BadRow, Dataset
from storage.errors import DataRefused
from storage.formats import parquet, quarantined, split_rows
from storage.formats.quarantined import SetAside
from storage.records import Audit, Done, FolderEntry, Quarantine, Split
from storage.runtime import cancellation, code_digests
from storage.store import Plan, Store
from storage.words import counted
from tasks.auditing.tables import Suspects
from tasks.ui import progress, summaries
from tasks.ui.steps import log_step

CHECKS: tuple[BadRow, ...] = get_args(BadRow)
"""All checks; in the reasons of a row, each has the bit of its place here."""
_PART_ROWS = 1 << 18
_MEASURED = ("blank", "duplicate", "conflict", "leaked")
"""The checks that are columns of `summary.images`."""

_log = logging.getLogger(__name__)


@task(task_run_name="quarantine", cache_policy=NO_CACHE)
def quarantine(
    store: Store, dataset: Dataset, train: Split, test: Split, audit: Audit | None = None
) -> Done[Quarantine]:
    """Set aside the rows of both splits that `[quarantine]` of the manifest names, or find that done.

    Args:
        audit: of both splits; required if the manifest sets suspect labels aside.

    Raises:
        DataRefused: more rows are bad than the manifest allows.
        StoreError: the list of released rows cannot be read.
    """
    free = released.read(store, dataset.name)
    # Only then: another audit need not set the same rows aside again.
    suspects = audit if "suspect" in dataset.quarantine.checks else None
    plan = Plan(
        dataset.name,
        "quarantine",
        inputs={"train": train.digest, "test": test.digest, **({"suspects": suspects.digest} if suspects else {})},
        parameters={
            "checks": _checks(dataset),
            "max_share": dataset.quarantine.max_share,
            "classes": list(dataset.classes),
            "released": list(free),
        },
        code=code_digests.digests(__name__),
    )

    def make(folder: Path) -> Quarantine:
        with progress.working("quarantine"):
            return set_aside(dataset, (train, test), folder, _flagged(suspects), frozenset(free))

    result = store.get_or_make(plan, Quarantine, make, summaries.quarantine)
    log_step(_log, result.step)
    return result


def set_aside(
    dataset: Dataset,
    splits: Sequence[Split],
    folder: Path,
    suspects: Sequence[int] = (),
    free: Collection[str] = (),
) -> Quarantine:
    """Write the rows that are set aside, and what is left of each split that has some, into `folder`.

    Memory does not grow with the images: to compare all rows takes about 20 bytes for each.

    Args:
        splits: the training split, then the test split.
        suspects: the training rows whose labels are likely wrong.
        free: digests of rows that stay, whatever is wrong with them.

    Raises:
        DataRefused: more rows of a split are bad than the manifest allows, or all are.
    """
    reasons = _reasons(dataset, splits, suspects)
    released_rows = sum(_release(split, reasons[split.name], free) for split in splits)
    for split in splits:
        _check_limit(dataset, split, reasons[split.name])
    result = Quarantine(
        FolderEntry(folder),
        {name: int(np.count_nonzero(found)) for name, found in reasons.items()},
        {name: _counts(dataset, found) for name, found in reasons.items()},
        released_rows,
        tuple(_checks(dataset)),
        dataset.quarantine.max_share,
        (),
    )
    for split in splits:
        # A run that was killed may have left one.
        (folder / split.file.name).unlink(missing_ok=True)
    with quarantined.Writer(result.file) as writer:
        left = [
            _divide(dataset, split, reasons[split.name], folder, writer)
            for split in splits
            if reasons[split.name].any()
        ]
    return dataclasses.replace(result, left=tuple(left))


def _flagged(audit: Audit | None) -> list[int]:
    if audit is None:
        return []
    found = Suspects.read(audit.suspects)
    rows: list[int] = found.row[found.flagged].tolist()
    return rows


def _checks(dataset: Dataset) -> list[BadRow]:
    return [check for check in CHECKS if check in dataset.quarantine.checks]


def _bit(check: BadRow) -> int:
    return 1 << CHECKS.index(check)


def _counts(dataset: Dataset, reasons: np.ndarray) -> dict[str, int]:
    return {check: int(np.count_nonzero(reasons & _bit(check))) for check in _checks(dataset)}


def _reasons(dataset: Dataset, splits: Sequence[Split], suspects: Sequence[int]) -> dict[str, np.ndarray]:
    """Return what is wrong with each row, by split: uint8 of shape (rows,), a bit for each of `CHECKS`."""
    checks = _checks(dataset)
    # The matrix products are small: on a busy machine, BLAS threads would mostly wait for each other.
    with threadpool_limits(1, "blas"):
        surveys = [summary.survey(split_rows.blocks(split), split.classes) for split in splits]
        found: dict[str, np.ndarray] = {}
        for split, survey in zip(splits, surveys, strict=True):
            of_train = None if survey is surveys[0] else surveys[0]
            reasons, start = np.zeros(split.rows, np.uint8), 0
            for part in summary.images(split_rows.blocks(split), survey, of_train, _PART_ROWS):
                cancellation.check()
                stop = start + len(part["label"])
                for check in checks:
                    reasons[start:stop] |= _bit(check) * _bad(check, part, split.classes).astype(np.uint8)
                start = stop
            found[split.name] = reasons
    if "suspect" in checks:
        found[splits[0].name][list(suspects)] |= _bit("suspect")
    return found


def _bad(check: BadRow, part: summary.Table, classes: int) -> np.ndarray:
    """Return which rows of a part of an image table fail a check, as bool; all rows pass one that it cannot tell."""
    if check in _MEASURED:
        bad: np.ndarray = part[check] == 1
    else:
        bad = (part["label"] >= classes) & (check == "label")
    return bad


def _release(split: Split, reasons: np.ndarray, free: Collection[str]) -> int:
    """Clear the reasons of the rows whose digest is among `free`; return how many these are."""
    count = 0
    if free and reasons.any():
        for start, images, labels in _blocks(split):
            for row in np.flatnonzero(reasons[start : start + len(labels)]):
                if quarantined.row_digest(images[row], labels[row]) in free:
                    reasons[start + row] = 0
                    count += 1
    return count


def _check_limit(dataset: Dataset, split: Split, reasons: np.ndarray) -> None:
    bad, most = int(np.count_nonzero(reasons)), dataset.quarantine.max_share
    if bad <= most * split.rows and bad < split.rows:
        return
    rows = f"{counted(split.rows, 'row')} of {split.name}"
    counts = ", ".join(f"{number:,} {check}" for check, number in _counts(dataset, reasons).items() if number)
    raise DataRefused(
        f"{dataset.name}: expected at most {100 * most:.4g}% of the {rows} to be set aside; "
        f"found {bad:,} ({bad / split.rows:.2%}: {counts}); correct the archives, or if so many rows may be "
        f"set aside, raise [quarantine] max_share in {dataset.manifest} (--quarantine-limit)"
    )


def _divide(dataset: Dataset, split: Split, reasons: np.ndarray, folder: Path, writer: quarantined.Writer) -> Split:
    """Write the bad rows of a split with `writer`, and the others as a split in `folder`; return that one."""
    bad = np.flatnonzero(reasons)
    digest = hashlib.sha256(f"{split.digest} without ".encode() + bad.astype("<i8").tobytes()).hexdigest()
    left = dataclasses.replace(
        split,
        entry=FolderEntry(folder),
        rows=split.rows - len(bad),
        digest=digest,
        set_aside=split.set_aside + len(bad),
    )
    with parquet.Writer(left.file, split.image_shape, dataset.classes) as rest:
        for start, images, labels in _blocks(split):
            is_bad = reasons[start : start + len(labels)] != 0
            if not is_bad.all():
                rest.write(images[~is_bad], labels[~is_bad])
            rows = np.flatnonzero(is_bad)
            writer.write(
                [
                    SetAside(
                        split.name,
                        int(start + row),
                        int(labels[row]),
                        dataset.classes[labels[row]] if labels[row] < len(dataset.classes) else "",
                        tuple(check for check in CHECKS if reasons[start + row] & _bit(check)),
                        quarantined.row_digest(images[row], labels[row]),
                    )
                    for row in rows
                ],
                [_png(image) for image in images[rows]],
            )
        rest.close(
            {
                "image_shape": split.image_shape,
                "rows": left.rows,
                "digest": digest,
                "sources": dict(split.sources),
                "set_aside": bad.tolist(),
            }
        )
    return left


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
