"""Find what has happened to the data sets of a store: from the ends of runs, decisions by hand, and drift.

Nothing is written for it, so nothing can be lost between what happens and what is told of it: the ledger says both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from flows.alerts.event import Event
from flows.health import late_sentence, stale_since
from storage.drifts import DRIFTS, Drifts
from storage.errors import DamagedEntry, IdxflowError, error_class
from storage.ledger import Ledger, time_of
from storage.records import HTML, Report
from storage.registry import Registry
from storage.store import BESIDE, Store

STALE = "stale"
_LATE = timedelta(hours=1)
"""How late a run has to be: one that waits for the run before it is not late yet."""
_LOOKED_AT = 200
"""The most records of a kind that are looked at, the newest. More do not come between two looks."""
_DISORDER = timedelta(hours=1)
"""How much older than a record the one before it may be, although it is later: clocks differ."""
_BY_HAND = {"forced": "forced", "rolled back": "rolled-back", "retired": "retired"}
"""The kind of each outcome of the decisions that no run makes."""
_OF_RUNS = ("promoted", "kept", "failed", "crashed")
_LARGE = ("steps", "findings", "facts", "environment", "config", "rules", "decision", "confirmation")
"""Fields of records that no message needs: a run's have tens of kilobytes."""


@dataclass(frozen=True)
class Found:
    """An event that has been found, before all that a message says of it is looked up."""

    id: str
    kind: str
    dataset: str
    time: datetime
    """UTC."""
    values: Mapping[str, Any]
    """As recorded."""


@dataclass(frozen=True)
class _Read:
    """What a record says."""

    time: datetime | None
    events: tuple[Found, ...]


class History:
    """What has happened to the data sets of a store. Records never change, so each is read once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._records: dict[str, dict[str, _Read]] = {}
        """What the newest records say, by folder and name."""

    def found(self, dataset: str, since: datetime) -> list[Found]:
        """Return the events of a data set since a time (UTC), oldest first.

        Raises:
            StoreError: the ledger cannot be listed.
        """
        ledger, drifts = Ledger(self.store, dataset), Drifts(self.store, dataset)
        parts: tuple[tuple[str, list[str], Callable[[str], _Read]], ...] = (
            ("runs", ledger.names("runs"), lambda name: self._run(dataset, name, ledger.record("runs", name))),
            ("decisions", ledger.names("decisions"), lambda name: _decision(dataset, name, ledger)),
            (DRIFTS, [str(number) for number in drifts.numbers()], lambda name: _drift(dataset, int(name), drifts)),
        )
        events = [each for part, names, read in parts for each in self._recent(f"{dataset}/{part}", names, since, read)]
        return sorted(events, key=lambda event: (event.time, event.id))

    def stale(self, dataset: str, limit: timedelta, now: datetime) -> Found | None:
        """Return the event that no run has succeeded for longer than `limit`; None if one has.

        Its id is that of the last successful run, so that there is one event however long it lasts.
        """
        with suppress(DamagedEntry):
            if last := stale_since(Ledger(self.store, dataset), limit, now):
                values = {"sentence": last.sentence(limit, now), "run": last.run}
                return Found(f"{dataset}/{STALE}/{last.run}", STALE, dataset, last.time + limit, values)
        return None

    def late(self, dataset: str, due: datetime | None, now: datetime) -> Found | None:
        """Return the event that a run has been due for an hour and has not started; None if none has."""
        if due is None or now - due < _LATE:
            return None
        values = {"sentence": late_sentence(due, self.store.command("up", BESIDE))}
        return Found(f"{dataset}/{STALE}/due-{due:%Y%m%dT%H%M%S}", STALE, dataset, due, values)

    def event(self, found: Found) -> Event:
        """Return an event with all that a message says of it."""
        values = found.values
        version = _number(values.get("version"))
        return Event(
            id=found.id,
            kind=found.kind,
            dataset=found.dataset,
            time=found.time.isoformat(timespec="milliseconds"),
            sentence=str(values.get("sentence") or _sentence(found)),
            command=self._command(found),
            store=self.store.address,
            run=values.get("run") if found.kind not in _BY_HAND.values() else None,
            version=version,
            champion=_number(values.get("champion")),
            test_accuracy=values.get("test_accuracy") or _accuracy(Registry(self.store, found.dataset), version),
            report=self._report(found),
            payload=values,
        )

    def _recent(
        self, folder: str, names: Sequence[str], since: datetime, read: Callable[[str], _Read]
    ) -> Iterator[Found]:
        """Yield the events of the records since a time; a damaged one, which `verify` reports, is left out."""
        known, self._records[folder] = self._records.get(folder, {}), {}
        for name in names[: -_LOOKED_AT - 1 : -1]:
            with suppress(DamagedEntry):
                record = self._records[folder][name] = known.get(name) or read(name)
                if record.time and record.time < since - _DISORDER:
                    return
                yield from (event for event in record.events if event.time >= since)

    def _run(self, dataset: str, name: str, record: Mapping[str, Any]) -> _Read:
        kind = _kind_of(record)
        events = [_found(f"{dataset}/runs/{name}", kind, record)] if kind else []
        # A run that was killed after its decision has only recorded that.
        if kind == "crashed" and record.get("version"):
            decision = Registry(self.store, dataset).decision_of(str(record.get("run")))
            decided = _kind_of({"state": decision.get("outcome")}) if decision else None
            if decision and decided:
                events.append(_found(f"{dataset}/decided/{name}", decided, {**decision, "time": record["time"]}))
        return _Read(time_of(record), tuple(events))

    def _command(self, found: Found) -> str:
        if given := found.values.get("command"):
            return str(given)
        words = f"status {found.dataset}"
        if found.kind in _BY_HAND.values():
            words = f"registry history {found.dataset}"
        elif found.values.get("report"):
            words = f"report {found.dataset} {found.values.get('run')}"
        # The reader may have no variable that names the store.
        return self.store.command(words, BESIDE)

    def _report(self, found: Found) -> str | None:
        key = found.values.get("report")
        if not isinstance(key, str):
            return None
        # Of an entry, which may have been removed.
        with suppress(IdxflowError, OSError):
            return self.store.get(found.dataset, "publish", key.rpartition("/")[2], Report).entry.where(HTML)
        return None


def _decision(dataset: str, name: str, ledger: Ledger) -> _Read:
    record = ledger.record("decisions", name)
    kind = _BY_HAND.get(str(record.get("outcome")))
    return _Read(time_of(record), (_found(f"{dataset}/decisions/{name}", kind, record),) if kind else ())


def _drift(dataset: str, number: int, drifts: Drifts) -> _Read:
    record = drifts.record(number)
    values = {**record["values"], "champion": record["champion"], "time": record["time"]}
    is_event = record["drifted"]
    return _Read(time_of(record), (_found(f"{dataset}/{DRIFTS}/{number}", "drifted", values),) if is_event else ())


def _found(name: str, kind: str, values: Mapping[str, Any]) -> Found:
    kept = {key: value for key, value in values.items() if key not in _LARGE}
    return Found(name.removesuffix(".json"), kind, name.partition("/")[0], time_of(values) or datetime.now(UTC), kept)


def _kind_of(record: Mapping[str, Any]) -> str | None:
    """Return the kind of event that a run's end is; None if nobody needs to be told."""
    state = record.get("state")
    if state == "refused":
        error = record.get("error") or {}
        return "data-refused" if error_class(str(error.get("kind"))).refuses == "data" else "model-refused"
    return state if state in _OF_RUNS else None


def _sentence(found: Found) -> str:
    versions = found.values.get("versions")
    if found.kind == "retired" and isinstance(versions, list):
        return f"`gc` no longer keeps the models of {', '.join(f'v{number}' for number in versions)}"
    return found.kind


def _accuracy(registry: Registry, version: int | None) -> float | None:
    with suppress(IdxflowError):
        return registry.version(version).test_accuracy if version else None
    return None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None
