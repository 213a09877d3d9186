"""Make Ctrl-C, SIGTERM and SIGHUP end a run, even if the exception that they raise is lost or replaced."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

_AGAIN_SECONDS = 0.05


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, or on SIGHUP when the terminal closes; its argument is the signal.

    A run ends as with Ctrl-C: processes that it started, such as Prefect's own server, end too.
    """


_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Unraisable(Protocol):
    exc_value: BaseException | None


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
    before = {number: signal.signal(number, stop) for number in numbers}
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
