"""Workers that do their items in other processes, in an order of their own: what an engine may do at worst."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from storage.runtime import cancellation

T = TypeVar("T")
R = TypeVar("R")


class ScatteredWorkers:
    """Two processes that import what they need themselves; items go there, and results come back, through pickle."""

    elsewhere = False

    def __init__(self, seed: int = 0, processes: int = 2) -> None:
        self.seen: list[tuple[str, int]] = []
        """What each call was doing, and with how many items."""
        self._random = random.Random(seed)
        self._pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))

    def each(self, function: Callable[[T], R], items: Sequence[T], doing: str) -> Iterator[tuple[int, R]]:
        self.seen.append((doing, len(items)))
        order = self._random.sample(range(len(items)), len(items))
        futures = {self._pool.submit(function, items[place]): place for place in order}
        try:
            for future in as_completed(futures):
                cancellation.check()
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()

    def one(self, function: Callable[[T], R], item: T) -> R:
        return function(item)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
