"""Which archives a run uses: those that were there on a day, and of these the newest, if the manifest has a window."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import replace

from storage.datasets.catalog import ArchiveSpec, Dataset
from storage.errors import ConfigError
from storage.records import SPLITS, SplitName
from storage.words import counted

DAY = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
"""The form of a day, also as a JSON Schema pattern."""


def day_of(text: str, option: str) -> datetime.date:
    """Return the day that a user has typed.

    Raises:
        ConfigError: it is none.
    """
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option}: expected a day such as 2026-11-30; found {text[:40]!r}; correct it") from None


def chosen(dataset: Dataset, day: datetime.date | None = None) -> Dataset:
    """Return a data set as a run uses it.

    An archive without a date has always been there. Rows that the manifest declares are those of all archives, so they
    are not checked of a split of fewer.

    Args:
        dataset: as its manifest declares it.
        day: only archives of this day or earlier; None: all. The window is applied to what is left.

    Raises:
        ConfigError: there are none of a split.
    """
    kept = {name: _until(dataset, name, day) for name in SPLITS}
    if dataset.window:
        kept["train"] = _newest(kept["train"], dataset.window.last, dataset.window.unit)
    all_of = {name: dataset.archives_of(f"{name}-images") for name in SPLITS}
    numbers = {name: {spec.number for spec in kept[name]} for name in SPLITS}
    archives = tuple(spec for spec in dataset.archives if spec.number in numbers[_split(spec)])
    rows = {name: number for name, number in dataset.rows.items() if len(kept[name]) == len(all_of[name])}
    if len(archives) == len(dataset.archives):
        return dataset
    return replace(dataset, archives=archives, rows=rows, chosen=_sentence(kept["train"], all_of["train"], day))


def dates_of(dataset: Dataset) -> list[datetime.date]:
    """Return the days on which images of a data set are, in order."""
    return sorted({spec.date for spec in dataset.archives if spec.date})


def _split(spec: ArchiveSpec) -> SplitName:
    return next(name for name in SPLITS if spec.role.startswith(f"{name}-"))


def _until(dataset: Dataset, name: SplitName, day: datetime.date | None) -> tuple[ArchiveSpec, ...]:
    images = dataset.archives_of(f"{name}-images")
    kept = tuple(spec for spec in images if day is None or spec.date is None or spec.date <= day)
    if not kept:
        first = min(spec.date for spec in images if spec.date)
        raise ConfigError(
            f"{dataset.manifest}: expected archives of {name}-images of {day} or earlier; found the first of {first}; "
            "give a later day, or correct the dates"
        )
    return kept


def _newest(images: Sequence[ArchiveSpec], last: int, unit: str) -> tuple[ArchiveSpec, ...]:
    if unit == "archives":
        return tuple(images[-last:])
    # The manifest has a date of each: it is refused otherwise.
    newest = max(spec.date or datetime.date.min for spec in images)
    return tuple(spec for spec in images if spec.date and (newest - spec.date).days < last)


def _sentence(kept: Sequence[ArchiveSpec], images: Collection[ArchiveSpec], day: datetime.date | None) -> str:
    if len(kept) == len(images):
        return ""
    dates = sorted(spec.date for spec in kept if spec.date)
    ends = dict.fromkeys((dates[0], dates[-1])) if dates else ()
    span = f" of {' to '.join(map(str, ends))}" if ends else ""
    until = f", as of {day}" if day else ""
    files = kept[0].file if len(kept) == 1 else f"{kept[0].file} to {kept[-1].file}"
    return f"{len(kept):,} of {counted(len(images), 'archive')} for training{span}{until}: {files}"
