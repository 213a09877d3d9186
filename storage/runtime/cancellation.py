"""Stop work in other threads when their run is stopped.

Python delivers Ctrl-C and SIGTERM only to the main thread, and a thread that keeps running keeps the process alive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Cancelled(BaseException):
    """Raised in worker threads when their run is stopped. A BaseException, like KeyboardInterrupt."""


class _Stop:
    """Whether a run is being stopped, and the functions to call then."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._calls: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def set(self) -> None:
        self.event.set()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call()

    @contextmanager
    def calling(self, call: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            self._calls.append(call)
        try:
            if self.event.is_set():
                call()
            yield
        finally:
            with self._lock:
                self._calls.remove(call)


# A context variable, because Prefect copies these into the threads that run submitted tasks.
_stop: ContextVar[_Stop | None] = ContextVar("idxflow_stop", default=None)


@contextmanager
def cancellable() -> Iterator[None]:
    """Stop the block's work in other threads if Ctrl-C or a termination ends the block."""
    with stoppable() as stop:
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception):
                stop()
            raise


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Yield a function that any thread may call to stop the block's work, wherever it checks."""
    stop = _Stop()
    token = _stop.set(stop)
    try:
        yield stop.set
    finally:
        _stop.reset(token)


def check() -> None:
    """Check that the run is not being stopped.

    Raises:
        Cancelled: it is.
    """
    stop = _stop.get()
    if stop and stop.event.is_set():
        raise Cancelled


def sleep(seconds: float) -> None:
    """Sleep, but no longer than until the run is being stopped.

    Raises:
        Cancelled: it is.
    """
    stop = _stop.get()
    if stop is None:
        time.sleep(seconds)
    elif stop.event.wait(seconds):
        raise Cancelled


@contextmanager
def calling(call: Callable[[], None]) -> Iterator[None]:
    """Arrange for `call` to be called, in the thread that stops the run, if that happens while the block runs."""
    stop = _stop.get()
    if stop is None:
        yield
        return
    with stop.calling(call):
        yield
