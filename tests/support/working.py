"""Functions for workers to call, and the records they take. The workers of tests import this module by its name."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from storage.errors import DataRefused
from storage.runtime import cancellation

_log = logging.getLogger("tasks.working")


@dataclass(frozen=True)
class Item:
    number: int
    folder: str = ""
    """Where the function leaves what tests look for."""

    @property
    def label(self) -> str:
        return f"item {self.number}"

    def mark(self, name: str) -> bool:
        """Leave a mark, and return whether it is a new one."""
        try:
            Path(self.folder, name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def wait_for(self, name: str) -> None:
        while not Path(self.folder, name).exists():
            time.sleep(0.01)


@dataclass(frozen=True)
class Result:
    number: int
    square: int
    process: int


def square(item: Item) -> Result:
    return Result(item.number, item.number**2, os.getpid())


def large_libraries(item: Item) -> tuple[str, ...]:
    """Return those that this process has imported."""
    large = ("great_expectations", "pandas", "prefect", "scipy", "sklearn", "tensorflow")
    return tuple(name for name in large if name in sys.modules)


def square_in_turn(item: Item) -> Result:
    """Compute item 0 when the test has the other one."""
    if not item.number:
        item.wait_for("got-1")
    return square(item)


def square_after_a_death(item: Item) -> Result:
    """Kill the worker of item 1, the first time."""
    if item.number == 1 and item.mark("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    return square(item)


def kill_for_item_0(item: Item) -> Result:
    """Kill each worker of item 0, until there is enough of what it needs."""
    if item.number == 0 and not Path(item.folder, "enough").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return square(item)


def refuse_odd(item: Item) -> Result:
    item.mark(f"began-{item.number}")
    if item.number % 2:
        raise DataRefused(f"expected an even number; found {item.number}; take another")
    time.sleep(0.2)
    item.mark(f"ended-{item.number}")
    return square(item)


def break_down(item: Item) -> Result:
    raise LookupError(f"a bug with {item.number}")


def raise_what_cannot_travel(item: Item) -> Result:
    error = LookupError(f"a bug with {item.number}")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


def return_what_cannot_travel(item: Item) -> object:
    return threading.Lock()


def work_until_stopped(item: Item) -> Result:
    item.mark(f"began-{item.number}")
    try:
        while True:
            cancellation.check()
            time.sleep(0.01)
    except cancellation.Cancelled:
        item.mark(f"stopped-{item.number}")
        raise


def wait_and_log(item: Item) -> Result:
    """Log a line, go on when the test has seen it, and log others, one in another thread."""
    _log.info("begins %d", item.number)
    item.wait_for(f"seen-{item.number}")
    thread = threading.Thread(target=_log.info, args=("in a thread %d", item.number))
    thread.start()
    thread.join()
    _log.warning("is warned %d", item.number, extra={"lock": threading.Lock()})
    try:
        raise LookupError("a cause")
    except LookupError:
        _log.exception("ends %d", item.number)
    _log.debug("for nobody")
    return square(item)
