"""How long commands and imports take, from start to end of a process: `python -m benchmarks.starting help`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks import subjects
from benchmarks.subjects import Measured

BIN = Path(sys.executable).parent
ASKED = {
    "idxflow --help": [str(BIN / "idxflow"), "--help"],
    "idxflow run --help": [str(BIN / "idxflow"), "run", "--help"],
    "idxflow datasets": [str(BIN / "idxflow"), "datasets"],
    "prefect --help": [str(BIN / "prefect"), "--help"],
    "python alone": [sys.executable, "-c", "pass"],
    **{
        f"import {module}": [sys.executable, "-c", f"import {module}"]
        for module in (
            "flows.commands.cli", "flows.retrain", "storage.store", "numpy", "pyarrow", "pandas", "sklearn", "prefect",
            "great_expectations", "tensorflow", "keras", "jax", "torch",
        )
    },
}  # fmt: skip


def process(name: str) -> Measured:
    """Time a whole process."""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}

    def work() -> None:
        done = subprocess.run(ASKED[name], env=environment, capture_output=True, text=True, check=False)
        if done.returncode and "ModuleNotFoundError" in done.stderr:
            raise ModuleNotFoundError(done.stderr, name=name.removeprefix("import "))
        if done.returncode:
            sys.exit(f"{name} ended with {done.returncode}: {done.stderr}")

    return Measured({name: subjects.timed(work, 1)})


VARIANTS: subjects.Variants = {name: (lambda name=name: process(name)) for name in ASKED}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
