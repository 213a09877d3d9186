"""Make Ctrl-C, SIGTERM and SIGHUP end a run, even if the exception that they raise is lost or replaced."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any, Protocol

_AGAIN_SECONDS = 0.05

_LOCKING_MODULES = {"threading", "logging", "importlib._bootstrap"}
_LOCKING = {"__enter__", "__exit__", "acquire", "release", "_acquire_restore", "_release_save"}
_LOCKING |= {"_acquireLock", "_releaseLock"}
_RETRY_SECONDS = 0.001
_LONGEST_LOCKING_SECONDS = 1.0


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, or on SIGHUP when the terminal closes; its argument is the signal.

    A run ends as with Ctrl-C: processes that it started, such as Prefect's own server, end too.
    """


_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Unraisable(Protocol):
    exc_value: BaseException | None


def outside_locks(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], Any]:
    """Return a signal handler that calls `handler`, but not while Python's library takes or releases a lock.

    What a handler raises there leaves the lock taken for ever, and the process hangs as soon as it needs it again, such
    as to log: Python may run a handler between taking a lock and entering the block that releases it
    (https://github.com/python/cpython/issues/74174). In such a moment the signal is sent again a little later; after a
    second `handler` is called anyway, because the thread may be waiting for a lock that nobody releases.
    """
    since: dict[int, float] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if _is_locking(frame) and now - since.setdefault(number, now) < _LONGEST_LOCKING_SECONDS:
            # Not `threading`: the interrupted call may hold one of its own locks.
            _thread.start_new_thread(_send_later, (number,))
            return
        since.pop(number, None)
        handler(number, frame)

    return handle


@cache
def keep_prefect_outside_locks() -> None:
    """Make Prefect's handler of SIGTERM, which is in place of ours while a flow runs, one of `outside_locks`."""
    # Prefect: interrupted-locks.
    from prefect.utilities import engine

    engine._prefect_sigterm_handler = outside_locks(engine._prefect_sigterm_handler)  # type: ignore[assignment]


def _is_locking(frame: FrameType | None) -> bool:
    if frame is None:
        return False
    return frame.f_code.co_name in _LOCKING and frame.f_globals.get("__name__") in _LOCKING_MODULES


def _send_later(number: int) -> None:
    time.sleep(_RETRY_SECONDS)
    os.kill(os.getpid(), number)


@contextmanager
def interruptible() -> Iterator[list[KeyboardInterrupt]]:
    """Raise KeyboardInterrupt in the block on Ctrl-C, `Terminated` on SIGTERM and SIGHUP; yield the list of them.

    Libraries may replace the interrupt by an error of their own, such as Prefect's "Result is not set" or one of
    pydantic. If the block then ends with an error, it still ends as interrupted.
    """
    received: list[KeyboardInterrupt] = []

    def stop(number: int, _: FrameType | None) -> None:
        received.append(KeyboardInterrupt() if number == signal.SIGINT else Terminated(signal.Signals(number)))
        raise received[-1]

    # Ignored signals stay ignored, such as Ctrl-C for a background job or SIGHUP after nohup.
    numbers = [number for number in _HANDLED if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, outside_locks(stop)) for number in numbers}
    try:
        with _sent_again():
            yield received
    except Exception as error:
        # Prefect: lost-interruption.
        if received:
            raise received[0] from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _sent_again() -> Iterator[None]:
    """Resend a signal if its exception is lost: Python ignores exceptions in finalizers and just after a fork."""
    hook, timers = sys.unraisablehook, list[threading.Timer]()

    def look(ignored: _Unraisable) -> None:
        if number := _signal_of(ignored.exc_value):
            # Not immediately: the exception would be lost in the same place.
            timers.append(threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)))
            timers[-1].start()
        else:
            hook(ignored)  # type: ignore[arg-type]

    sys.unraisablehook = look
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for timer in timers:
            timer.cancel()


def _signal_of(error: BaseException | None) -> int | None:
    """Return the signal that raised `error` here or in Prefect, which has its own handler while a flow runs."""
    if isinstance(error, KeyboardInterrupt):
        return error.args[0] if isinstance(error, Terminated) else signal.SIGINT
    return getattr(error, "signal", None) if type(error).__name__ == "TerminationSignal" else None
