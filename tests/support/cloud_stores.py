"""Stores in object storage for tests without a server: the objects are in memory, and time passes as a test says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from storage.cloud_store import CloudStore
from storage.objects.leases import Leases
from tests.support.memory_objects import MemoryObjects

LIFE = 1000.0
"""Seconds that a lease lives; the thread that renews leases sleeps so long that a test never sees it wake up."""


@dataclass
class Clock:
    """A clock that stands still until a test advances it."""

    now: float = 10_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Cloud:
    """Object storage, and machines that use it."""

    folder: Path
    """Of what the machines keep."""
    clock: Clock = field(default_factory=Clock)
    """Of the storage and of all machines."""

    machines: list[CloudStore] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.objects = MemoryObjects(clock=self.clock)

    def machine(self, name: str = "here") -> CloudStore:
        """Return the store as a process of this machine sees it."""
        store = CloudStore(self.objects, Leases(self.objects, LIFE, self.clock), self.folder / name)
        self.machines.append(store)
        return store

    def close(self) -> None:
        """Let go of the files that the machines have fetched: a process has only so many descriptors."""
        for store in self.machines:
            store.cache.close()

    def at(self, objects: MemoryObjects) -> Cloud:
        """Return the same with other objects, used by machines that have kept nothing yet."""
        other = Cloud(self.folder / f"of-{len(self.machines)}", self.clock, self.machines)
        other.objects = objects
        return other
