"""The memory of `idxflow up`: people's changes on the server, so that they survive the loss of its database.

It is one file in `up`'s own folder, written only while the server has everything that `up` created there, so the
empty state of a new database is never saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storage.files import read_json, write_json


@dataclass(frozen=True)
class Applied:
    """The schedules of a deployment that were last applied from `prefect.yaml`, or from a user's own file."""

    digest: str
    slugs: tuple[str, ...] | None = None
    """None if an earlier version of idxflow applied them, which did not record slugs."""
    store: str = ""
    """The store that lists the user's file; empty for `prefect.yaml`."""

    @classmethod
    def from_json(cls, values: Any) -> Applied:
        """Return an instance from the output of `asdict`, or from the digest that earlier versions stored."""
        if isinstance(values, str):
            return cls(values)
        slugs = None if values["slugs"] is None else tuple(values["slugs"])
        return cls(values["digest"], slugs, values.get("store", ""))

    def includes(self, slug: str | None) -> bool:
        """Return whether a schedule is one of these. Schedules that people make in the UI have no slug."""
        return slug is not None and (self.slugs is None or slug in self.slugs)


@dataclass(frozen=True)
class Changed:
    """The state of a deployment that people may have changed."""

    paused: bool
    schedules: list[dict[str, Any]]
    applied: Applied


@dataclass(frozen=True)
class Remembered:
    """The state of the server when it was last complete."""

    deployments: Mapping[str, Changed] = field(default_factory=dict)
    pool: Mapping[str, Any] = field(default_factory=dict)
    """The users' settings of the work pool."""
    automation_enabled: bool = True


class Memory:
    """The file that stores a `Remembered`."""

    def __init__(self, folder: Path, api: str, pool: str) -> None:
        name = hashlib.sha256(f"{api} {pool}".encode()).hexdigest()[:12]
        self.path = folder / f"remembered-{name}.json"

    def read(self) -> Remembered | None:
        """Return the remembered state, or None if nothing readable was remembered."""
        try:
            values = read_json(self.path)
        except (OSError, ValueError):
            return None
        deployments = {
            name: Changed(changed["paused"], changed["schedules"] or [], Applied.from_json(changed["applied"]))
            for name, changed in values.pop("deployments").items()
        }
        return Remembered(deployments, **values)

    def write(self, now: Remembered) -> None:
        """Replace the remembered state if it differs."""
        if now != self.read():
            write_json(self.path, asdict(now))
