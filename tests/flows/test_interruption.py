"""Ctrl-C and SIGTERM end a run, also where the exception that they raise is changed or lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial
from types import SimpleNamespace

import pytest

from flows.interruption import Terminated, interruptible
from flows.service.supervisor import Cancelled, stop_signals

SECONDS = 60


def changed(number: int) -> None:
    """As a library does it."""
    try:
        os.kill(os.getpid(), number)
        time.sleep(SECONDS)
    except KeyboardInterrupt as error:
        raise ValueError("made of it") from error


def lost(number: int) -> None:
    """As it happens by chance: the signal arrives while an object is being finalized."""

    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    Dying()
    time.sleep(SECONDS)


class TerminationSignal(BaseException):
    """Like that of Prefect, whose handler is in place of ours while a flow runs."""

    def __init__(self, number: int) -> None:
        self.signal = number


def lost_by_prefect(number: int) -> None:
    def handler(received: int, _: object) -> None:
        signal.signal(number, ours)
        raise TerminationSignal(received)

    ours = signal.signal(number, handler)
    lost(number)


@pytest.fixture(autouse=True)
def ctrl_c_is_not_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGTERM, Terminated), (signal.SIGHUP, Terminated), (signal.SIGINT, KeyboardInterrupt)],
)
@pytest.mark.parametrize("happens", [changed, lost, lost_by_prefect])
def test_the_block_ends_as_interrupted(
    happens: Callable[[int], None], number: signal.Signals, expected: type[BaseException]
):
    with pytest.raises(expected) as raised, interruptible():
        happens(number)
    assert raised.type is expected


def lock_that_a_signal_meets(number: int, taken: list[bool]) -> threading.Condition:
    """Return a condition; as its lock has been taken, the signal arrives, before the block that releases it begins."""
    lock = SimpleNamespace(
        acquire=None,
        release=None,
        __enter__=partial(signal.raise_signal, number),
        __exit__=lambda *_: taken.append(False),
    )
    return threading.Condition(lock)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("block", [interruptible, stop_signals])
def test_a_signal_leaves_no_lock_taken(number: int, block: Callable[[], AbstractContextManager[object]]):
    released: list[bool] = []
    condition = lock_that_a_signal_meets(number, released)
    with block(), pytest.raises((KeyboardInterrupt, Cancelled)), condition:
        time.sleep(SECONDS)
    assert released


def test_prefects_own_handler_leaves_no_lock_taken():
    from prefect.utilities import engine

    from flows import retrain

    assert retrain
    released: list[bool] = []
    condition = lock_that_a_signal_meets(signal.SIGTERM, released)
    with interruptible(), pytest.raises(Terminated), engine.capture_sigterm(), condition:
        time.sleep(SECONDS)
    assert released


def test_a_thread_that_waits_for_a_lock_for_ever_can_be_ended():
    lock = threading.Lock()
    lock.acquire()
    condition = threading.Condition(lock)
    threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Terminated), interruptible(), condition:
        raise AssertionError("nobody releases it")


def swallowed(number: int) -> None:
    """As a library does it that is written in C or Rust."""
    with suppress(BaseException):
        os.kill(os.getpid(), number)
        time.sleep(SECONDS)
    time.sleep(SECONDS)


def made_an_error_that_is_ignored(number: int) -> None:
    with suppress(Exception):
        try:
            os.kill(os.getpid(), number)
            time.sleep(SECONDS)
        except BaseException as error:
            raise ValueError("made of it") from error
    time.sleep(SECONDS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("happens", [lost, swallowed, made_an_error_that_is_ignored])
def test_up_stops_also_where_the_exception_is_lost(happens: Callable[[int], None], number: signal.Signals):
    with stop_signals() as caught:
        with pytest.raises(Cancelled):
            happens(number)
        caught()
        # Another Ctrl-C does not disturb the stopping.
        os.kill(os.getpid(), number)
        time.sleep(0.01)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_other_errors_stay_what_they_are_and_other_ignored_ones_are_reported():
    reported = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", reported.append)

        class Dying:
            def __del__(self) -> None:
                raise ValueError("ignored")

        def fails() -> None:
            with interruptible() as interruptions:
                Dying()
                assert interruptions == []
                raise OSError("other")

        with pytest.raises(OSError, match="^other$"):
            fails()
    assert [str(ignored.exc_value) for ignored in reported] == ["ignored"]
