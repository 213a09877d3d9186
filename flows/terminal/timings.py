"""Print where the seconds of a command went."""

from __future__ import annotations

from collections.abc import Iterable

from flows.terminal.output import print_line
from storage.runtime.timings import OBJECT_STORAGE, Clock, Spent

_SMALL = 0.01
"""Share of the whole below which names of one kind have a line together."""
_OTHERS = {"import": "import {} other libraries", "request": "{} other requests", "step": "{} other steps"}
"""By the first word of the names, their kind."""
_OTHER = "{} others"


def to_json(clock: Clock) -> dict[str, list[dict[str, float | str]]]:
    """Return all that was measured, by process."""
    return {
        process: [{"name": each.name, "seconds": each.seconds, "count": each.count} for each in spent]
        for process, spent in _processes(clock).items()
    }


def print_timings(clock: Clock) -> None:
    """Print a table for each process, longest first: seconds, their share of all, how often, and what for."""
    for process, spent in _processes(clock).items():
        total = sum(each.seconds for each in spent)
        print_line("")
        print_line(f"{total:.2f} s of {process}")
        print_line(_line("seconds", "share", "times", "for"))
        for each in _merged((each for each in spent if not each.name.startswith(OBJECT_STORAGE)), total * _SMALL):
            times = f"{each.count:,}" if each.count else ""
            print_line(_line(f"{each.seconds:.2f}", f"{each.seconds / total:.0%}", times, each.name))
        numbers = [f"{_last_word(each)} {each.count:,}" for each in spent if each.name.startswith(OBJECT_STORAGE)]
        if numbers:
            print_line(f"requests and bytes of object storage: {', '.join(numbers)}")


def _last_word(each: Spent) -> str:
    return each.name.removeprefix(OBJECT_STORAGE)


def _line(seconds: str, share: str, times: str, name: str) -> str:
    return f"{seconds:>7}  {share:>5}  {times:>5}  {name}"


def _processes(clock: Clock) -> dict[str, tuple[Spent, ...]]:
    return {"this command": clock.spent(), **clock.elsewhere}


def _merged(spent: Iterable[Spent], least: float) -> list[Spent]:
    """Return the names, longest first; of each kind, those below `least` seconds have a line together."""
    large, small = [], dict[str, list[Spent]]()
    for each in spent:
        if each.seconds >= least:
            large.append(each)
        else:
            small.setdefault(_OTHERS.get(each.name.partition(" ")[0], _OTHER), []).append(each)
    lines = large + [_together(others, few) for others, few in small.items()]
    return sorted(lines, key=lambda each: -each.seconds)


def _together(others: str, few: list[Spent]) -> Spent:
    name = few[0].name if len(few) == 1 else others.format(len(few))
    return Spent(name, sum(each.seconds for each in few), sum(each.count for each in few))
