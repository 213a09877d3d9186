"""What a step may ask of workers: to call one function with each of many items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Survey:
    """What there is in a cluster."""

    count: int
    """Of workers."""
    different: Mapping[str, str]
    """What those have that differ from this process, by what people call them."""


class Workers(Protocol):
    """Who computes the parts of a step. May be used by several threads at once."""

    @property
    def count(self) -> int:
        """How many processes compute; 1 if it is this one. Results must not depend on it."""

    def each(self, function: Callable[[T], R], items: Sequence[T], doing: str) -> Iterator[tuple[int, R]]:
        """Call `function` once with each item; yield the index of the item and what was returned, as calls end.

        The order is that in which calls end. A call whose worker dies is made again on another one, so a function must
        be safe to call twice. A single item is computed by this process, whatever the workers are.

        Args:
            function: can be imported by its name, and is the same code here and on the workers.
            items: small records, which are pickled, as are the results. They carry no credentials. If they have a
                `label`, errors call them by that.
            doing: what is being done, for progress: `decode train`.

        Raises:
            IdxflowError: that of the first item, in the order of items, whose call failed. The calls that were under
                way have ended then.
            WorkersFailed: the workers cannot be reached, have all ended, or run other code than this process.
            Cancelled: the run is being stopped. So are the calls, at their next `cancellation.check`.
        """

    @property
    def elsewhere(self) -> bool:
        """Whether they are processes that this run has not started, so that they may be on other machines."""

    def one(self, function: Callable[[T], R], item: T) -> R:
        """Call `function` with one item that is worth a worker, such as a whole training; tell its progress here.

        Workers that are elsewhere compute it, as `each` says. Otherwise this process does: those of the run are on the
        same machine, so they would only need the memory for another copy of the libraries.

        Raises:
            Exception: as for `each`.
        """

    def begin(self, modules: tuple[str, ...]) -> None:
        """Start what a run will soon need, without waiting for it: what takes long to start does so meanwhile.

        Args:
            modules: those whose functions will be called, in this order; processes of the run import them.
        """

    def survey(self, modules: tuple[str, ...]) -> Survey:
        """Ask all workers what they would compute the functions of some modules with.

        Raises:
            WorkersFailed: they cannot be reached, or there are none.
        """

    def close(self) -> None:
        """Let go of the workers; those that were started for this run end."""
