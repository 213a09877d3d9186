"""What is meant to be reached, and how far it was."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import commands, convolutions, elsewhere, memory, rows, serving, spending, trials, workers
from benchmarks.measure import Results, Spread, ratio, spread


@dataclass(frozen=True)
class Goal:
    """A limit of a ratio of two rows of one comparison; or of a figure, where there is nothing to compare with."""

    key: str
    text: str
    comparison: str
    row: str
    limit: float
    against: tuple[str, ...] = ()
    """Of these rows the fastest counts."""
    unit: str = "s"


@dataclass(frozen=True)
class Judged:
    """A goal and what was measured."""

    goal: Goal
    found: Spread | None
    against: str = ""
    """The row it was compared with."""

    @property
    def met(self) -> bool | None:
        """Whether the median is within the limit; None where nothing was measured."""
        return None if self.found is None else self.found.median <= self.goal.limit

    @property
    def why(self) -> str:
        """Why the goal is missed, as far as it is known; empty where it is met."""
        return WHY.get(self.goal.key, "") if self.met is False else ""


GUNZIPS = ("gunzip zlib", "gunzip isal", "gunzip zlib-ng", "gunzip libdeflate")
JAX = ("jax, lax.scan", "jax, a call per step")
ALONE, WARM = (spending.row(spending.ALL, spending.COMMANDS[number]) for number in (1, 3))
PREFECT_ALONE, PREFECT_WARM = (spending.row(spending.PREFECT, spending.COMMANDS[number]) for number in (1, 3))
AT_HOME, ELSEWHERE = elsewhere.rows(elsewhere.FOLDER), elsewhere.rows(elsewhere.OBJECTS)
GOALS = (
    Goal("job", "whole job / tutorial script", "job", "idxflow run", 0.22, ("tutorial script",)),
    Goal("fit", "epoch / epoch of `model.fit`", "training", "idxflow", 0.16, ("model.fit",)),
    Goal("jax", "epoch / epoch of JAX", "training", "idxflow", 0.99, JAX),
    Goal("blas", "epoch / BLAS floor", "training", "idxflow", 1.35, ("BLAS floor",)),
    *(
        Goal(f"conv-{library}", f"epoch of `conv` / `{row}`", "convolutions", convolutions.OURS, 1, (row,))
        for library in ("model.fit", "jax")
        for row in (convolutions.name_of(library, 1),)
    ),
    Goal("tune", "trial, two processes / one", "tune", trials.TWO, 0.625, (trials.ONE,)),
    Goal("arrays", "decoding to arrays / fastest gunzip", "decoding", "idxflow to arrays", 2, GUNZIPS),
    Goal("parquet", "decoding to Parquet / fastest gunzip", "decoding", "idxflow to Parquet", 2, GUNZIPS),
    Goal("rerun", "unchanged run / first run", "rerun", "unchanged run", 0.1, ("first run",)),
    Goal("elsewhere", "first run in object storage / in a folder", "elsewhere", ELSEWHERE[0], 1.5, (AT_HOME[0],)),
    Goal("elsewhere-again", "unchanged run there / in a folder", "elsewhere", ELSEWHERE[1], 1.5, (AT_HOME[1],)),
    Goal("alone", "unchanged run / `import prefect`", "spending", ALONE, 2.5, (PREFECT_ALONE,)),
    Goal("warm", "unchanged run, warm server / `import prefect`", "spending", WARM, 1.2, (PREFECT_WARM,)),
    Goal("alone-seconds", "unchanged run", "spending", ALONE, 3),
    Goal("warm-seconds", "unchanged run, warm server", "spending", WARM, 1.5),
    Goal("first-line", commands.FIRST_LINE, "commands", commands.FIRST_LINE, 0.3),
    Goal("help", "`idxflow --help`", "starting", "idxflow --help", 0.25),
    *(Goal(f"reads-{name}", f"`{name}`", "commands", name, 0.4) for name in commands.READING),
    *(Goal(f"part-{name}", f"cost of a part, {name}", "workers", name, 5, unit="ms") for name in workers.EMPTY),
    *(
        Goal(
            f"two-{line}-{size}",
            f"`{line}` of {rows.variant(size)}, two workers / one on one processor",
            "rows",
            rows.row(line, size, rows.TWO),
            0.625,
            (rows.row(line, size, rows.ALONE),),
        )
        for size in rows.SIZES
        for line in rows.PARALLEL
    ),
    *(
        Goal(
            f"serve-{figure}",
            f"{serving.row(serving.OURS, figure)} / {serving.BARE}",
            "serving",
            serving.row(serving.OURS, figure),
            0.5,
            (serving.row(serving.BARE, figure),),
        )
        for figure in (serving.EACH, serving.P99)
    ),
    Goal("memory", memory.ROWS[0], "memory", memory.ROWS[0], 1.0, unit="GB"),
    Goal("memory-again", memory.ROWS[1], "memory", memory.ROWS[1], 0.2, unit="GB"),
)

_OVERHEAD = (
    "Beside the matrix products, each step gathers and scales its rows and has activations, the loss and its gradient, "
    "the update and two metrics: dozens of small operations, at matrices so small that each of them counts."
)
WHY: dict[str, str] = {
    "job": "Prefect's start and the imports of Great Expectations and TensorFlow come before the first epoch.",
    "fit": _OVERHEAD,
    "jax": "A loop over the whole epoch in one call to XLA, with its fused operations, does as well as ours.",
    "blas": _OVERHEAD,
    **{
        f"two-{line}-{size}": "Starting the workers, and their imports, are part of the first steps; and the run "
        "itself needs some of the two processors."
        for size in rows.SIZES
        for line in rows.PARALLEL
    },
    **dict.fromkeys(
        ("conv-model.fit", "conv-jax"),
        "Nearly all of the time is in the convolutions and poolings of the library, forward and backward.",
    ),
    "tune": "The second process imports TensorFlow, too, and shares the memory and its cache with the first.",
    "rerun": "Half of it is importing Prefect and the flow (`import flows.retrain` below), before anything else.",
    **dict.fromkeys(
        ("alone", "alone-seconds"),
        "Prefect's server: its imports, its application and its tables come to twice `import prefect`, beside it.",
    ),
    **dict.fromkeys(
        ("warm", "warm-seconds"),
        "After `import prefect` come the imports of other libraries and of idxflow, and Prefect's work for each task.",
    ),
    "memory": "Most of it is libraries, TensorFlow first, imported without those that training does not use.",
    "memory-again": "Most of it is importing Prefect and pyarrow, before anything is read.",
    "parquet": "The same bytes are hashed with SHA-256 and compressed with zstd, too, more work than inflating them; "
    "two processors share it.",
}


def judge(goal: Goal, results: Results) -> Judged:
    """Compare a goal with what was measured."""
    ours = results.seconds(goal.comparison, goal.row)
    if not goal.against:
        return Judged(goal, spread(ours))
    fastest = results.fastest(goal.comparison, goal.against)
    if fastest is None:
        return Judged(goal, None)
    return Judged(goal, ratio(ours, results.seconds(goal.comparison, fastest)), fastest)
