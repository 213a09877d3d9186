"""Send alerts, and Prefect's events of what happens without Prefect, for `idxflow up`."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import NAMESPACE_URL, uuid5

from flows.alerts import delivery, settings
from flows.alerts.event import Event
from flows.alerts.found import History
from flows.alerts.progress import Progress, Told
from flows.alerts.receiver import NotDelivered
from flows.alerts.settings import Alert
from flows.health import scheduled
from storage.drifts import DRIFTS
from storage.errors import IdxflowError
from storage.store import Store

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_GLANCE_SECONDS = 5
"""Between two looks at whether anything has changed."""
_RETRY_SECONDS = 30
_LOOK_SECONDS = 300
"""Between two looks whether or not anything seems to have changed: a data set becomes stale by itself."""
_SECONDS = 120.0
"""How long messages of one alert may take at a time."""
_QUERY_SECONDS = 10
_BEGAN = "began"
_WITHOUT_PREFECT = ("forced", "rolled-back", "retired", "stale", "crashed", "failed")

Connect = Callable[[float], AbstractContextManager["SyncPrefectClient"]]
"""Returns a client of Prefect's server with a timeout in seconds."""


class Watch:
    """Looks for events in one store, in a thread of its own, which may wait for receivers."""

    def __init__(self, store: Store, connect: Connect, api: str) -> None:
        self._store, self._history = store, History(store)
        self._prefect = _of_prefect(store, connect, api)
        self._seen: object = None
        """The state of the ledgers at the last look."""
        self._glanced = self._looked = -float(_LOOK_SECONDS)
        self._thread: threading.Thread | None = None
        self._problems: dict[str, str] = {}
        self._said: dict[str, str] = {}

    def look(self) -> Iterator[str]:
        """Begin to send what is due, unless that is going on; yield what is new about messages not delivered."""
        problems = dict(self._problems)
        for name, problem in problems.items():
            if self._said.get(name) != problem:
                yield f"{name}: {problem}"
        self._said = problems
        if self._is_due(time.monotonic()):
            self._looked = time.monotonic()
            self._thread = threading.Thread(target=self._send, name="idxflow-alerts", daemon=True)
            self._thread.start()

    def _is_due(self, now: float) -> bool:
        if (self._thread and self._thread.is_alive()) or now - self._glanced < _GLANCE_SECONDS:
            return False
        self._glanced = now
        since = now - self._looked
        if since >= _LOOK_SECONDS or (self._problems and since >= _RETRY_SECONDS):
            return True
        try:
            seen = _state(self._store)
        except (IdxflowError, OSError):
            return False
        is_new, self._seen = seen != self._seen, seen
        return is_new

    def _send(self) -> None:
        problems = {}
        try:
            datasets = self._datasets()
            for alert in [self._prefect, *settings.alerts(self._store.address)]:
                found = delivery.deliver(alert, self._history, datasets, _SECONDS)
                # Of Prefect's server, other lines say that it does not answer.
                if found.problem and alert is not self._prefect:
                    problems[f"alert {alert.name}"] = found.problem
        except (IdxflowError, OSError) as error:
            problems["no alert can be sent"] = str(error)
        self._problems = problems

    def _datasets(self) -> dict[str, datetime | None]:
        """Return the data sets, by name, with the time when the next run of each is due."""
        due, _ = scheduled()
        return {name: due.get(name) for name in (*self._store.datasets(), *due)}


class _PrefectEvents:
    """Prefect's server, which gets the events that no flow run has emitted."""

    kind: ClassVar[str] = "prefect"

    def __init__(self, connect: Connect) -> None:
        self._connect = connect

    @property
    def shown(self) -> str:
        return "Prefect's server"

    def to_json(self) -> Mapping[str, Any]:
        return {}

    def send(self, event: Event, seconds: float) -> str:
        if _was_emitted(event):
            return ""
        try:
            with self._connect(min(seconds, _QUERY_SECONDS)) as client:
                # The same id each time: the server keeps an event once.
                answer = client._client.post("/events", json=[_values(event)])
                answer.raise_for_status()
        except Exception as error:
            # The client may raise anything.
            raise NotDelivered(f"no event was sent ({type(error).__name__})", here=True) from None
        return ""


def _was_emitted(event: Event) -> bool:
    """Return whether a flow run has emitted the event itself."""
    # `flows.endings` records those that had no process, or none any more.
    return event.kind == "failed" and (event.payload.get("error") or {}).get("kind") != "Failed"


def _values(event: Event) -> dict[str, Any]:
    from prefect.events.schemas.events import Event as PrefectEvent

    from flows.events import NAMES, resource_of

    values = {
        "event": NAMES[event.kind],
        "resource": resource_of(event.dataset, event.payload),
        "payload": {**event.payload, "sentence": event.sentence},
        "occurred": event.time,
        "id": uuid5(NAMESPACE_URL, f"{event.store} {event.id}"),
    }
    dumped: dict[str, Any] = PrefectEvent.model_validate(values).model_dump(mode="json")
    return dumped


def _of_prefect(store: Store, connect: Connect, api: str) -> Alert:
    """Return the alert for Prefect's server; what happened before its first `up` is not told."""
    name = f"prefect-{hashlib.sha256(f'{store.address} {api}'.encode()).hexdigest()[:12]}"
    now = datetime.now(UTC)
    alert = Alert(name, store.address, _PrefectEvents(connect), now.isoformat(), _WITHOUT_PREFECT)
    path = delivery.progress_path(alert)
    began = Progress(path).told
    with suppress(OSError):
        if not path.exists():
            first = Told("sent", "", alert.added, 1, alert.added)
            Progress(path).note(_BEGAN, first, now)
            return alert
    # It is forgotten only when it is so old that no event before it is looked at.
    added = began[_BEGAN].time if _BEGAN in began else datetime.fromtimestamp(0, UTC).isoformat()
    return Alert(name, store.address, alert.receiver, added, _WITHOUT_PREFECT)


def _state(store: Store) -> object:
    """Return what differs after something was added to a ledger of a folder, or after an alert was changed.

    In object storage that would take requests, so only time decides there.
    """
    places: list[Path] = [settings.folder() / settings.FILE]
    if not store.leases:
        ledgers = (store.dataset(name) / "ledger" for name in store.datasets())
        places += [ledger / part for ledger in ledgers for part in ("runs", "decisions", DRIFTS)]
    return [(path, _changed(path)) for path in places]


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
