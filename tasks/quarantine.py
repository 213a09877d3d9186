"""Set bad rows aside, so that they do not stop the run: the data checks, and everything after them, get the rest."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE
from threadpoolctl import threadpool_limits

from expectations import summary
from storage import released
from storage.datasets.catalog import BadRow, Dataset
from storage.errors import DataRefused
from storage.formats import members, quarantined, split_rows
from storage.records import Audit, Done, FolderEntry, Quarantine, Split
from storage.runtime import cancellation, code_digests
from storage.store import Plan, Store
from storage.words import counted
from tasks.auditing.tables import Suspects
from tasks.checking import bad_rows, comparing, dividing
from tasks.checking.dividing import Left, Looked, Rules
from tasks.ui import progress, summaries
from tasks.ui.steps import log_step, with_new

_PART_ROWS = 1 << 18

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
    checks = tuple(_checks(dataset))
    plan = Plan(
        dataset.name,
        "quarantine",
        inputs={"train": train.digest, "test": test.digest, **({"suspects": suspects.digest} if suspects else {})},
        parameters={
            "checks": list(checks),
            "max_share": dataset.quarantine.max_share,
            "classes": list(dataset.classes),
            "released": list(free),
        },
        code=code_digests.digests(__name__),
    )
    if train.parts or test.parts:
        rules = Rules(checks, dataset.classes, tuple(free), suspects)
        result = _set_aside_in_parts(store, dataset, (train, test), rules, plan)
    else:

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
    checks = _checks(dataset)
    reasons = _reasons(dataset, splits, suspects)
    released_rows = sum(bad_rows.release(split, reasons[split.name], free) for split in splits)
    for split in splits:
        found = reasons[split.name]
        _check_limit(dataset, split, int(np.count_nonzero(found)), bad_rows.counts(checks, found))
    result = Quarantine(
        FolderEntry(folder),
        {name: int(np.count_nonzero(found)) for name, found in reasons.items()},
        {name: bad_rows.counts(checks, found) for name, found in reasons.items()},
        released_rows,
        tuple(checks),
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


def _set_aside_in_parts(
    store: Store, dataset: Dataset, splits: tuple[Split, Split], rules: Rules, plan: Plan
) -> Done[Quarantine]:
    """Do the same part by part. Each part is looked up even if the result is there: a damaged one is made again."""
    started, plan = time.perf_counter(), store.explained(plan)
    with progress.working("quarantine"):
        compared = comparing.compare(store, dataset.name, splits)
        looked = dividing.look(store, dataset, splits, compared, rules)
        for split, found in zip(splits, looked, strict=True):
            _check_limit(dataset, split, found.rows, found.counts())
        left = [dividing.divide(store, dataset, found) for found in looked if found.rows]
        kept = [*compared.keys(), *(part.entry.key for found in looked for part in found.parts)]
        make = partial(_put_together, dataset.quarantine.max_share, looked, left, kept)
        parts, new = (sum(numbers) for numbers in zip(*((len(one.parts), one.new) for one in looked), strict=True))
        result = store.get_or_make(plan, Quarantine, make, partial(summaries.quarantine, parts=parts))
    return with_new(result, parts, new, time.perf_counter() - started)


def _put_together(
    max_share: float, looked: Sequence[Looked], left: Sequence[Left], kept: Sequence[str], folder: Path
) -> Quarantine:
    """List what is left of both splits, and gather the rows that were set aside, one part after the other."""
    entry = FolderEntry(folder)
    divided = (aside.key for one in left for _, aside in one.aside)
    members.write(folder, [part for one in left for part in one.parts], [*kept, *divided])
    result = Quarantine(
        entry,
        {found.split.name: found.rows for found in looked},
        {found.split.name: found.counts() for found in looked},
        sum(found.released for found in looked),
        looked[0].checks,
        max_share,
        tuple(dataclasses.replace(one.split, entry=entry) for one in left),
    )
    with quarantined.Writer(result.file) as writer:
        for one in left:
            dividing.copy_rows(one, writer)
    return result


def _flagged(audit: Audit | None) -> list[int]:
    if audit is None:
        return []
    found = Suspects.read(audit.suspects)
    rows: list[int] = found.row[found.flagged].tolist()
    return rows


def _checks(dataset: Dataset) -> list[BadRow]:
    return [check for check in bad_rows.CHECKS if check in dataset.quarantine.checks]


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
                reasons[start:stop] = bad_rows.failed(checks, part, split.classes)
                start = stop
            found[split.name] = reasons
    if "suspect" in checks:
        found[splits[0].name][list(suspects)] |= bad_rows.bit("suspect")
    return found


def _check_limit(dataset: Dataset, split: Split, bad: int, reasons: Mapping[str, int]) -> None:
    most = dataset.quarantine.max_share
    if bad <= most * split.rows and bad < split.rows:
        return
    rows = f"{counted(split.rows, 'row')} of {split.name}"
    counts = ", ".join(f"{number:,} {check}" for check, number in reasons.items() if number)
    raise DataRefused(
        f"{dataset.name}: expected at most {100 * most:.4g}% of the {rows} to be set aside; "
        f"found {bad:,} ({bad / split.rows:.2%}: {counts}); correct the archives, or if so many rows may be "
        f"set aside, raise [quarantine] max_share in {dataset.manifest} (--quarantine-limit)"
    )


def _divide(dataset: Dataset, split: Split, reasons: np.ndarray, folder: Path, writer: quarantined.Writer) -> Split:
    """Write the bad rows of a split with `writer`, and the others as a split in `folder`; return that one."""
    bad = np.flatnonzero(reasons)
    left = dataclasses.replace(
        split,
        entry=FolderEntry(folder),
        rows=split.rows - len(bad),
        digest=bad_rows.digest_without(split, [bad]),
        set_aside=split.set_aside + len(bad),
    )
    bad_rows.divide(split, left, dataset.classes, reasons, writer, bad)
    return left
