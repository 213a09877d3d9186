"""Measure variants in turn, round by round, each in a process of its own.

A round measures every variant of a comparison once, so a machine that becomes slower or faster does so for all of
them, and ratios are taken within rounds. Where a variant may use one or more threads, a first round tries each number
and the faster one is kept.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.subjects import MNIST_VARIABLE, QUICK_VARIABLE, THREADS_VARIABLE, WORK_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 900
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_FOREIGN = ("PREFECT_", "IDXFLOW_", "OPENBLAS_", "OMP_", "MKL_", "TF_", "XLA_", "JAX_", "KERAS_", "PYTHON")
"""Settings of whoever measures that would change what is measured."""


@dataclass(frozen=True)
class Variant:
    """One way to do the work."""

    name: str
    what: str
    """In words, for the table."""
    threads: tuple[int, ...] = ()
    """Numbers of threads to try; none: it chooses for itself."""
    rows: tuple[str, ...] = ()
    """What it measures; by default one figure, named like the variant."""
    rounds: int | None = None
    """At most so many rounds, for what takes long and is far off."""

    @property
    def measures(self) -> tuple[str, ...]:
        return self.rows or (self.name,)


@dataclass(frozen=True)
class Comparison:
    """Variants that do the same work."""

    name: str
    title: str
    what: str
    """What the work is, in a sentence."""
    module: str
    variants: tuple[Variant, ...]
    base: str
    """The row that the others are compared with."""
    most_rounds: int | None = None
    unit: str = "seconds"
    columns: tuple[str, ...] = ()
    """If the rows are named `line | column`: the columns of a table with one line for each line."""


@dataclass(frozen=True)
class Outcome:
    """How one process ended."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    said: str = ""
    missing: str = ""
    """The module that is not installed."""
    failed: str = ""
    """Why there are no figures, for the terminal: it may name files of this machine."""


@dataclass(frozen=True)
class Row:
    """The figures of one row of a table."""

    name: str
    what: str
    seconds: tuple[float | None, ...]
    """One per round."""
    threads: int | None = None
    said: str = ""
    missing: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Spread:
    """Median, least and most of some numbers."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Results:
    """All rows of all comparisons."""

    rows: Mapping[str, tuple[Row, ...]]
    """By comparison."""

    def seconds(self, comparison: str, row: str) -> tuple[float | None, ...]:
        """Return the seconds of a row in each round; none where it was not measured."""
        return next((found.seconds for found in self.rows.get(comparison, ()) if found.name == row), ())

    def fastest(self, comparison: str, names: Sequence[str]) -> str | None:
        """Return which of the rows has the lowest median, if any was measured."""
        medians = {name: spread(self.seconds(comparison, name)) for name in names}
        measured = {name: found.median for name, found in medians.items() if found}
        return min(measured, key=measured.__getitem__) if measured else None


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return the spread of what was measured, if anything was."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known)) if known else None


def ratio(above: Sequence[float | None], below: Sequence[float | None]) -> Spread | None:
    """Return the spread of the ratios of each round in which both were measured."""
    pairs = zip(above, below, strict=False)
    return spread([a / b for a, b in pairs if a is not None and b])


Run = Callable[[str, str, int | None], Outcome]
"""Measures a module's variant with a number of threads."""


@dataclass(frozen=True)
class Bench:
    """Where and how to measure."""

    mnist: Path
    work: Path
    quick: bool = False

    def run(self, module: str, variant: str, threads: int | None) -> Outcome:
        """Measure a variant once, in a process of its own."""
        command = [sys.executable, "-m", f"benchmarks.{module}", variant]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=self.environment(threads), capture_output=True, text=True, check=False,
                stdin=subprocess.DEVNULL, timeout=LIMIT_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Outcome(failed=f"took longer than {LIMIT_SECONDS} s")
        return parsed(done.returncode, done.stdout, done.stderr)

    def environment(self, threads: int | None) -> dict[str, str]:
        """Return the variables of a measured process: those of the shell without settings that would change it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        own = {
            MNIST_VARIABLE: str(self.mnist),
            WORK_VARIABLE: str(self.work),
            QUICK_VARIABLE: "1" if self.quick else "0",
            "HOME": str(self.work),
            "PREFECT_HOME": str(self.work / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "NO_COLOR": "1",
            "PYTHONPATH": str(ROOT),
        }
        limits = {} if threads is None else dict.fromkeys((THREADS_VARIABLE, *POOLS), str(threads))
        return {**kept, **own, **limits}


def parsed(code: int, output: str, errors: str) -> Outcome:
    """Read what a measured process printed."""
    lines = output.strip().splitlines()
    if code or not lines:
        return Outcome(failed=(errors.strip().splitlines() or [f"ended with {code}"])[-1])
    found = json.loads(lines[-1])
    return Outcome(found["seconds"], found["said"], found["missing"])


def say(text: str) -> None:
    """Tell whoever waits."""
    print(text, file=sys.stderr, flush=True)


def compare(comparison: Comparison, rounds: int, run: Run) -> tuple[Row, ...]:
    """Measure a comparison: first the number of threads, then all rounds."""
    say(f"{comparison.name}: {comparison.title}")
    rounds = min(rounds, comparison.most_rounds or rounds)
    chosen = {variant.name: _threads(comparison, variant, run) for variant in comparison.variants}
    outcomes: dict[str, list[Outcome]] = {variant.name: [] for variant in comparison.variants}
    for number in range(rounds):
        for variant in comparison.variants:
            if not _is_over(variant, outcomes[variant.name]):
                outcome = run(comparison.module, variant.name, chosen[variant.name])
                outcomes[variant.name].append(outcome)
                say(f"  round {number + 1} of {rounds}  {_line(variant.name, outcome)}")
    return tuple(
        row for variant in comparison.variants for row in _rows(variant, chosen[variant.name], outcomes[variant.name])
    )


def _threads(comparison: Comparison, variant: Variant, run: Run) -> int | None:
    """Return the number of threads that the variant is fastest with."""
    if len(variant.threads) < 2:
        return variant.threads[0] if variant.threads else None
    seconds: dict[int, float] = {}
    for number in variant.threads:
        outcome = run(comparison.module, variant.name, number)
        say(f"  {number} thread{'s' if number > 1 else ''}     {_line(variant.name, outcome)}")
        if not outcome.seconds:
            return variant.threads[0]
        seconds[number] = sum(outcome.seconds.values())
    return min(seconds, key=seconds.__getitem__)


def _is_over(variant: Variant, so_far: Sequence[Outcome]) -> bool:
    """Return whether another round would tell nothing more."""
    enough = variant.rounds is not None and len(so_far) >= variant.rounds
    return enough or any(outcome.missing for outcome in so_far)


def _rows(variant: Variant, threads: int | None, outcomes: Sequence[Outcome]) -> list[Row]:
    said = next((outcome.said for outcome in reversed(outcomes) if outcome.said), "")
    missing = next((outcome.missing for outcome in outcomes if outcome.missing), "")
    return [
        Row(
            name,
            variant.what if name == variant.name else "",
            tuple(outcome.seconds.get(name) for outcome in outcomes),
            threads,
            said if name == variant.measures[0] else "",
            missing,
            any(outcome.failed for outcome in outcomes),
        )
        for name in variant.measures
    ]


def _line(name: str, outcome: Outcome) -> str:
    if outcome.failed:
        return f"{name}: failed: {outcome.failed}"
    if outcome.missing:
        return f"{name}: {outcome.missing} is not installed"
    figures = ", ".join(f"{row} {seconds:.3f} s" for row, seconds in outcome.seconds.items())
    return f"{figures}  {outcome.said}".rstrip()
