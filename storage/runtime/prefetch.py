"""Prefetching: make the next item while the caller works on the current one, such as reading while writing."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_END = object()


def prefetch(items: Iterable[T], most: int = 2) -> Generator[T]:
    """Yield `items` in order, making each in another thread while the caller works on earlier ones.

    This helps if making an item releases the GIL: inflating, hashing, reading files.

    Args:
        most: the number of items to prefetch, all of which are held in memory.

    Raises:
        Exception: the error of making an item, raised when that item is due.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as worker:
        futures = deque(worker.submit(next, source, _END) for _ in range(most))
        try:
            while (item := futures.popleft().result()) is not _END:
                futures.append(worker.submit(next, source, _END))
                yield item  # type: ignore[misc]
        finally:
            # A caller that stops early waits only for the item being made.
            for future in futures:
                future.cancel()
