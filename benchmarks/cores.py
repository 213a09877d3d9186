"""What two processors gain over one, where work goes side by side: `python -m benchmarks.cores "splits in turn"`."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from benchmarks import subjects
from benchmarks.decoding import to_parquet
from benchmarks.job import checked
from benchmarks.subjects import Measured

SPLITS = ("train", "test")
SEEDS = 4


def splits(name: str, at_once: int) -> Measured:
    """Decode both splits, as many at once as said; a run does two."""
    folder = subjects.new_folder("splits")

    def decode() -> None:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda split: to_parquet(split, folder), SPLITS))

    return Measured({name: subjects.timed(decode)})


def seeds(name: str, at_once: int) -> Measured:
    """Retrain `digits` with several seeds, each run a process of its own, as many at once as said."""
    number = 2 if subjects.quick() else SEEDS
    command = [sys.executable, "-m", "benchmarks.seeds", "digits", "--seeds", str(number), "--at-once", str(at_once)]
    return Measured({name: checked(command)[0]}, f"{number} runs")


VARIANTS: subjects.Variants = {
    "splits in turn": lambda: splits("splits in turn", 1),
    "splits side by side": lambda: splits("splits side by side", 2),
    "seeds in turn": lambda: seeds("seeds in turn", 1),
    "seeds, two at once": lambda: seeds("seeds, two at once", 2),
}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
