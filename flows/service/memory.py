"""What `idxflow up` remembers of the server: what people have changed there, so that a lost database does not lose it.

It is one file in `up`'s own folder. It is written only while the server has all that `up` has put there, so the
emptiness of a new database never gets into it.
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
    """The schedules of a deployment that were last taken from `prefect.yaml`."""

    digest: str
    slugs: tuple[str, ...] | None = None
    """None where an earlier version of idxflow took them, which did not note them."""

    @classmethod
    def from_json(cls, values: Any) -> Applied:
        """Return it from what `asdict` has made of it, or from the digest that earlier versions kept."""
        if isinstance(values, str):
            return cls(values)
        return cls(values["digest"], None if values["slugs"] is None else tuple(values["slugs"]))

    def made(self, slug: str | None) -> bool:
        """Return whether a schedule is one of these. Those that people make in the UI have no slug."""
        return slug is not None and (self.slugs is None or slug in self.slugs)


@dataclass(frozen=True)
class Changed:
    """How a deployment is, where people may have changed it."""

    paused: bool
    schedules: list[dict[str, Any]]
    applied: Applied


@dataclass(frozen=True)
class Remembered:
    """How the server was when it was last seen well."""

    deployments: Mapping[str, Changed] = field(default_factory=dict)
    pool: Mapping[str, Any] = field(default_factory=dict)
    """Of the work pool: what its users set."""
    automation_enabled: bool = True


class Memory:
    """The file that holds it."""

    def __init__(self, folder: Path, api: str, pool: str) -> None:
        name = hashlib.sha256(f"{api} {pool}".encode()).hexdigest()[:12]
        self.path = folder / f"remembered-{name}.json"

    def read(self) -> Remembered | None:
        """Return what was remembered; None if nothing was, or if it cannot be read."""
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
        """Remember this instead, if it is anything else."""
        if now != self.read():
            write_json(self.path, asdict(now))
