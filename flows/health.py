"""Report how fresh each data set's model is and how its retraining is doing.

All of this comes from the ledger; the server is only asked when the next run is due.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from flows import datasets, live
from flows.endings import settle
from flows.live import Live
from flows.terminal.text import minute
from storage.drifts import Drifts
from storage.errors import DamagedEntry, PrefectFailed
from storage.ledger import TOLERANCE, Ledger
from storage.records import CUT_OFF
from storage.registry import Registry, Version
from storage.store import Store

MAX_AGE_DAYS = 8
"""A weekly schedule, and a day to react."""
GOOD = ("promoted", "kept", "unchanged")
BAD = ("refused", "failed", *CUT_OFF)
LATE = timedelta(minutes=2)
"""How late a run may start: workers poll every few seconds."""
SHOWN = 5


@dataclass(frozen=True)
class ChampionStatus:
    """The model in use."""

    version: int
    test_accuracy: float
    since: str
    """ISO 8601, UTC."""
    days: float


@dataclass(frozen=True)
class RunStatus:
    """One run, as recorded in the ledger."""

    run: str
    time: str
    """When it ended, ISO 8601, UTC; when it started, if its end is unknown."""
    state: str
    sentence: str
    seconds: float | None
    """None if its end is unknown."""


@dataclass(frozen=True)
class BudgetStatus:
    """The error budget of the test split of the last decision of a run."""

    left: int
    """Decisions."""
    is_low: bool
    sentence: str


@dataclass(frozen=True)
class Health:
    """How one data set is doing."""

    dataset: str
    champion: ChampionStatus | None
    runs: tuple[RunStatus, ...]
    """Newest first."""
    next_run: str | None
    """ISO 8601, UTC; None if nothing is scheduled, or the schedule is unknown."""
    problems: tuple[str, ...]
    live: Live | None = None
    """The accuracy of the champion on predictions whose labels have come; None without any."""
    drift: Mapping[str, Any] | None = None
    """What the last look at new images has found (`Drifts.values`), if it was about this champion."""
    budget: BudgetStatus | None = None
    """None if the gate has no error budget."""


@dataclass(frozen=True)
class Overview:
    """How the data sets of a store are doing."""

    healths: tuple[Health, ...]
    schedule_unknown: str | None
    """Why the next runs are unknown; None if they are known."""


def overview(store: Store, dataset: str | None, max_age: timedelta, now: datetime) -> Overview:
    """Return how all data sets of a store are doing, or only `dataset`.

    Args:
        max_age: a data set is stale without a successful run for longer than this.
        now: UTC.

    Raises:
        ConfigError: the store has no such data set, and no run of it is scheduled.
    """
    names = store.datasets()
    due, unknown = scheduled()
    # A data set that has never run appears only in the schedule.
    names += sorted(set(due) - set(names))
    if dataset is not None:
        datasets.check_known(store, dataset, names)
    shown = [dataset] if dataset else names
    healths = [health_of(Registry(store, name), due.get(name), max_age, now) for name in shown]
    return Overview(tuple(healths), unknown)


def health_of(registry: Registry, due: datetime | None, limit: timedelta, now: datetime) -> Health:
    """Return how one data set is doing.

    Args:
        due: when its next run is due, UTC; None if none is, or if that is unknown.
        limit: it is stale without a successful run for longer than this.
        now: UTC.
    """
    store, name, ledger = registry.store, registry.dataset, registry.ledger
    settle(store, name)
    runs = [run_status(values) for values in islice(ledger.newest("runs"), SHOWN)]
    # Lazy: read only as far back as the last successful run.
    good = (run for values in ledger.newest("runs") if (run := run_status(values)).state in GOOD)
    version = registry.champion()
    champion = _champion(registry, version, now) if version else None
    found, unknown = _live(store, name, version) if version else (None, [])
    drift, not_read = _drift(store, name, version) if version else (None, [])
    budget = _budget(registry)
    used_up = [budget.sentence] if budget and not budget.left else []
    return Health(
        name,
        champion,
        tuple(runs),
        due.isoformat(timespec="seconds") if due else None,
        (
            *_problems(runs, good, champion, limit, now),
            *_late(due, now, store.command("up")),
            *unknown,
            *not_read,
            *used_up,
        ),
        found,
        drift,
        budget,
    )


def _budget(registry: Registry) -> BudgetStatus | None:
    """Return the error budget after the last decision of a run, by the gate that it was made with."""
    # Importing it takes a hundredth of a second, and most commands do not need it.
    from tasks.gate import looks

    decisions = registry.decisions()
    last = next((decision for decision in reversed(decisions) if decision.get("limits")), None)
    budget = looks.budget(last["limits"], decisions, last.get("test_digest", "")) if last else None
    if budget is None:
        return None
    sentence = looks.used_up(budget) if budget.is_used_up else looks.remaining(budget)
    return BudgetStatus(budget.left, budget.is_low, sentence)


def _live(store: Store, name: str, version: Version) -> tuple[Live | None, list[str]]:
    """Return the live accuracy if there are labels, and what keeps it from being known."""
    try:
        found = live.of_champion(store, name, version)
    except DamagedEntry as error:
        return None, [f"the accuracy on logged predictions is unknown: {error}"]
    return (found if found.labelled else None), []


def _drift(store: Store, name: str, version: Version) -> tuple[dict[str, Any] | None, list[str]]:
    """Return what looks at new images have found about a champion, and what keeps it from being known."""
    try:
        return Drifts(store, name).of_champion(version.number), []
    except DamagedEntry as error:
        return None, [f"whether new images have drifted is unknown: {error}"]


def _problems(
    runs: Sequence[RunStatus],
    good: Iterator[RunStatus],
    champion: ChampionStatus | None,
    limit: timedelta,
    now: datetime,
) -> list[str]:
    """Return what needs attention; `good` are the successful runs, newest first."""
    problems = []
    if champion is None and runs:
        problems.append("no champion yet; expected one after the first run")
    if runs and runs[0].state in BAD:
        ended = runs[0].state if runs[0].state in ("failed", "crashed") else f"was {runs[0].state}"
        problems.append(f"the last run {ended}: {runs[0].sentence}")
    last = next(good, None)
    if last and _is_ahead(time_of(last), now):
        problems.append(
            f"the last successful run has a time in the future, {minute(time_of(last))} ({ago(now - time_of(last))}): "
            "this clock was wrong then or is wrong now; correct it, then run again"
        )
        # A time from a wrong clock does not prove that the model is fresh; an earlier run may.
        last = next((run for run in good if not _is_ahead(time_of(run), now)), None)
    if last and now - time_of(last) > limit:
        problems.append(f"stale: {LastSuccess(last.run, time_of(last)).sentence(limit, now)}")
    return problems


@dataclass(frozen=True)
class LastSuccess:
    """The last run that succeeded."""

    run: str
    time: datetime
    """When it ended, UTC."""

    def sentence(self, limit: timedelta, now: datetime) -> str:
        """Return that it was longer ago than `limit`."""
        return f"the last successful run was {ago(now - self.time)}; expected one at least every {span_text(limit)}"


def stale_since(ledger: Ledger, limit: timedelta, now: datetime) -> LastSuccess | None:
    """Return the last successful run of a data set if it was longer ago than `limit`; None if it was not, or never.

    Raises:
        DamagedEntry: a record of the ledger cannot be read.
        StoreError: the ledger cannot be listed.
    """
    for values in ledger.newest("runs"):
        run = run_status(values)
        time = time_of(run)
        if run.state in GOOD and not _is_ahead(time, now):
            return LastSuccess(run.run, time) if now - time > limit else None
    return None


def _late(due: datetime | None, now: datetime, up: str) -> Iterator[str]:
    if due and now - due > LATE:
        yield late_sentence(due, up)


def late_sentence(due: datetime, up: str) -> str:
    """Return that a run should have started at a time; `up` is the command that starts a worker."""
    return f"a run has been due since {minute(due)} and has not started: no worker has taken it; start one: {up}"


def time_of(run: RunStatus) -> datetime:
    """Return `run.time` (UTC)."""
    return datetime.fromisoformat(run.time)


def _is_ahead(time: datetime, now: datetime) -> bool:
    return time > now + TOLERANCE


def _champion(registry: Registry, version: Version, now: datetime) -> ChampionStatus:
    since = champion_since(registry, version)
    days = round((now - since) / timedelta(days=1), 3)
    return ChampionStatus(version.number, version.test_accuracy, since.isoformat(timespec="seconds"), days)


def champion_since(registry: Registry, version: Version) -> datetime:
    """Return when `version`, the champion, last became it, UTC; without a decision about it, when it was registered."""
    turns = (turn for turn in reversed(registry.outline()) if turn.changed and turn.after == version.number)
    turn = next(turns, None)
    return turn.time if turn else datetime.fromisoformat(version.time)


def run_status(values: Mapping[str, Any]) -> RunStatus:
    """Return a run from its record in the ledger."""
    seconds = values["seconds"]
    # If the process of a run died, its record has the time when that was noticed.
    time = values["time"] if seconds is not None else values.get("started") or values["time"]
    return RunStatus(values["run"], time, values["state"], values["sentence"], seconds)


def scheduled() -> tuple[dict[str, datetime], str | None]:
    """Return when each data set is due next, by name, and why the schedule is unknown, if it is."""
    from flows.service.client import querying

    waiting = {"state": {"type": {"any_": ["SCHEDULED"]}}}
    due: dict[str, datetime] = {}
    try:
        with querying() as ask:
            runs = ask("/flow_runs/filter", {"flow_runs": waiting, "sort": "NEXT_SCHEDULED_START_TIME_ASC"})
            names = {
                deployment["id"]: deployment["parameters"].get("dataset")
                for deployment in ask("/deployments/filter", {})
            }
    except PrefectFailed as error:
        return {}, str(error)
    for run in runs:
        name = run["parameters"].get("dataset") or names.get(run["deployment_id"])
        if isinstance(name, str) and run["next_scheduled_start_time"]:
            due.setdefault(name, datetime.fromisoformat(run["next_scheduled_start_time"]))
    return due, None


def ago(age: timedelta) -> str:
    """Return how long ago something was, `3 days ago`; `in 3 days` for a time in the future."""
    return f"{span_text(age)} ago" if age >= -TOLERANCE else f"in {span_text(-age)}"


def span_text(span: timedelta) -> str:
    """Return a time span in its largest whole unit: `4 days`, `3 hours`, `12 minutes`."""
    minutes = max(0, round(span.total_seconds() / 60))
    for unit, size in (("day", 1440), ("hour", 60), ("minute", 1)):
        if minutes >= 2 * size or (minutes >= size and unit == "minute") or (minutes == size and unit == "day"):
            count = minutes // size
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "less than a minute"
