"""Plan a backfill: a run for each of many days, on the data as it was on that day."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, replace

from flows.run import Request
from flows.several import resolved
from storage.datasets.catalog import ArchiveSpec
from storage.datasets.chosen import chosen, dates_of
from storage.errors import ConfigError

MOST = 10_000
"""The most days of a backfill."""
_EVERY = re.compile(r"([1-9][0-9]{0,3})d")


@dataclass(frozen=True)
class Backfill:
    """The runs of a backfill, in the order of their days."""

    requests: dict[str, Request]
    """By day, ISO 8601."""
    same: dict[str, str]
    """The other days, each with the earlier one that has the same data: no run of theirs would do anything."""


def planned(request: Request, first: datetime.date, last: datetime.date, every: str) -> Backfill:
    """Return the runs of the days from `first` to `last`.

    Args:
        request: what to run on each day.
        first: the first day.
        last: the last day possible.
        every: how many days are between two runs, such as `1d` or `7d`.

    Raises:
        ConfigError: the days are no span, no archive has a date, or there is no data yet on the first day.
    """
    days = _days(first, last, every)
    declared = request.declared()
    if not dates_of(declared):
        raise ConfigError(
            f"{declared.manifest}: expected archives with the days that their images are of; found none with a date; "
            "add date = 2026-11-30 to those of images, or append images: `idxflow dataset add NAME FROM --append`"
        )
    requests: dict[str, Request] = {}
    same: dict[str, str] = {}
    seen: dict[tuple[ArchiveSpec, ...], str] = {}
    for day in days:
        archives, text = chosen(declared, day).archives, day.isoformat()
        if archives in seen:
            same[text] = seen[archives]
        else:
            seen[archives], requests[text] = text, replace(request, as_of=text)
    # Everything else that can be wrong with the request.
    resolved(next(iter(requests.values())))
    return Backfill(requests, same)


def _days(first: datetime.date, last: datetime.date, every: str) -> list[datetime.date]:
    match = _EVERY.fullmatch(every)
    if not match:
        raise ConfigError(f"--every: expected a number of days, such as 1d or 7d; found {every[:40]!r}; correct it")
    if last < first:
        raise ConfigError(f"expected --to to be {first} or later, as --from is; found {last}; exchange or correct them")
    step = int(match[1])
    count = (last - first).days // step + 1
    if count > MOST:
        raise ConfigError(
            f"expected at most {MOST:,} days; found {count:,} from {first} to {last}; choose fewer, or a longer --every"
        )
    return [first + datetime.timedelta(step * number) for number in range(count)]
