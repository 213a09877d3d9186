"""The results as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.goals import GOALS, Judged, judge
from benchmarks.machine import Machine
from benchmarks.measure import Comparison, Results, Row, Spread, ratio, spread

INTRODUCTION = (
    "Written by `make bench`; [docs/benchmarks.md](../docs/benchmarks.md) says what is compared and how to read it. "
    "Median of the rounds, in brackets the lowest and the highest; ratios are taken within each round."
)
QUICK = "**Made with `--quick`: shortened work, a first look. The goals are about the whole work.**"
BUSY = "**The machine was busy with other work when this began, so read these figures with care.**"
BUSY_LOAD = 0.5
"""Load, per core, from which on a machine counts as busy."""
BEGIN, END = "<!-- make bench: the table begins -->", "<!-- make bench: the table ends -->"
"""Lines of docs/benchmarks.md, around what `with_spending` replaces."""


def page(
    results: Results, comparisons: Iterable[Comparison], machine: Machine, command: str, quick: bool = False
) -> str:
    """Return the whole page."""
    measured = [comparison for comparison in comparisons if comparison.name in results.rows]
    parts = ["# Results", INTRODUCTION, _warnings(machine, quick), _setting(machine, command), _goals(results, quick)]
    parts += [_section(comparison, results) for comparison in measured]
    return "\n\n".join(part for part in parts if part) + "\n"


def with_spending(text: str, comparison: Comparison, results: Results, machine: Machine) -> str:
    """Return docs/benchmarks.md with the table of where the seconds go, as measured now."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    source = f"Median seconds of `make bench` on {machine.date} ({machine.processor}, {machine.cores} cores):"
    shown = columns(comparison, results.rows[comparison.name])
    return "\n\n".join((f"{before}{BEGIN}", source, shown, f"{END}{after}"))


def _warnings(machine: Machine, quick: bool) -> str:
    busy = machine.load > BUSY_LOAD * machine.cores
    return "\n\n".join(text for text, holds in ((QUICK, quick), (BUSY, busy)) if holds)


def _setting(machine: Machine, command: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.packages)
    return "\n".join(
        (
            f"- Machine: {machine.processor}, {machine.cores} cores, {machine.memory_gib:.0f} GiB, {machine.system}, "
            f"load {machine.load:.1f} at the start",
            f"- Python {machine.python}; {versions}",
            f"- BLAS of NumPy: {machine.blas}",
            f"- Date: {machine.date}",
            f"- Command: `{command}`",
        )
    )


def _goals(results: Results, quick: bool) -> str:
    judged = [judge(goal, results) for goal in GOALS if goal.comparison in results.rows]
    if not judged:
        return ""
    lines = table(("goal", "limit", "measured", "", "compared with", "why"), [_goal(found, quick) for found in judged])
    return f"## Goals\n\n{lines}"


def _goal(judged: Judged, quick: bool) -> tuple[str, ...]:
    goal, found = judged.goal, judged.found
    unit = "" if goal.against else f" {goal.unit}"
    limit = f"≤ {goal.limit:g}{unit}"
    if found is None:
        return goal.text, limit, "not measured", "", "", ""
    if quick:
        return goal.text, limit, _spread(found, unit), "not judged", judged.against, ""
    verdict = "met" if judged.met else f"missed by {found.median / goal.limit - 1:.0%}"
    return goal.text, limit, _spread(found, unit), verdict, judged.against, judged.why


def _section(comparison: Comparison, results: Results) -> str:
    rows = results.rows[comparison.name]
    if comparison.columns:
        return f"## {comparison.title}\n\n{comparison.what}\n\n{columns(comparison, rows)}"
    base = results.seconds(comparison.name, comparison.base)
    head = ("", "how", "threads", comparison.unit, f"ratio to {comparison.base}", "checked")
    lines = table(head, [_row(row, base) for row in rows])
    return f"## {comparison.title}\n\n{comparison.what}\n\n{lines}"


def columns(comparison: Comparison, rows: Sequence[Row]) -> str:
    """Return a table of the median seconds: a line for each line, a column for each column of the comparison."""
    medians = {row.name: found.median for row in rows if (found := spread(row.seconds))}
    lines = dict.fromkeys(row.name.rpartition(" | ")[0] for row in rows)

    def cells(line: str) -> tuple[str, ...]:
        found = (medians.get(f"{line} | {column}") for column in comparison.columns)
        return line, *("" if value is None else f"{value:.2f}" for value in found)

    shown = (cells(line) for line in lines)
    return table((comparison.unit, *comparison.columns), [row for row in shown if any(row[1:])])


def _row(row: Row, base: Sequence[float | None]) -> tuple[str, ...]:
    seconds, against = spread(row.seconds), ratio(row.seconds, base)
    threads = "" if row.threads is None else str(row.threads)
    if seconds is None:
        return row.name, row.what, "", f"not installed: {row.missing}" if row.missing else "failed", "", ""
    said = "; ".join(text for text in (row.said, "failed in some rounds" if row.failed else "") if text)
    return row.name, row.what, threads, _spread(seconds), _spread(against) if against else "", said


def _spread(found: Spread, unit: str = "") -> str:
    return f"{_digits(found.median)}{unit} ({_digits(found.low)}–{_digits(found.high)})"


def _digits(value: float) -> str:
    """Return three significant digits, in plain notation."""
    places = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3 if value >= 0.1 else 4
    return f"{value:,.{places}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, without columns that are empty in every row."""
    rows = list(rows)
    kept = [number for number in range(len(head)) if any(row[number] for row in rows)]
    lines = [[head[number] for number in kept], ["---"] * len(kept), *([row[n] for n in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
