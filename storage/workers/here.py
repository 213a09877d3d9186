"""The workers of a run that asks for none: this process computes the items, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from storage.runtime import cancellation
from storage.runtime.progress import counted_off
from storage.workers.protocol import Survey

T = TypeVar("T")
R = TypeVar("R")


class Here:
    """This process, as workers (`protocol.Workers`)."""

    count = 1
    elsewhere = False

    def each(self, function: Callable[[T], R], items: Sequence[T], doing: str) -> Iterator[tuple[int, R]]:
        """Call `function` with each item, in order; what it raises ends that.

        Raises:
            Cancelled: the run is being stopped.
        """
        with counted_off(doing, len(items)) as count:
            for index, item in enumerate(items):
                cancellation.check()
                result = function(item)
                count()
                yield index, result

    def one(self, function: Callable[[T], R], item: T) -> R:
        """Call `function` with the item."""
        return function(item)

    def begin(self, modules: tuple[str, ...]) -> None:
        """Nothing takes long to start."""

    def survey(self, modules: tuple[str, ...]) -> Survey:
        """Return that this is one process, which has its own code."""
        return Survey(1, {})

    def close(self) -> None:
        """Nothing was opened."""
