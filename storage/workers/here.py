"""Do the work in this process, one item after the other: the default."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from storage.runtime import cancellation

T = TypeVar("T")
R = TypeVar("R")


class Here:
    """No workers but this thread."""

    def each(self, function: Callable[[T], R], items: Sequence[T], doing: str) -> Iterator[tuple[int, R]]:
        for index, item in enumerate(items):
            cancellation.check()
            yield index, function(item)

    def close(self) -> None:
        pass
