"""`idxflow status`: is every data set's model fresh and its retraining well? From the ledger; the server is only asked
when the next run is due."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from flows import datasets
from flows.commands.options import AsJson, StoreFolder
from flows.commands.output import say_json
from flows.endings import settle
from flows.settings import store_root
from storage.errors import PrefectFailed
from storage.ledger import TOLERANCE, Ledger
from storage.records import CUT_OFF
from storage.registry import Registry
from storage.store import Store

MAX_AGE_DAYS = 8
"""A weekly schedule, and a day in which somebody can see to it."""
GOOD = ("promoted", "kept", "unchanged")
BAD = ("refused", "failed", *CUT_OFF)
LATE = timedelta(minutes=2)
"""How long after its time a run may begin: workers ask for what is due every few seconds."""
SHOWN = 5


@dataclass(frozen=True)
class Champion:
    """The model in use."""

    version: int
    test_accuracy: float
    since: str
    """ISO 8601, UTC."""
    days: float


@dataclass(frozen=True)
class Run:
    """One run, as the ledger has it."""

    run: str
    time: str
    """When it ended, ISO 8601, UTC; when it began, where nobody knows more."""
    state: str
    sentence: str
    seconds: float | None
    """None where nobody knows when it ended."""


@dataclass(frozen=True)
class Health:
    """How one data set is doing."""

    dataset: str
    champion: Champion | None
    runs: tuple[Run, ...]
    """The newest first."""
    next_run: str | None
    """ISO 8601, UTC; None if nothing is scheduled, or nobody can say."""
    problems: tuple[str, ...]


def status(
    dataset: str | None = None,
    *,
    max_age: Annotated[
        float, Parameter(help="Days without a successful run after which a data set is stale.", validator=Number(gt=0))
    ] = MAX_AGE_DAYS,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Show the champion, its age, the last runs and the next run of each data set. Exit code 1 if one needs attention.

    A data set needs attention if no run has succeeded for --max-age days, if the last run failed, was refused or was
    cut off, if a run is late because no worker takes it, if there is no champion, or if the last good run has a time in
    the future, so that its age is unknown.

    Args:
        dataset: Show only this data set.
    """
    opened = Store(store_root(store))
    names = opened.datasets()
    now = datetime.now(UTC)
    scheduled, remark = _scheduled()
    # One that has never run is known by its schedule alone.
    names += sorted(set(scheduled) - set(names))
    if dataset is not None:
        datasets.check_known(opened, dataset, names)
    asked = [dataset] if dataset else names
    healths = [_health(opened, name, scheduled.get(name), timedelta(days=max_age), now) for name in asked]
    if as_json:
        values = {"store": str(opened.root), "schedule": remark, "datasets": [asdict(health) for health in healths]}
        say_json(values)
    else:
        _show(opened, healths, remark, now)
    return 1 if any(health.problems for health in healths) else 0


def _health(store: Store, name: str, due: datetime | None, limit: timedelta, now: datetime) -> Health:
    settle(store, name)
    ledger = Ledger(store, name)
    runs = [_run(values) for values in islice(ledger.newest("runs"), SHOWN)]
    # Only as far back as the last good one.
    good = (run for values in ledger.newest("runs") if (run := _run(values)).state in GOOD)
    champion = _champion(store, name, now)
    return Health(
        name,
        champion,
        tuple(runs),
        due.isoformat(timespec="seconds") if due else None,
        (*_problems(runs, good, champion, limit, now), *_late(due, now, store.command("up"))),
    )


def _problems(
    runs: Sequence[Run], good: Iterator[Run], champion: Champion | None, limit: timedelta, now: datetime
) -> list[str]:
    """Return what needs help; `good` are the runs that ended well, newest first."""
    problems = []
    if champion is None and runs:
        problems.append("there is no champion yet; expected one after the first run")
    if runs and runs[0].state in BAD:
        problems.append(f"the last run was {runs[0].state}: {runs[0].sentence}")
    last = next(good, None)
    if last and _is_ahead(_time(last), now):
        problems.append(
            f"the last good run has a time in the future, {_clock(_time(last))} ({_ago(now - _time(last))}): "
            "this clock was wrong then or is now; set it right, and run again"
        )
        # What a wrong clock says is no proof that the model is fresh; the one before may be.
        last = next((run for run in good if not _is_ahead(_time(run), now)), None)
    age = now - _time(last) if last else None
    if age and age > limit:
        problems.append(f"stale: the last good run was {_ago(age)}, expected one at least every {_span(limit)}")
    return problems


def _late(due: datetime | None, now: datetime, up: str) -> Iterator[str]:
    if due and now - due > LATE:
        yield f"a run has been due since {_clock(due)} and has not begun: no worker takes it; start one: {up}"


def _time(run: Run) -> datetime:
    return datetime.fromisoformat(run.time)


def _is_ahead(time: datetime, now: datetime) -> bool:
    return time > now + TOLERANCE


def _champion(store: Store, name: str, now: datetime) -> Champion | None:
    registry = Registry(store, name)
    version = registry.champion()
    if version is None:
        return None
    turns = (turn for turn in reversed(registry.outline()) if turn.changed and turn.after == version.number)
    turn = next(turns, None)
    since = turn.time if turn else datetime.fromisoformat(version.time)
    days = round((now - since) / timedelta(days=1), 3)
    return Champion(version.number, version.test_accuracy, since.isoformat(timespec="seconds"), days)


def _run(values: Mapping[str, Any]) -> Run:
    seconds = values["seconds"]
    # Of a run whose process is gone, the record has the time when that was noticed.
    time = values["time"] if seconds is not None else values.get("started") or values["time"]
    return Run(values["run"], time, values["state"], values["sentence"], seconds)


def _scheduled() -> tuple[dict[str, datetime], str | None]:
    """Return when each data set is due next, by name; and why nobody can say, if so."""
    from flows.service.client import asked

    waiting = {"state": {"type": {"any_": ["SCHEDULED"]}}}
    due: dict[str, datetime] = {}
    try:
        with asked() as ask:
            runs = ask("/flow_runs/filter", {"flow_runs": waiting, "sort": "NEXT_SCHEDULED_START_TIME_ASC"})
            names = {found["id"]: found["parameters"].get("dataset") for found in ask("/deployments/filter", {})}
    except PrefectFailed as error:
        return {}, str(error)
    for run in runs:
        name = run["parameters"].get("dataset") or names.get(run["deployment_id"])
        if isinstance(name, str) and run["next_scheduled_start_time"]:
            due.setdefault(name, datetime.fromisoformat(run["next_scheduled_start_time"]))
    return due, None


def _show(store: Store, healths: Sequence[Health], remark: str | None, now: datetime) -> None:
    for health in healths:
        print(f"{health.dataset}: {'needs attention' if health.problems else 'ok'}")
        for label, said in _lines(health, now):
            print(f"  {label:<9} {said}")
    if not healths:
        print(f"nothing in {store.root} yet; start with `{store.command('run')}`")
    if remark:
        print(f"the next runs are unknown: {remark}")


def _lines(health: Health, now: datetime) -> list[tuple[str, str]]:
    lines = [("problem", problem) for problem in health.problems]
    champion = health.champion
    if champion:
        since = datetime.fromisoformat(champion.since)
        said = f"v{champion.version}, {champion.test_accuracy:.2%} on test, since {_clock(since)} ({_ago(now - since)})"
        lines.append(("champion", said))
    for label, run in zip(("last run", *[""] * SHOWN), health.runs, strict=False):
        when = _time(run)
        took = f"{run.seconds:.1f} s" if run.seconds is not None else run.state
        lines.append((label, f"{_clock(when)} ({_ago(now - when)}), {took}, {run.sentence}"))
    if not health.runs:
        lines.append(("last run", "none yet"))
    if health.next_run:
        due = datetime.fromisoformat(health.next_run)
        lines.append(("next run", f"{_clock(due)} ({'late' if due < now else 'in ' + _span(due - now)})"))
    return lines


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _ago(age: timedelta) -> str:
    return f"{_span(age)} ago" if age >= -TOLERANCE else f"in {_span(-age)}"


def _span(span: timedelta) -> str:
    """Return a time span in its largest whole unit: `4 days`, `3 hours`, `12 minutes`."""
    minutes = max(0, round(span.total_seconds() / 60))
    for unit, size in (("day", 1440), ("hour", 60), ("minute", 1)):
        if minutes >= 2 * size or (minutes >= size and unit == "minute") or (minutes == size and unit == "day"):
            count = minutes // size
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "less than a minute"
