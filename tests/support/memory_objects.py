"""Objects in memory, with the semantics of object storage: no folders, no rename, no lock, only put-if-absent.

Calls are counted, and a hook can stop before or after any of them: for crash matrices, races that a test decides, and
numbers of requests.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

from storage.cloud_store import CloudStore
from storage.objects.protocol import Found, Listing, always
from storage.store import Store

T = TypeVar("T")

_STAMPS = count(1)

CHANGING = ("create", "put", "upload", "delete")
"""The operations that change something."""


@dataclass(frozen=True)
class Operation:
    """One operation on the objects."""

    number: int
    """Counted from 1, over all operations."""
    name: str
    """Of the method: `get`, `create`, …"""
    key: str
    """The key or the folder it is about; of `delete`, one key: several are removed one after the other."""

    @property
    def changes(self) -> bool:
        return self.name in CHANGING


class Stopped(BaseException):
    """What `stopping_at` raises: the process is gone. No `except Exception` catches it."""


Hook = Callable[[Operation], None]


def nothing(_: Operation) -> None:
    """Let an operation pass."""


@dataclass(frozen=True)
class _Object:
    data: bytes
    stamp: int
    written: float


@dataclass
class MemoryObjects:
    """The objects of one place; several `Store`s may share it. Safe to use from several threads."""

    address: str = "memory://bucket/store"
    before: Hook = nothing
    """Called before each operation; what it raises keeps the operation from happening."""
    after: Hook = nothing
    """Called after each operation, also one that found nothing; what it raises hides the result: a lost answer."""
    operations: list[Operation] = field(default_factory=list)
    """All operations so far, also those that the hook `before` kept from happening."""
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._objects: dict[str, _Object] = {}
        self._lock = threading.RLock()

    @property
    def counts(self) -> Counter[str]:
        """How often each operation was called."""
        return Counter(operation.name for operation in self.operations)

    def forget(self) -> None:
        """Count from 1 again."""
        self.operations.clear()

    def copy(self) -> MemoryObjects:
        """Return other objects with the same contents, without hooks."""
        other = MemoryObjects(self.address, clock=self.clock)
        other._objects = dict(self._objects)
        return other

    def shared(self) -> MemoryObjects:
        """Return the same objects as another process sees them: with its own hooks and counts."""
        other = MemoryObjects(self.address, clock=self.clock)
        other._objects, other._lock = self._objects, self._lock
        return other

    def contents(self) -> dict[str, bytes]:
        """Return all objects by key, without counting."""
        with self._lock:
            return {key: self._objects[key].data for key in sorted(self._objects)}

    def where(self, key: str) -> str:
        return f"{self.address}/{key}" if key else self.address

    def get(self, key: str, most: int | None = None) -> bytes:
        return self._done("get", key, lambda: self._at(key).data[:most])

    def range(self, key: str, start: int, stop: int) -> bytes:
        return self._done("range", key, lambda: self._at(key).data[start:stop])

    def create(self, key: str, data: bytes) -> bool:
        return self._done("create", key, lambda: key not in self._objects and self._write(key, data))

    def put(self, key: str, data: bytes) -> None:
        self._done("put", key, lambda: self._write(key, data))

    def upload(self, key: str, file: Path) -> None:
        self._done("upload", key, lambda: self._write(key, file.read_bytes()))

    def download(self, key: str, file: Path) -> None:
        data = self._done("download", key, lambda: self._at(key).data)
        with file.open("xb") as stream:
            stream.write(data)

    def list(self, folder: str) -> Listing:
        return self._done("list", folder, lambda: self._listing(folder))

    def walk(self, folder: str) -> Iterator[Found]:
        return iter(self._done("walk", folder, lambda: [*self._below(folder)]))

    def delete(self, keys: Iterable[str], check: Callable[[], None] = always) -> None:
        for key in keys:
            check()
            self._done("delete", key, partial(self._objects.pop, key, None))

    def hidden(self) -> tuple[Found, ...]:
        return self._done(
            "hidden", "", lambda: tuple(self._found(key) for key in sorted(self._objects) if key[0] == ".")
        )

    def now(self) -> float:
        return self._done("now", "", self.clock)

    def age(self, key: str) -> float | None:
        found = self._done("age", key, lambda: self._objects.get(key))
        return None if found is None else self.clock() - found.written

    def probe(self) -> None:
        """Nothing to check."""

    def _done(self, name: str, key: str, act: Callable[[], T]) -> T:
        with self._lock:
            operation = Operation(len(self.operations) + 1, name, key)
            self.operations.append(operation)
        # The hooks may use the same objects, as another process would at that moment.
        self.before(operation)
        try:
            with self._lock:
                return act()
        finally:
            self.after(operation)

    def _at(self, key: str) -> _Object:
        if key not in self._objects:
            raise FileNotFoundError(2, "No such object", self.where(key))
        return self._objects[key]

    def _write(self, key: str, data: bytes) -> bool:
        self._objects[key] = _Object(data, next(_STAMPS), self.clock())
        return True

    def _below(self, folder: str) -> Iterator[Found]:
        beginning = f"{folder}/" if folder else ""
        for key in sorted(self._objects):
            if key.startswith(beginning) and not any(part.startswith(".") for part in key.split("/")):
                yield self._found(key)

    def _found(self, key: str) -> Found:
        one = self._objects[key]
        return Found(key, len(one.data), (one.stamp,), one.written)

    def _listing(self, folder: str) -> Listing:
        depth = len(folder.split("/")) if folder else 0
        found = [*self._below(folder)]
        objects = (one for one in found if one.key.count("/") == depth)
        folders = {one.key.split("/")[depth] for one in found if one.key.count("/") > depth}
        return Listing(tuple(objects), tuple(sorted(folders)))


def stopping_at(number: int) -> Hook:
    """Return a hook that ends the process, as far as one process can show it, at an operation by its number."""

    def stop(operation: Operation) -> None:
        if operation.number == number:
            raise Stopped

    return stop


class MemoryStore(Store):
    """A store whose small objects are in memory, and which cannot keep anybody from working at the same time.

    Its entries are in `root`, as in any other.
    """

    def __init__(self, root: Path, objects: MemoryObjects) -> None:
        super().__init__(root)
        self.objects = objects

    @contextmanager
    def alone(self, dataset: str, name: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        yield


def cloud_store(cache: Path, objects: MemoryObjects | None = None) -> CloudStore:
    """Return a store all of which is in memory, with its working folder and its cache in `cache`."""
    return CloudStore(objects or MemoryObjects(), cache=cache)
