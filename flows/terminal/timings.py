"""Print where the seconds of a command went."""

from __future__ import annotations

from collections.abc import Iterable

from flows.terminal.output import print_line, print_table
from storage.runtime.timings import Clock, Spent

_SMALL = 0.01
"""Share of the whole below which names of one kind have a line together."""


def to_json(clock: Clock) -> dict[str, list[dict[str, float | str]]]:
    """Return all that was measured, by process."""
    return {
        process: [{"name": each.name, "seconds": each.seconds, "count": each.count} for each in spent]
        for process, spent in _processes(clock).items()
    }


def print_timings(clock: Clock) -> None:
    """Print a table for each process: seconds, their share, how often, and what for."""
    for process, spent in _processes(clock).items():
        total = sum(each.seconds for each in spent)
        print_line("")
        print_line(f"{total:.2f} s of {process}")
        print_table(
            (f"{each.seconds:.2f} s", f"{each.seconds / total:.0%}", f"{each.count}×" if each.count else "", each.name)
            for each in _merged(spent, total * _SMALL)
        )


def _processes(clock: Clock) -> dict[str, tuple[Spent, ...]]:
    return {"this command": clock.spent(), **clock.elsewhere}


def _merged(spent: Iterable[Spent], least: float) -> list[Spent]:
    """Return the names in order; of each kind (the first word), those below `least` seconds come together, last."""
    small: dict[str, list[Spent]] = {}
    large = []
    for each in spent:
        if each.seconds >= least:
            large.append(each)
        else:
            small.setdefault(each.name.partition(" ")[0], []).append(each)
    return large + [_together(kind, few) for kind, few in small.items() if sum(each.count for each in few)]


def _together(kind: str, few: list[Spent]) -> Spent:
    name = few[0].name if len(few) == 1 else f"{kind}: {len(few)} others"
    return Spent(name, sum(each.seconds for each in few), sum(each.count for each in few))
