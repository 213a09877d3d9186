"""The ledger: one small JSON file per run, study, decision and arrival of archives, added once and never changed.

    <dataset>/ledger/runs/<number>-<run>.json
    <dataset>/ledger/arrivals/<number>-<mark>.json
    <dataset>/ledger/studies/<number>-<study>.json     see `studies`
    <dataset>/ledger/decisions/<number>.json
    <dataset>/ledger/underway/                      see `underway`

Runs, studies and arrivals share one sequence of numbers: each record takes the next. Decisions have a sequence of their
own, without a gap: a number is taken by creating its file, which only one process can, see `registry`. A decision has
the number of the newest of these before it (`after`), which gives all records one order (`Place`). The time in a record
is what the clock showed, right or wrong, and does not affect the order (`jumps` finds where it was wrong).

Up to format 3, decisions were numbered with the others, `<number>-<run>.json`. The numbers of later ones go on from the
highest of these. The first versions named records by their time, `20261124T080348.123456Z-<run>.json`. These come
before all numbered records, in the order of their names.

The ledger is the memory of idxflow: wiping Prefect's database loses no run, decision or report.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, get_args

from storage.errors import DamagedEntry, StoreError
from storage.index import Index
from storage.objects import sealed
from storage.store import Store, store_errors
from storage.store_format import FORMAT

Kind = Literal["runs", "decisions", "arrivals", "studies"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Event = Literal["runs", "arrivals", "studies"]
"""The kinds of records that `append` writes."""
EVENTS: tuple[Event, ...] = get_args(Event)
TOLERANCE = timedelta(minutes=1)
"""The largest difference between two clocks of a machine, or correction of one, that is not reported."""

_RECENT = 100

Place = tuple[bool, int, int, str]
"""The sort key of a record in the order of the ledger."""


class Ledger:
    """The ordered records of one data set.

    Records never change, so each is read once. The folders are listed on every call.
    """

    def __init__(self, store: Store, dataset: str) -> None:
        self._records: dict[str, dict[str, Any]] = {}
        self._store, self._dataset = store, dataset
        self._folder = store.key(dataset, "ledger")

    def append(self, kind: Event, run: str, values: Mapping[str, Any]) -> str:
        """Write one record, adding the time (UTC), the run's id and the format of the store; return its key.

        Where nothing keeps two processes from appending at once (`Store.alone`), both may take the same number: then
        their names give the order. A record that was written before another one was begun always has a lower number.

        Raises:
            StoreError: it cannot be written.
        """
        objects = self._store.objects
        with store_errors(self._store.root / self._folder / kind), self._store.alone(self._dataset, "ledger"):
            key = f"{self._folder}/{kind}/{self._last_number() + 1:08d}-{run}.json"
            if not sealed.create(objects, key, {**values, **_signed(run)}):
                raise StoreError(f"{objects.where(key)}: expected no such record yet; it exists; run again")
        return key

    def decide(self, number: int, run: str, values: Mapping[str, Any]) -> bool:
        """Write the decision with this number, unless there is one; return whether this call wrote it.

        Raises:
            StoreError: it cannot be written.
        """
        with store_errors(self._store.root / self._folder):
            # An object like another one, written by another process, is not taken for it.
            own = {"after": self._last_number(), "nonce": secrets.token_hex(16), **_signed(run)}
            return sealed.create(self._store.objects, self.decision_key(number), {**values, **own})

    def decision(self, number: int) -> dict[str, Any] | None:
        """Return the decision with this number, or None.

        Raises:
            DamagedEntry: it cannot be read.
        """
        try:
            return self.record("decisions", _decision_name(number))
        except DamagedEntry as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def decision_key(self, number: int) -> str:
        """Return the key of the decision with this number, which need not exist."""
        return f"{self._folder}/decisions/{_decision_name(number)}"

    def names(self, kind: Kind) -> list[str]:
        """Return the names of all records of a kind, oldest first, for `run_of` and `place`, without opening a file.

        Raises:
            StoreError: the folder cannot be read.
        """
        return sorted(self._listed(kind), key=place)

    def record(self, kind: Kind, name: str) -> dict[str, Any]:
        """Return one record by its name.

        Raises:
            DamagedEntry: it cannot be read.
        """
        key = f"{self._folder}/{kind}/{name}"
        if key not in self._records:
            self._records[key] = self._read(key)
        # A copy, so that callers cannot change the cached record.
        return dict(self._records[key])

    def read(self, kind: Kind) -> list[dict[str, Any]]:
        """Return all records of a kind, oldest first.

        Raises:
            DamagedEntry: one of them cannot be read.
        """
        return [self.record(kind, name) for name in self.names(kind)]

    def newest(self, kind: Kind, before: Place | None = None) -> Iterator[dict[str, Any]]:
        """Yield the records of a kind (only those before `before`, if given), newest first, reading each on demand.

        Raises:
            DamagedEntry: one of them cannot be read.
        """
        for name in reversed(self.names(kind)):
            if before is None or place(name) < before:
                yield self.record(kind, name)

    def last(self, kind: Kind) -> dict[str, Any] | None:
        """Return the newest record of a kind, or None.

        Raises:
            DamagedEntry: it cannot be read.
        """
        return next(self.newest(kind), None)

    def find(self, kind: Event, run: str) -> dict[str, Any] | None:
        """Return this run's newest record of a kind, or None. `Registry.decision_of` finds its decision.

        Raises:
            DamagedEntry: it cannot be read.
        """
        names = [name for name in self.names(kind) if run_of(name) == run]
        return self.record(kind, names[-1]) if names else None

    def place_of(self, kind: Event, run: str) -> Place | None:
        """Return the place of this run's first record of a kind, or None."""
        return next((place(name) for name in self.names(kind) if run_of(name) == run), None)

    def recent_jumps(self, now: datetime) -> list[Jump]:
        """Return where the newest records of all kinds show that a clock was wrong; `verify` checks all records.

        Raises:
            StoreError: the ledger cannot be listed.
        """
        times: dict[Place, datetime] = {}
        for kind in KINDS:
            for name in self.names(kind)[-_RECENT:]:
                # `verify` reports damaged records.
                with suppress(DamagedEntry):
                    record = self.record(kind, name)
                    if time := time_of(record):
                        times[place_in(record, name)] = time
        return jumps(dict(sorted(times.items())[-_RECENT:]), now)

    def index(self, kind: Kind, fields: tuple[str, ...]) -> Index:
        """Return an index of some fields of all records of a kind."""
        store = self._store
        return Index(store.objects, store.root, f"{self._folder}/{kind}", fields, lambda name: self.record(kind, name))

    def _read(self, key: str) -> dict[str, Any]:
        try:
            return sealed.read(self._store.objects, key)
        except (OSError, ValueError) as error:
            raise DamagedEntry(
                f"{self._store.objects.where(key)}: expected a record of the ledger; {error}; restore it from a backup "
                "or move it out of the ledger"
            ) from error

    def _last_number(self) -> int:
        """Return the highest number of the sequence that runs, studies and arrivals share; 0 before the first."""
        names = (name for kind in KINDS for name in self._listed(kind) if not is_decision(name))
        return max((place(name)[1] for name in names), default=0)

    def _listed(self, kind: Kind) -> list[str]:
        with store_errors(self._store.root / self._folder):
            listing = self._store.objects.list(f"{self._folder}/{kind}")
        return [found.name for found in listing.objects if found.name.endswith(".json")]


def place(name: str) -> Place:
    """Return the sort key of a record, from its name: among all, or of a numbered decision, among the decisions."""
    number = name.removesuffix(".json").partition("-")[0]
    return (True, int(number), 0, name) if number.isdecimal() and number.isascii() else (False, 0, 0, name)


def place_in(record: Mapping[str, Any], name: str) -> Place:
    """Return the sort key of a record among those of all kinds."""
    after = record.get("after")
    return (True, after, place(name)[1], name) if is_decision(name) and type(after) is int else place(name)


def is_decision(name: str) -> bool:
    """Return whether a record is a decision with a number of its own, from its name."""
    number = name.removesuffix(".json")
    return number.isdecimal() and number.isascii()


def run_of(name: str) -> str:
    """Return the id of the run that a record belongs to, from its name; empty for a decision with its own number."""
    return name.partition("-")[2].removesuffix(".json")


def time_of(record: Mapping[str, Any]) -> datetime | None:
    """Return the time in a record, UTC if it has no time zone; None if it has no valid time."""
    try:
        time = datetime.fromisoformat(record["time"])
    except (KeyError, TypeError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Jump:
    """A place in the ledger that shows that the clock was wrong."""

    name: str
    """Name of the record that shows it."""
    problem: str
    ahead: bool
    """True if the record's time is in the future; False if the clock was set back before it, in the past."""


def jumps(times: Mapping[Place, datetime], now: datetime) -> list[Jump]:
    """Return where the clock was wrong: times in the future, and times before those of earlier records.

    Args:
        times: the times of records of one ledger, of all kinds, by place.
        now: the current time.
    """
    places = sorted(times)
    ahead = [here for here in places if times[here] > now + TOLERANCE]
    result = []
    if ahead:
        newest = max(times[here] for here in ahead)
        problem = f"expected no time later than now, {_clock(now)}; found {len(ahead):,} up to {_clock(newest)}"
        result.append(Jump(ahead[0][-1], problem, True))
    for before, here in pairwise(places):
        if times[here] < times[before] - TOLERANCE:
            problem = f"expected a time after {_clock(times[before])}, that of the record before it, {before[-1]}"
            result.append(Jump(here[-1], f"{problem}; found {_clock(times[here])}", False))
    return result


def _clock(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _decision_name(number: int) -> str:
    return f"{number:08d}.json"


def _signed(run: str) -> dict[str, Any]:
    """Return the fields that every record has."""
    return {"format": FORMAT, "run": run, "time": datetime.now(UTC).isoformat(timespec="milliseconds")}
