"""Wait for foreign code so that Ctrl-C, SIGTERM and the stop of a run end the wait at once.

Python delivers a signal only between two steps of its own. A call into a library that waits for a network can take as
long as the network does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from storage.runtime import cancellation

_T = TypeVar("_T")
_POLL_SECONDS = 0.2


def called(call: Callable[[], _T]) -> _T:
    """Return what `call` returns, or raise what it raises, in a thread of its own.

    After an interruption the call goes on until it ends by itself, or the process ends; nobody hears of it.

    Raises:
        Cancelled: the run is being stopped.
    """
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    # A daemon: the end of the process does not wait for it.
    threading.Thread(target=run, daemon=True).start()
    while not wait([future], _POLL_SECONDS).done:
        cancellation.check()
    return future.result()
