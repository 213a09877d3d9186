"""How steps have work done that consists of many independent items: here, or by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Workers(Protocol):
    """Something that calls a function once with each of many items."""

    def each(self, function: Callable[[T], R], items: Sequence[T], doing: str) -> Iterator[tuple[int, R]]:
        """Call `function` with each item; yield the index of an item and its result as results arrive, in any order.

        Args:
            function: of a module, so that another process can import it; it calls `cancellation.check` now and then.
            items: small records, such as a store, a plan and the record of a part, never arrays.
            doing: what the items are, for progress: `decode train`.

        Raises:
            IdxflowError: as the function does for the first item that fails; nothing new is begun then.
            Cancelled: the run is being ended.
        """

    def close(self) -> None:
        """End what was started for this run."""
