"""The alerts of this machine's user.

    PREFECT_HOME/idxflow/alerts.json        the alerts, by name, sealed
                         alerts/NAME.json   what has been sent, see `progress`

They are not in the store: someone who may write a store that several machines share must not be able to make each of
them start a command, or send what a variable of its environment holds to another server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from flows.alerts.event import TITLES, USUAL
from flows.alerts.mail import Email
from flows.alerts.program import Program
from flows.alerts.receiver import Receiver
from flows.alerts.webhook import Slack, Webhook
from flows.health import MAX_AGE_DAYS
from flows.service import configuration
from storage.errors import ConfigError, PrefectFailed
from storage.files import locked, read_json, write_json
from storage.words import meant

FILE = "alerts.json"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_LONGEST = 40
_RECEIVERS: Mapping[str, Callable[..., Receiver]] = {each.kind: each for each in (Webhook, Slack, Email, Program)}


@dataclass(frozen=True)
class Alert:
    """Who is told of which events of one store."""

    name: str
    store: str
    """The address of the store."""
    receiver: Receiver
    added: str
    """When it was added, ISO 8601, UTC: what happened before is not told."""
    events: tuple[str, ...] = USUAL
    datasets: tuple[str, ...] = ()
    """The names of data sets; empty: all."""
    max_age: float = MAX_AGE_DAYS
    """Days without a successful run after which a data set is stale."""

    def wants(self, kind: str, dataset: str) -> bool:
        """Return whether it tells of such an event of a data set."""
        return kind in self.events and (not self.datasets or dataset in self.datasets)

    @property
    def limit(self) -> timedelta:
        return timedelta(days=self.max_age)

    def to_json(self) -> dict[str, Any]:
        """Return what is kept of it, and printed with `--json`."""
        return {
            "store": self.store,
            "kind": self.receiver.kind,
            "receiver": dict(self.receiver.to_json()),
            "added": self.added,
            "events": [*self.events],
            "datasets": [*self.datasets],
            "max_age": self.max_age,
        }


def folder() -> Path:
    """Return the folder of what idxflow keeps for this user, which need not exist yet.

    Raises:
        PrefectFailed: Prefect's settings cannot be read.
    """
    return configuration.home() / "idxflow"


def exist() -> bool:
    """Return whether there may be alerts, without reading them."""
    return (folder() / FILE).exists()


def alerts(store: str | None = None) -> list[Alert]:
    """Return the alerts, sorted by name; only those of the store at this address, if given.

    Raises:
        ConfigError: their file cannot be read.
        PrefectFailed: Prefect's settings cannot be read.
    """
    path = folder() / FILE
    try:
        found = [_alert(name, values) for name, values in sorted(read_json(path)["alerts"].items())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{path}: expected the alerts of idxflow; {problem}; remove this file, then add the alerts again"
        ) from error
    return [alert for alert in found if store in (None, alert.store)]


def add(alert: Alert) -> None:
    """Keep a new alert.

    Raises:
        ConfigError: there is one of that name, it has other text than UTF-8, or the file cannot be read.
        PrefectFailed: it cannot be written.
    """
    if not _NAME.fullmatch(alert.name) or len(alert.name) > _LONGEST:
        raise ConfigError(
            f"expected --name with at most {_LONGEST} small letters, digits and dashes; found {alert.name[:80]!r}; "
            "choose such a name"
        )
    with _changing() as found:
        if alert.name in found:
            raise ConfigError(
                f"expected a new name for the alert; {alert.name} exists; give another with --name, or remove that one "
                f"first: `idxflow alerts remove {alert.name}`"
            )
        if not _is_utf8(alert):
            raise ConfigError(
                "expected the store and the words of --run in UTF-8, as a file keeps them; found other bytes; rename "
                "what has them"
            )
        found[alert.name] = alert


def remove(name: str) -> Alert:
    """Forget an alert, and what it has sent; return it.

    Raises:
        ConfigError: there is none of that name.
        PrefectFailed: the file cannot be written.
    """
    with _changing() as found:
        alert = named(name, found.values())
        del found[alert.name]
    for ending in ("json", "lock"):
        (folder() / "alerts" / f"{name}.{ending}").unlink(missing_ok=True)
    return alert


def named(name: str, among: Iterable[Alert]) -> Alert:
    """Return the alert with a name.

    Raises:
        ConfigError: there is none.
    """
    known = {alert.name: alert for alert in among}
    if name not in known:
        names = f"found {', '.join(sorted(known))}" if known else "there is none yet"
        raise ConfigError(
            f"expected the name of an alert; {name[:80]!r} is none{meant(name, known)}; {names}; `idxflow alerts list` "
            "lists them, `idxflow alerts add` adds one"
        )
    return known[name]


def _is_utf8(alert: Alert) -> bool:
    """Return whether an alert can be written: paths and arguments of a process can be any bytes."""
    try:
        json.dumps(alert.to_json(), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _changing() -> Iterator[dict[str, Alert]]:
    """Yield all alerts under their lock; what the block makes of them is written at the end."""
    place = folder()
    try:
        for each in (place.parent, place):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(place / f".{FILE}.lock", passing=True):
            found = {alert.name: alert for alert in alerts()}
            yield found
            write_json(place / FILE, {"alerts": {name: alert.to_json() for name, alert in sorted(found.items())}})
    except OSError as error:
        raise PrefectFailed(
            f"expected to write {place / FILE}; {error.strerror}; correct that, or choose another PREFECT_HOME"
        ) from error


def _alert(name: str, values: Mapping[str, Any]) -> Alert:
    receiver = {key: tuple(value) if isinstance(value, list) else value for key, value in values["receiver"].items()}
    return Alert(
        name,
        values["store"],
        _RECEIVERS[values["kind"]](**receiver),
        values["added"],
        # A later version may know more kinds.
        tuple(kind for kind in values["events"] if kind in TITLES),
        tuple(values["datasets"]),
        float(values["max_age"]),
    )
