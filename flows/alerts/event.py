"""What has happened to a data set, as it is told to people and to programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from flows.terminal.text import percent, printable
from storage.words import shortened

SCHEMA = "idxflow.alert/1"
"""The version of `Event.to_json`. Fields may be added to it; a changed or removed one makes it another version."""
TEST = "test"
"""The kind of the event that `idxflow alerts test` sends."""
TITLES = {
    "promoted": "new champion{version}",
    "kept": "champion kept",
    "model-refused": "model refused",
    "data-refused": "data refused",
    "failed": "run failed",
    "crashed": "run crashed",
    "forced": "champion{version} by hand",
    "rolled-back": "rolled back to{version}",
    "retired": "models removed",
    "stale": "no successful run for too long",
    "drifted": "new data differs",
    TEST: "a test",
}
"""The headline of each kind of event."""
USUAL = tuple(kind for kind in TITLES if kind not in ("kept", "retired", TEST))
"""The kinds that are told unless an alert says otherwise: what somebody should know of."""
_LONGEST_TITLE = 150
_LONGEST = 2000


@dataclass(frozen=True)
class Event:
    """Something that has happened to a data set."""

    id: str
    """The same each time that the event is sent; unique in a store."""
    kind: str
    """A key of `TITLES`."""
    dataset: str
    time: str
    """When it was recorded, ISO 8601, UTC."""
    sentence: str
    command: str
    """The next command, ready to be typed."""
    store: str
    """The address of the store."""
    run: str | None = None
    version: int | None = None
    """The version it is about."""
    champion: int | None = None
    """The champion after it."""
    test_accuracy: float | None = None
    """In [0, 1], of the version."""
    report: str | None = None
    """Path or address of the HTML page."""
    payload: Mapping[str, Any] = field(default_factory=dict)
    """What Prefect's event has, too: JSON values as recorded."""

    @property
    def title(self) -> str:
        """The headline, on one line: `mnist: new champion v2`."""
        version = f" v{self.version}" if self.version else ""
        words = TITLES[self.kind].format(version=version)
        return shortened(_line(f"{self.dataset}: {words}"), _LONGEST_TITLE)

    @property
    def text(self) -> str:
        """The message for people: a few lines, the headline first."""
        lines = [self.title, shortened(_line(self.sentence), _LONGEST)]
        if self.test_accuracy is not None:
            version = f"v{self.version}: " if self.version else ""
            lines.append(f"accuracy: {version}{percent(self.test_accuracy)} on the test split")
        if self.champion:
            lines.append(f"champion: v{self.champion}")
        if self.report:
            lines.append(f"report: {_line(self.report)}")
        return "\n".join([*lines, f"next: {_line(self.command)}"])

    def to_json(self) -> dict[str, Any]:
        """Return what a webhook and a command get (docs/how-to/notifications.md)."""
        names = [each.name for each in fields(self) if each.name not in ("kind", "payload")]
        values = {name: getattr(self, name) for name in names}
        return {"schema": SCHEMA, "event": self.kind, "title": self.title, "text": self.text, **values}


def _line(text: str) -> str:
    """Return text on one line, without control characters: a name or a reason may come from a stranger."""
    return printable(" ".join(text.split()))
