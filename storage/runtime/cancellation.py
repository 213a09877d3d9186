"""Work in other threads stops when its run is ended: Python gives Ctrl-C and SIGTERM to the main thread alone, and a
thread that goes on keeps the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Stopped(BaseException):
    """The run that this thread works for is being ended. No `Exception`: nothing is wrong with the work."""


class _Stop:
    """Whether a run is being ended, and what to do then."""

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


# A context variable, because Prefect carries those into the threads that run submitted tasks.
_stop: ContextVar[_Stop | None] = ContextVar("idxflow_stop", default=None)


@contextmanager
def stoppable() -> Iterator[None]:
    """Once Ctrl-C or a termination ends the block, have what works for it in other threads stop."""
    stop = _Stop()
    token = _stop.set(stop)
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):
            stop.set()
        raise
    finally:
        _stop.reset(token)


def check() -> None:
    """Go on, unless the run is being ended.

    Raises:
        Stopped: it is.
    """
    stop = _stop.get()
    if stop and stop.event.is_set():
        raise Stopped


def sleep(seconds: float) -> None:
    """Wait, at most until the run is being ended.

    Raises:
        Stopped: it is.
    """
    stop = _stop.get()
    if stop is None:
        time.sleep(seconds)
    elif stop.event.wait(seconds):
        raise Stopped


@contextmanager
def calling(call: Callable[[], None]) -> Iterator[None]:
    """Have `call` called, in the thread that ends the run, if that happens while the block runs."""
    stop = _stop.get()
    if stop is None:
        yield
        return
    with stop.calling(call):
        yield
