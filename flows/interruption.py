"""Ctrl-C, SIGTERM and SIGHUP end a run, whatever becomes of the exception that they raise."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

_AGAIN_SECONDS = 0.05


class Terminated(KeyboardInterrupt):
    """SIGTERM was received, or SIGHUP, because the terminal was closed; its argument is which.

    A run ends as with Ctrl-C: what it started, such as Prefect's own server, ends too.
    """


_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Unraisable(Protocol):
    exc_value: BaseException | None


@contextmanager
def interruptible() -> Iterator[list[KeyboardInterrupt]]:
    """Have Ctrl-C raise KeyboardInterrupt in the block, SIGTERM and SIGHUP `Terminated`; yield those that came.

    A library may make another error of one: Prefect "Result is not set", pydantic one of its own. Then the block
    still ends as interrupted, if it ends with an error.
    """
    received: list[KeyboardInterrupt] = []

    def stop(number: int, _: FrameType | None) -> None:
        received.append(KeyboardInterrupt() if number == signal.SIGINT else Terminated(signal.Signals(number)))
        raise received[-1]

    # What is to be ignored, as Ctrl-C in the background of a shell or SIGHUP after nohup, is.
    wanted = [number for number in _HANDLED if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        with sent_again(_signal_of):
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
def sent_again(signal_of: Callable[[BaseException | None], int | None]) -> Iterator[None]:
    """Send a signal again whose exception is lost: Python ignores what is raised in a finalizer, or just after a fork.

    Args:
        signal_of: returns the signal that raised an exception, None where it was none.
    """
    hook, timers = sys.unraisablehook, list[threading.Timer]()

    def look(ignored: _Unraisable) -> None:
        if number := signal_of(ignored.exc_value):
            # Not at once, which would be in the same place.
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
    """Return the signal that raised `error` here or in Prefect, which has a handler of its own while a flow runs."""
    if isinstance(error, KeyboardInterrupt):
        return error.args[0] if isinstance(error, Terminated) else signal.SIGINT
    return getattr(error, "signal", None) if type(error).__name__ == "TerminationSignal" else None
