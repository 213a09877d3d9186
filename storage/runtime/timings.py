"""Where the seconds of a command go: `idxflow run --timings`.

Each moment of the thread that starts the clock belongs to one name, that of the innermost span, so the seconds of all
names add up to those of the process. Without a clock, spans cost nothing.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from pathlib import Path
from typing import Any

OPTION = "--timings"
PYTHON = "starting Python"
REST = "the rest"
OWN = "idxflow"
OBJECT_STORAGE = "object storage: "
"""What the names of numbers of its requests begin with; their seconds are those of another name."""
STANDARD = "the standard library"
FILES = "files of Python"
_OWN = ("expectations", "flows", "idxflow_start", "storage", "tasks")
_FIELDS_BEFORE_START = 19
"""Of /proc/self/stat after the name of the program; the next is the time of the start in ticks (Linux, proc(5))."""


@dataclass(frozen=True)
class Spent:
    """What one name took: seconds without those of spans within, and how often it occurred."""

    name: str
    seconds: float
    count: int


class Clock:
    """Seconds and counts by name, in the order in which the names first occurred."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()
        self.elsewhere: dict[str, tuple[Spent, ...]] = {}
        """What other processes took, by what they are."""
        self._now, self._since = now, now()
        self._names = [REST]
        self._thread = threading.get_ident()

    def enter(self, name: str) -> None:
        """Begin a span. Other threads only count theirs."""
        self.counts[name] += 1
        if threading.get_ident() == self._thread:
            self._account()
            self._names.append(name)

    def leave(self) -> None:
        """End the innermost span."""
        if threading.get_ident() == self._thread:
            self._account()
            self._names.pop()

    def _account(self) -> None:
        now = self._now()
        self.seconds[self._names[-1]] += now - self._since
        self._since = now

    def spent(self) -> tuple[Spent, ...]:
        """Return what each name took until now, in the order in which the names first occurred."""
        self._account()
        names = dict.fromkeys((*self.seconds, *self.counts))
        return tuple(Spent(name, round(self.seconds.get(name, 0.0), 4), self.counts[name]) for name in names)

    def save(self, file: Path) -> None:
        """Write what each name took until now to a file, for the clock of another process (`add_elsewhere`)."""
        file.write_text(json.dumps([asdict(each) for each in self.spent()]), encoding="utf-8")


_clock: Clock | None = None


def start() -> Clock:
    """Start the clock of this process, anew in a fork; from now on imports have the names of their libraries."""
    global _clock
    first = _clock is None
    _clock = Clock()
    if first:
        _clock.seconds[PYTHON] = age()
        _watch(SourceFileLoader, "exec_module", _importing)
        _watch(ExtensionFileLoader, "create_module", _importing)
        _watch(ExtensionFileLoader, "exec_module", _importing)
    return _clock


def running() -> Clock | None:
    """Return the clock of this process; None if it was not started."""
    return _clock


@contextmanager
def span(name: str) -> Iterator[None]:
    """Give the time of the block to `name`, but for that of spans within."""
    clock = _clock
    if clock is None:
        yield
        return
    clock.enter(name)
    try:
        yield
    finally:
        clock.leave()


def count(name: str, number: int) -> None:
    """Add to how often `name` occurred, if there is a clock; the time is that of the spans around."""
    if _clock is not None:
        _clock.counts[name] += number


def add_elsewhere(process: str, file: Path) -> None:
    """Add what another process saved to the clock of this one, if both have one."""
    if _clock is not None and file.exists():
        _clock.elsewhere[process] = tuple(Spent(**each) for each in json.loads(file.read_text(encoding="utf-8")))


def watch(owner: type, method: str, name: Callable[..., str]) -> None:
    """Make each call of a method of a library's class a span, if there is a clock.

    Args:
        name: returns the name of the span from the arguments of the call.
    """
    if _clock is not None:
        _watch(owner, method, name)


def _watch(owner: type, method: str, name: Callable[..., str]) -> None:
    original = getattr(owner, method)

    @functools.wraps(original)
    def watched(*arguments: Any, **named: Any) -> Any:
        with span(name(*arguments, **named)):
            return original(*arguments, **named)

    setattr(owner, method, watched)


def _importing(_: object, module: Any) -> str:
    """Return the name of the import of a module, from the module or, before there is one, its specification."""
    name = getattr(module, "__name__", None)
    # What is not imported by name, as migrations of a database, is not a library.
    return f"import {FILES if name and name not in sys.modules else library(name or module.name)}"


def library(module: str) -> str:
    """Return whose a module is: a library's name, that of idxflow, or the standard library."""
    top = module.partition(".")[0]
    return OWN if top in _OWN else STANDARD if top in sys.stdlib_module_names else top


def age() -> float:
    """Return the seconds since this process was started, imports included, or 0 where the system does not tell."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return 0.0
    ticks = int(stat.read_text().rpartition(")")[2].split()[_FIELDS_BEFORE_START])
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
