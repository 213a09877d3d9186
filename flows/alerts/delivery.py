"""Send what is due, and remember it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flows.alerts import settings
from flows.alerts.event import TEST, Event
from flows.alerts.found import STALE, Found, History
from flows.alerts.progress import WINDOW, Busy, Progress, alone
from flows.alerts.receiver import NotDelivered
from flows.alerts.settings import Alert
from flows.terminal.output import remark
from storage.errors import IdxflowError, StoreError
from storage.opening import open_store
from storage.store import Store, store_address

SEND_SECONDS = 120.0
"""How long `idxflow alerts send` may take for one alert."""
_TEST_SECONDS = 30.0
_PATIENCE_SECONDS = 10.0
"""How long a command of a person waits for receivers, after it has done and printed everything else."""


@dataclass(frozen=True)
class Delivery:
    """What was done for one alert."""

    alert: str
    sent: int
    problem: str | None
    """Why something was not delivered; None if all was."""


def tell(store: str | None, dataset: str) -> None:
    """Send what has happened to a data set, at the end of a command that may have changed it. Never raises.

    What cannot be sent now is left to `idxflow up`, to `idxflow alerts send`, and to the next such command.

    Args:
        store: its address; None: the usual one. It is not opened if there are no alerts.
        dataset: its name.
    """
    try:
        if not settings.exist():
            return
        deadline = time.monotonic() + _PATIENCE_SECONDS
        if not (alerts := settings.alerts(store_address(store))):
            return
        history = History(open_store(store))
        for alert in alerts:
            delivery = deliver(alert, history, {dataset: None}, max(deadline - time.monotonic(), 0))
            if delivery.problem:
                remark(f"alert {alert.name}: {delivery.problem}; `idxflow alerts list` shows what becomes of it")
    except (IdxflowError, OSError) as error:
        remark(f"no alert was sent: {error}")


def deliver(alert: Alert, history: History, datasets: Mapping[str, datetime | None], seconds: float) -> Delivery:
    """Send an alert's messages about data sets that are due now, until one fails or the time is over.

    Args:
        datasets: by their names, when the next run of each is due (UTC); None: unknown, or none is.
        seconds: how long that may take.

    Raises:
        OSError: what was sent cannot be noted, so nothing is sent.
    """
    path = progress_path(alert)
    deadline = time.monotonic() + seconds
    sent, problem = 0, None
    with suppress(Busy), alone(path, min(seconds, _PATIENCE_SECONDS)):
        progress = Progress(path)
        for found in _due(alert, history, datasets, progress):
            if time.monotonic() >= deadline:
                problem = "more messages are to be sent than there was time for"
                break
            # What follows would meet the same receiver: it is left for the next time.
            problem = _attempt(alert, history.event(found), progress, deadline - time.monotonic())
            if problem:
                break
            sent += 1
    return Delivery(alert.name, sent, problem)


def send_test(alert: Alert, store: Store) -> str | None:
    """Send a message that says that it is a test; return why it was not delivered, or None."""
    now = _now()
    event = Event(
        id=f"{TEST}/{now:%Y%m%dT%H%M%S.%fZ}",
        kind=TEST,
        dataset=alert.datasets[0] if alert.datasets else "idxflow",
        time=now.isoformat(timespec="milliseconds"),
        sentence=f"the alert {alert.name} works: it tells of {', '.join(alert.events)}",
        command=store.command("status"),
        store=store.address,
    )
    try:
        return alert.receiver.send(event, _TEST_SECONDS) or None
    except NotDelivered as error:
        return str(error)


def progress_path(alert: Alert) -> Path:
    """Return the path of the file of what an alert has sent."""
    return settings.folder() / "alerts" / f"{alert.name}.json"


def troubles(store: Store) -> list[tuple[str, str]]:
    """Return the alerts of a store whose last message was not delivered: the name of each, and why.

    Raises:
        ConfigError: the alerts cannot be read.
        PrefectFailed: Prefect's settings cannot be read.
    """
    each = ((alert.name, Progress(progress_path(alert)).trouble) for alert in settings.alerts(store.address))
    return [(name, trouble) for name, trouble in each if trouble]


def _due(
    alert: Alert, history: History, datasets: Mapping[str, datetime | None], progress: Progress
) -> Iterator[Found]:
    now = _now()
    since = max(datetime.fromisoformat(alert.added), now - WINDOW)
    for dataset, due in datasets.items():
        with suppress(StoreError):
            events = history.found(dataset, since)
            if alert.wants(STALE, dataset):
                overdue = (history.stale(dataset, alert.limit, now), history.late(dataset, due, now))
                events += filter(None, overdue)
            for found in events:
                told = progress.told.get(found.id)
                if alert.wants(found.kind, dataset) and (told is None or told.is_due(now)):
                    yield found


def _attempt(alert: Alert, event: Event, progress: Progress, seconds: float) -> str | None:
    """Try to send a message; return why it was not delivered, or None."""
    progress.begin(event.id, event.title, event.time, _now())
    try:
        problem = alert.receiver.send(event, seconds)
    except NotDelivered as error:
        note = progress.put_off if error.here else progress.failed
        note(event.id, str(error), _now())
        return str(error)
    progress.sent(event.id, problem, _now())
    return None


def _now() -> datetime:
    return datetime.now(UTC)
