"""The workers of the run that this code belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from storage.workers.here import Here
from storage.workers.protocol import Workers

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
