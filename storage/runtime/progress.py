"""Report the progress of long work: steps publish it, a listener displays it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """The progress of one piece of work."""

    name: str
    done: float
    total: float | None
    """None if the total is unknown."""
    unit: str
    """`bytes`, `epochs` or `parts`."""
    note: str = ""
    """Latest numbers, for display."""


Listener = Callable[[Progress], None]

# A context variable, because Prefect copies these into the threads that run submitted tasks.
_listener: ContextVar[Listener | None] = ContextVar("idxflow_progress", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` on all progress while the block runs, including in the threads of submitted tasks.

    A listener of a block around it is called, too.
    """
    outer = _listener.get()

    def both(progress: Progress) -> None:
        for each in filter(None, (outer, listener)):
            each(progress)

    token = _listener.set(both)
    try:
        yield
    finally:
        _listener.reset(token)


def advance(progress: Progress) -> None:
    """Pass `progress` to the listener, if there is one."""
    listener = _listener.get()
    if listener:
        listener(progress)


@contextmanager
def working(name: str) -> Iterator[None]:
    """Tell the listener, if there is one, that work is in progress for as long as the block runs."""
    advance(Progress(name, 0, None, ""))
    try:
        yield
    finally:
        advance(Progress(name, 1, 1, ""))


@contextmanager
def counted_off(name: str, parts: int) -> Iterator[Callable[[], None]]:
    """Tell the listener, if there is one, how many of several parts are done; yield what to call after each.

    A single part is not worth it: what works on it tells its own progress.
    """
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        tell()

    def tell() -> None:
        if parts > 1:
            advance(Progress(name, done, parts, "parts", f"{done} of {parts} parts"))

    tell()
    try:
        yield count
    finally:
        # Also if not all came to be done.
        done = parts
        tell()
