"""Commands that read a store, and the first line of a run: `python -m benchmarks.commands commands`."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from benchmarks import subjects
from benchmarks.job import BIN, checked
from benchmarks.subjects import Measured

READING = {
    "idxflow status": ["status"],
    "idxflow registry history": ["registry", "history", "digits"],
    "idxflow runs list": ["runs", "list", "digits"],
    "idxflow report": ["report", "digits"],
}
FIRST_LINE = "first line of `idxflow run`"


def commands() -> Measured:
    """Time each command with a store that has one run in it, and how soon another run prints its first line."""
    store = subjects.new_folder("store")
    checked([str(BIN / "idxflow"), "run", "digits", "--profile", "fast", "--store", str(store), "--json"])
    seconds = {
        name: subjects.timed(lambda words=words: checked([str(BIN / "idxflow"), *words, "--store", str(store)]))
        for name, words in READING.items()
    }
    return Measured({**seconds, FIRST_LINE: _first_line(store)})


def _first_line(store: Path) -> float:
    command = [str(BIN / "idxflow"), "run", "digits", "--profile", "fast", "--store", str(store)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.readline()
        seconds = time.perf_counter() - started
        process.stdout.read()
    return seconds


VARIANTS: subjects.Variants = {"commands": commands}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
