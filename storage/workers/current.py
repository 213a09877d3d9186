"""The workers of the run that is in progress in this thread."""

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
    """Return the workers of this run: this process, unless `using` has set others."""
    return _workers.get() or Here()


@contextmanager
def using(workers: Workers) -> Iterator[None]:
    """Have the steps that the block calls use `workers`."""
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
