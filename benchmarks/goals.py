"""What is meant to be reached, and how far it was."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measure import Results, Spread, ratio, spread


@dataclass(frozen=True)
class Goal:
    """A limit of a ratio of two rows of one comparison; or of seconds, where there is nothing to compare with."""

    key: str
    text: str
    comparison: str
    row: str
    limit: float
    against: tuple[str, ...] = ()
    """Of these rows the fastest counts."""


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
GOALS = (
    Goal("job", "whole job / tutorial script", "job", "idxflow run", 0.35, ("tutorial script",)),
    Goal("fit", "epoch / epoch of `model.fit`", "training", "idxflow", 0.16, ("model.fit",)),
    Goal("jax", "epoch / epoch of JAX", "training", "idxflow", 0.7, JAX),
    Goal("blas", "epoch / BLAS floor", "training", "idxflow", 1.25, ("BLAS floor",)),
    Goal("arrays", "decoding to arrays / fastest gunzip", "decoding", "idxflow to arrays", 2, GUNZIPS),
    Goal("parquet", "decoding to Parquet / fastest gunzip", "decoding", "idxflow to Parquet", 2, GUNZIPS),
    Goal("rerun", "unchanged run / first run", "rerun", "unchanged run", 0.1, ("first run",)),
    Goal("rerun-seconds", "unchanged run, warm server", "rerun", "unchanged run", 4),
    Goal("help", "`idxflow --help`", "starting", "idxflow --help", 0.5),
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
    "rerun": "Half of it is importing Prefect and the flow (`import flows.retrain` below), before anything else.",
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
