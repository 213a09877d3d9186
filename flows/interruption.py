"""Ctrl-C and SIGTERM end a run, whatever becomes of the exception that they raise."""

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
    """SIGTERM was received. A run ends as with Ctrl-C: what it started, such as Prefect's own server, ends too."""


class _Unraisable(Protocol):
    exc_value: BaseException | None


@contextmanager
def interruptible() -> Iterator[list[type[KeyboardInterrupt]]]:
    """Have Ctrl-C raise KeyboardInterrupt in the block, and SIGTERM `Terminated`; yield a list of those that came.

    A library may make another error of one: Prefect "Result is not set", pydantic one of its own. Then the block
    still ends as interrupted, if it ends with an error.
    """
    received: list[type[KeyboardInterrupt]] = []

    def stop(number: int, _: FrameType | None) -> None:
        received.append(Terminated if number == signal.SIGTERM else KeyboardInterrupt)
        raise received[-1]

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    # Where Ctrl-C is to be ignored, as in the background of a shell, it is.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
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
    """Send a signal again that arrived while an object was being finalized, where Python ignores what is raised."""
    hook, timers = sys.unraisablehook, list[threading.Timer]()

    def look(ignored: _Unraisable) -> None:
        if number := _signal_of(ignored.exc_value):
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
        return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
    return getattr(error, "signal", None) if type(error).__name__ == "TerminationSignal" else None
