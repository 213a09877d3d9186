"""Progress of long work: tasks say how far they are, whoever listens shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far one piece of work is."""

    name: str
    done: float
    total: float | None
    """None where the end is not known."""
    unit: str
    """`bytes` or `epochs`."""
    note: str = ""
    """Latest numbers, for people."""


Listener = Callable[[Progress], None]

# A context variable, because Prefect carries those into the threads that run submitted tasks.
_listener: ContextVar[Listener | None] = ContextVar("idxflow_progress", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have `listener` called for each progress made while the block runs, also in threads of submitted tasks."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def advance(progress: Progress) -> None:
    """Tell the listener, if there is one."""
    listener = _listener.get()
    if listener:
        listener(progress)


@contextmanager
def working(name: str) -> Iterator[None]:
    """Tell the listener, if there is one, that work is in progress while the block runs, which may take a while."""
    advance(Progress(name, 0, None, ""))
    try:
        yield
    finally:
        advance(Progress(name, 1, 1, ""))
