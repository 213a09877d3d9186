"""Work on one thing while the next is being made: reading beside writing, loading beside training."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_END = object()


def ahead(items: Iterable[T], most: int = 2) -> Generator[T]:
    """Yield `items` in their order, each made in another thread while the caller is busy with those before.

    It pays where making them leaves Python's lock alone: inflating, hashing, reading files.

    Args:
        most: how many are made before they are asked for; so many more are in memory.

    Raises:
        Exception: what making an item raises, when its turn comes.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as worker:
        made = deque(worker.submit(next, source, _END) for _ in range(most))
        try:
            while (item := made.popleft().result()) is not _END:
                made.append(worker.submit(next, source, _END))
                yield item  # type: ignore[misc]
        finally:
            # Whoever stops in the middle waits for the item that is being made, and for no more.
            for future in made:
                future.cancel()
