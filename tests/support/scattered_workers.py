"""Workers for tests: two other processes, which items reach in a random order and through pickle."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Scattered:
    """Does the items in a random order, two at a time, and yields results as they come."""

    def __init__(self, seed: int = 0) -> None:
        self._pool = ProcessPoolExecutor(2, get_context("spawn"))
        self._random = random.Random(seed)

    def each(self, function: Callable[[T], R], items: Sequence[T], doing: str) -> Iterator[tuple[int, R]]:
        order = self._random.sample(range(len(items)), len(items))
        numbers = {self._pool.submit(function, items[number]): number for number in order}
        for future in as_completed(numbers):
            yield numbers[future], future.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
