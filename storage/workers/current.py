"""The workers of the run that this code belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from storage.workers.here import Here
from storage.workers.protocol import Workers

T = TypeVar("T")
R = TypeVar("R")

# A context variable, because Prefect copies these into the threads that run submitted tasks.
_workers: ContextVar[Workers | None] = ContextVar("idxflow_workers", default=None)


def current() -> Workers:
    """Return the workers that the run was given; this process if it was given none."""
    return _workers.get() or Here()


@contextmanager
def using(workers: Workers) -> Iterator[None]:
    """Have `current` return `workers` while the block runs, including in the threads of submitted tasks."""
    token = _workers.set(workers)
    try:
        yield
    finally:
        _workers.reset(token)


def in_order(function: Callable[[T], R], items: Sequence[T], doing: str) -> list[R]:
    """Return the results of `Workers.each` of the current workers in the order of the items.

    Raises:
        IdxflowError, Cancelled: as `Workers.each` does.
    """
    results: dict[int, R] = dict(current().each(function, items, doing))
    return [results[index] for index in range(len(items))]
