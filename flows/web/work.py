"""Computes answers beside the event loop: one thread, and a queue with a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from flows.web.refusals import Refused

T = TypeVar("T")


class Work:
    """One thread that computes, and at most `limit` requests that are with it or wait for it.

    One, because small matrix products are fastest on one, and because what Pillow warns of can only be caught by one.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._waiting = limit, 0
        self._thread = ThreadPoolExecutor(1, "answers")

    @property
    def waiting(self) -> int:
        """How many requests wait, or are being computed."""
        return self._waiting

    async def do(self, compute: Callable[[], T]) -> T:
        """Return what `compute` returns, called in the thread.

        Raises:
            Refused: 503 if too many requests wait already.
        """
        if self._waiting >= self._limit:
            raise Refused(
                503,
                f"expected at most {self._limit} requests to wait; there are as many; try again in a second",
                {"retry-after": "1"},
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, compute)
        finally:
            self._waiting -= 1

    def stop(self) -> None:
        """Begin nothing more that waits."""
        self._thread.shutdown(wait=False, cancel_futures=True)
