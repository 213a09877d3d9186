"""The operations on objects that a store needs. The only conditional one is `create`, put if absent.

Keys are paths with `/` between their parts and no leading `/`, such as `mnist/registry/versions/00000007.json`. A
folder is a common beginning of keys, given without its last `/`; it exists as long as an object is below it. Names
that begin with a dot are unfinished work, and no listing has them.

A missing object raises `FileNotFoundError` everywhere. Any other failure of a folder is an `OSError`, and of object
storage a `StoreError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Stamp = tuple[int | str, ...]


@dataclass(frozen=True)
class Found:
    """One object in a listing."""

    key: str
    size: int
    """In bytes."""
    stamp: Stamp
    """Differs after the object has been replaced."""
    modified: float
    """When it was written, in seconds of the store's clock: only for comparing objects of one store."""

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]


@dataclass(frozen=True)
class Listing:
    """What a folder holds directly, each sorted by name."""

    objects: tuple[Found, ...]
    folders: tuple[str, ...]
    """Their names."""


def always() -> None:
    """Let every request pass."""


class Objects(Protocol):
    """Objects by key."""

    @property
    def address(self) -> str:
        """Where they are, for people: a path, or an address such as `s3://bucket/prefix`."""

    def where(self, key: str) -> str:
        """Return the path or the address of an object, for messages."""

    def get(self, key: str, most: int | None = None) -> bytes:
        """Return an object, or its first `most` bytes.

        Raises:
            FileNotFoundError: there is none.
        """

    def range(self, key: str, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to but not including `stop`, or up to the end of the object.

        Raises:
            FileNotFoundError: there is none.
        """

    def create(self, key: str, data: bytes) -> bool:
        """Write an object durably only if there is none yet; return whether this call wrote it."""

    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object durably; a reader gets either the old bytes or the new ones."""

    def upload(self, key: str, file: Path) -> None:
        """Write or replace an object with the contents of a file; the ending of the key gives its content type."""

    def download(self, key: str, file: Path) -> None:
        """Write an object to a file that does not exist yet, without checking its contents.

        Raises:
            FileNotFoundError: there is none.
        """

    def list(self, folder: str) -> Listing:
        """Return what a folder holds directly; nothing if it does not exist."""

    def walk(self, folder: str) -> Iterator[Found]:
        """Yield every object below a folder, sorted by key."""

    def delete(self, keys: Iterable[str], check: Callable[[], None] = always) -> None:
        """Remove objects, as far as they exist.

        Args:
            keys: of the objects.
            check: called before each request, also before one that is made again; it may raise to remove no more.
        """

    def hidden(self) -> tuple[Found, ...]:
        """Return the objects of `now`, `age` and `probe` that processes left which ended in the middle of these."""

    def now(self) -> float:
        """Return the time by the clock of the store, to compare with `Found.modified`."""

    def age(self, key: str) -> float | None:
        """Return how many seconds ago an object was written, by the clock of the store; None if there is none."""

    def probe(self) -> None:
        """Check that objects can be written, read, listed and removed, and that `create` never replaces one.

        Raises:
            StoreError: they cannot, or it does.
        """
