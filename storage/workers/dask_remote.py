"""What runs on a worker: the call of a function with an item, if the worker has the code of the run.

A worker loads this module by its name, so it imports nothing that decides results; those modules are imported after
they have been compared.
"""

from __future__ import annotations

# ruff: noqa: E402
import sys

# Before the imports of this module: what something else had imported earlier may be older than its files.
_BEFORE = tuple(sys.modules)

import importlib
import logging
import math
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from storage.runtime import arithmetic, cancellation, code_digests, memory
from storage.runtime.progress import Progress, listening
from storage.workers.fingerprint import Fingerprint, Loaded

LOGGERS = ("flows", "tasks", "storage", "expectations")
"""The loggers whose lines reach the run."""
PROGRESS = 0
"""In place of the number of a line of the log: progress, of which none is kept."""
BEGUN = -1
"""In place of the number of a line of the log: a call has begun, after a worker has died that had it."""
_LOOK_SECONDS = 0.2
_TELL_SECONDS = 0.2

_loaded = Loaded(name for name in _BEFORE if name not in ("storage", "storage.workers"))
_turn = threading.Lock()
_calls: dict[Callable[[], None], Callable[[], bool]] = {}
"""What stops each call that is being computed, and whether somebody still wants its result."""
_imported = set[str]()
"""Modules that have been imported with everything that decides the results of their functions."""

# Importing Prefect, as the steps do, sends usage data from a terminal.
os.environ["DO_NOT_TRACK"] = os.environ.get("DO_NOT_TRACK") or "1"

# A worker may train, and TensorFlow is imported after this.
arithmetic.leave_to_the_processor()


@dataclass(frozen=True)
class Answer:
    """What a worker says about an item."""

    worker: str
    """What people call it: its number if it was started for the run, otherwise its address."""
    call: str
    """The id of the call that this answers."""
    result: bytes = b""
    """What the function returned, pickled."""
    error: bytes = b""
    """What it raised, pickled."""
    differs: Fingerprint | None = None
    """What the worker would have computed with, if that is not what the run has. Then it has computed nothing."""
    stopped: bool = False
    """Whether the call ended early, because the run or this worker is ending."""
    lines: tuple[bytes, ...] = ()
    """All lines that the call has logged, pickled: those that were sent at once may come later than this."""


def compute(function: str, item: bytes, code: str, tells: bool, topic: str, call: str) -> bytes:
    """Call a function with an item; return the `Answer`, pickled.

    Args:
        function: its module and its name, with a colon between.
        item: pickled.
        code: the digest of the fingerprint of the function where the run is.
        tells: whether to send progress, too.
        topic: where lines of the log are sent.
        call: the id of this call, for these lines. It ends with the number of the attempt: after the death of a worker
            that had the item, the run is to know that this one has begun it.
    """
    if not call.endswith("-0"):
        _say_begun(topic, call)
    answer = pickle.dumps(_answer(Answer(_name(), call), function, item, code, tells, topic))
    memory.give_back()
    return answer


def _say_begun(topic: str, call: str) -> None:
    """Have it known before this worker may die, too."""
    from distributed import get_worker
    from distributed.utils import sync

    worker = get_worker()
    sync(worker.loop, worker.scheduler.log_event, topic=topic, msg=(call, BEGUN, b""))


def _answer(answer: Answer, function: str, item: bytes, code: str, tells: bool, topic: str) -> Answer:
    module, _, name = function.partition(":")
    try:
        differs = _differing(module, code)
        if differs:
            return replace(answer, differs=differs)
        callee = getattr(importlib.import_module(module), name)
    except Exception as error:
        return replace(answer, error=_pickled(error))
    with _logged(topic, answer.call) as lines, _told(topic, answer.call, tells), _stopped_with_task():
        return replace(_called(answer, callee, item), lines=tuple(lines))


def _called(answer: Answer, callee: Callable[[Any], Any], item: bytes) -> Answer:
    try:
        return replace(answer, result=pickle.dumps(callee(pickle.loads(item))))
    except cancellation.Cancelled:
        return replace(answer, stopped=True)
    except Exception as error:
        return replace(answer, error=_pickled(error))


def _name() -> str:
    from distributed import get_worker

    worker = get_worker()
    return f"the worker {worker.address.partition('://')[2] if worker.name == worker.address else worker.name}"


def load(modules: Iterable[str]) -> None:
    """Import what decides the results of the functions of some modules, before they are called."""
    for module in modules:
        # Who calls the functions gets the error.
        with _turn, suppress(Exception):
            _load(module)


def _load(module: str) -> None:
    # All of it, so that none is read from a later file.
    for name in code_digests.digests(module):
        importlib.import_module(name)
    _imported.add(module)


def _differing(module: str, code: str) -> Fingerprint | None:
    """Return the fingerprint of a module's functions if it is not that of the run; otherwise import what it is of."""
    with _turn:
        found = _loaded.fingerprint(module)
        if found.digest == code and module not in _imported:
            _load(module)
            # The files may have changed while they were imported.
            found = _loaded.fingerprint(module)
        return found if found.digest != code else None


def describe(modules: tuple[str, ...]) -> bytes:
    """Return what this worker would compute the functions of each module with, pickled."""
    with _turn:
        return pickle.dumps(tuple(map(_loaded.fingerprint, modules)))


def stop_all() -> bool:
    """Stop what is being computed, at its next check; return whether anything is."""
    stops = list(_calls)
    for stop in stops:
        stop()
    return bool(stops)


@contextmanager
def _stopped_with_task() -> Iterator[None]:
    """Stop the block's work if the scheduler no longer wants it, because the run has ended or gave it up.

    Dask cannot interrupt a task. But it tells the worker, whatever the reason is: that the run let go of the result, or
    that the connection to the run is gone. A worker without a scheduler closes.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        executing = task is not None and task.state in ("executing", "long-running")
        return executing and worker.status.name not in ("closing", "closed", "failed")

    with cancellation.stoppable() as stop:
        _calls[stop] = wanted
        with _turn:
            _watch()
        try:
            yield
        finally:
            del _calls[stop]


@cache
def _watch() -> None:
    """Start the one thread that looks after all calls, as long as this process lives; one for each would cost more."""
    threading.Thread(target=_stop_unwanted, daemon=True, name="idxflow-watch").start()


def _stop_unwanted() -> None:
    while True:
        time.sleep(_LOOK_SECONDS)
        for stop, wanted in list(_calls.items()):
            if not wanted():
                stop()


_lines: ContextVar[_Lines | None] = ContextVar("idxflow_lines", default=None)


class _Lines:
    """Where the lines of one call go."""

    def __init__(self, send: Callable[[tuple[str, int, bytes]], object], call: str) -> None:
        self.kept: list[bytes] = []
        self._send, self._call, self._name = send, call, _name().removeprefix("the ")

    def add(self, record: logging.LogRecord) -> None:
        line = _line(record, f"{self._name}: {record.getMessage()}")
        self.kept.append(line)
        self._send((self._call, len(self.kept), line))


class _Forward(logging.Handler):
    """Passes lines to the call that logs them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.open: list[_Lines] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a line on; that of a thread which a call has started belongs to it if there is no other."""
        lines = _lines.get() or (self.open[0] if len(self.open) == 1 else None)
        if lines:
            lines.add(record)


_forward = _Forward()


def _have_lines_forwarded() -> None:
    """Attach the handler again, too, after a library has set up logging and thrown it away."""
    for logger in map(logging.getLogger, LOGGERS):
        if logger.level != logging.INFO:
            logger.setLevel(logging.INFO)
        if _forward not in logger.handlers:
            logger.addHandler(_forward)


@contextmanager
def _logged(topic: str, call: str) -> Iterator[list[bytes]]:
    """Send the lines that the block logs at once, and yield a list of them all: those sent may come too late."""
    from distributed import get_worker

    worker = get_worker()
    _have_lines_forwarded()
    lines = _Lines(lambda message: worker.log_event(topic, message), call)
    token = _lines.set(lines)
    _forward.open.append(lines)
    try:
        yield lines.kept
    finally:
        _forward.open.remove(lines)
        _lines.reset(token)


@contextmanager
def _told(topic: str, call: str, tells: bool) -> Iterator[None]:
    """Send the progress of the block as it comes, but not each of many small advances; none unless `tells`."""
    from distributed import get_worker

    worker, sent = get_worker(), -math.inf

    def tell(step: Progress) -> None:
        nonlocal sent
        now = time.monotonic()
        if step.done == step.total or now - sent >= _TELL_SECONDS:
            sent = now
            worker.log_event(topic, (call, PROGRESS, pickle.dumps(step)))

    if not tells:
        yield
        return
    with listening(tell):
        yield


def _line(record: logging.LogRecord, message: str) -> bytes:
    """Return a record that can be sent: with this complete message, and without what cannot be pickled."""
    values = {**record.__dict__, "msg": message, "args": None, "exc_info": None}
    if record.exc_info:
        values["exc_text"] = logging.Formatter().formatException(record.exc_info)
    try:
        return pickle.dumps(values)
    except Exception:
        return pickle.dumps({name: value for name, value in values.items() if isinstance(value, str | int | float)})


def _pickled(error: Exception) -> bytes:
    """Return an error, with its traceback as a note, or what it says if it cannot be pickled."""
    trace = logging.Formatter().formatException((type(error), error, error.__traceback__))
    error.add_note(f"On the worker:\n{trace}")
    try:
        pickle.loads(data := pickle.dumps(error))
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return data
