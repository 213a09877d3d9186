"""What an alert has sent, and what it has tried to send.

Each attempt is noted before and after it is made. So an event is told at least once if its receiver takes it, and a
second time only if this process ends between the two, or if the receiver took a message and did not say so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from storage.files import locked, read_json, write_json

WINDOW = timedelta(days=7)
"""How long an event is worth telling, and how long it is remembered that it was told."""
WAITS = (30, 120, 600, 3600, 4 * 3600)
"""Seconds from one attempt to the next; after the last of them nothing more is tried."""
_LOCK_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Told:
    """What became of one event."""

    state: Literal["sent", "waiting", "failed"]
    """`failed`: every attempt has failed, and no other will be made."""
    title: str
    time: str
    """When the event happened, ISO 8601, UTC."""
    attempts: int
    at: str
    """When the last attempt was made, ISO 8601, UTC."""
    problem: str = ""
    """What went wrong at the last attempt; empty if nothing did."""

    def is_due(self, now: datetime) -> bool:
        """Return whether it is to be tried at this time (UTC)."""
        if self.state != "waiting":
            return False
        wait = WAITS[min(max(self.attempts, 1), len(WAITS)) - 1]
        # A clock that was set back must not delay it for long.
        waited = now - datetime.fromisoformat(self.at)
        return waited < timedelta(0) or waited >= timedelta(seconds=wait)


class Busy(Exception):
    """Another process is sending for this alert. Never shown to people."""


class Progress:
    """What one alert has sent, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told = _read(path)
        """By the id of the event."""

    def note(self, event: str, told: Told, now: datetime) -> None:
        """Note what became of an event, and forget those that nobody asks about any more.

        Raises:
            OSError: it cannot be written.
        """
        # An event of a data set that is stale has the same id as long as it is, which may be long.
        alike = _of_stale(event)
        kept = {
            name: each
            for name, each in self.told.items()
            if _of_stale(name) or now - datetime.fromisoformat(each.time) < WINDOW + timedelta(days=1)
        }
        kept = {name: each for name, each in kept.items() if not alike or _of_stale(name) != alike}
        self.told = {**kept, event: told}
        write_json(self.path, {"told": {name: asdict(each) for name, each in self.told.items()}})

    def begin(self, event: str, title: str, time: str, now: datetime) -> None:
        """Note that an attempt is being made."""
        before = self.told.get(event) or Told("waiting", title, time, 0, "")
        attempt = replace(before, attempts=before.attempts + 1, at=_text(now), problem="the attempt did not end")
        self.note(event, attempt, now)

    def sent(self, event: str, problem: str, now: datetime) -> None:
        """Note that the attempt succeeded, and what went wrong nevertheless, if anything."""
        self.note(event, replace(self.told[event], state="sent", at=_text(now), problem=problem), now)

    def failed(self, event: str, problem: str, now: datetime) -> None:
        """Note that the attempt failed."""
        told = self.told[event]
        state: Literal["waiting", "failed"] = "waiting" if told.attempts <= len(WAITS) else "failed"
        self.note(event, replace(told, state=state, at=_text(now), problem=problem), now)

    def put_off(self, event: str, problem: str, now: datetime) -> None:
        """Note that the attempt could not be made in this process: another one may be able to."""
        told = self.told[event]
        self.note(event, replace(told, attempts=told.attempts - 1, at=_text(now), problem=problem), now)

    def newest(self, most: int) -> list[Told]:
        """Return what became of the newest events, the last attempt first."""
        return sorted(self.told.values(), key=lambda told: told.at, reverse=True)[:most]

    def to_json(self) -> list[dict[str, Any]]:
        """Return what became of each event, the last attempt first, for `--json`."""
        names = sorted(self.told, key=lambda name: self.told[name].at, reverse=True)
        return [{"id": name, **asdict(self.told[name])} for name in names]

    @property
    def trouble(self) -> str | None:
        """What keeps messages from being delivered, if the last attempt failed; None if it succeeded."""
        last = max(self.told.values(), key=lambda told: told.at, default=None)
        if last is None or not last.problem:
            return None
        if last.state == "sent":
            return last.problem
        missing = [told for told in self.told.values() if told.state != "sent"]
        again = "no more attempts" if last.state == "failed" else "it will be tried again"
        count = "1 message is" if len(missing) == 1 else f"{len(missing):,} messages are"
        return f"{count} not delivered: {last.problem}; {again}"


@contextmanager
def alone(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock of an alert's progress while the block runs.

    Args:
        path: of the progress.
        seconds: how long to wait for another process.

    Raises:
        Busy: it still has the lock then.
        OSError: the lock file cannot be written.
    """

    deadline = time.monotonic() + seconds
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(path.with_suffix(".lock"), _raise_busy))
                break
            except Busy:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_LOCK_POLL_SECONDS)
        yield


def _raise_busy() -> None:
    raise Busy


def _read(path: Path) -> dict[str, Told]:
    try:
        values: Mapping[str, Any] = read_json(path)["told"]
        return {name: Told(**each) for name, each in values.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        # To tell something twice is better than to tell nothing.
        return {}


def _of_stale(event: str) -> str | None:
    """Return what all events have in common that a data set is stale, for one reason; None for other events."""
    dataset, _, name = event.partition("/stale/")
    return f"{dataset} {name.startswith('due-')}" if name else None


def _text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")
