"""Stores in object storage whose objects are in memory, used by machines and at times that a test decides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storage.cloud_store import CloudStore
from storage.objects.leases import LIFE_SECONDS, Leases
from tests.support.memory_objects import MemoryObjects


@dataclass
class Clock:
    """A clock that stands still until it is set, that of the store and of all machines."""

    seconds: float = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds

    def outlive(self) -> None:
        """Let the leases end of everybody who does not renew them."""
        self.seconds += 2 * LIFE_SECONDS


class StillLeases(Leases):
    """Leases that are renewed only when the test does that (`renew`)."""

    def _keep_renewing(self) -> None:
        """Leave it to the test."""


def machine(objects: MemoryObjects, clock: Clock, folder: Path) -> CloudStore:
    """Return the store as a new process uses it, on the machine whose cache is in `folder`."""
    return CloudStore(objects, StillLeases(objects, clock=clock), folder)
