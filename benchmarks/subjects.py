"""What a measured process does: it takes the name of a variant, and prints what that took as one line of JSON."""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MNIST_VARIABLE = "IDXFLOW_MNIST_DIR"
"""Folder of the four archives."""
WORK_VARIABLE = "BENCHMARK_WORK"
"""Folder to leave files in; it is removed at the end."""
THREADS_VARIABLE = "BENCHMARK_THREADS"
QUICK_VARIABLE = "BENCHMARK_QUICK"

OURS = {"benchmarks", "flows", "tasks", "expectations", "storage"}
FILES = {
    "train-images": "train-images-idx3-ubyte.gz",
    "train-labels": "train-labels-idx1-ubyte.gz",
    "test-images": "t10k-images-idx3-ubyte.gz",
    "test-labels": "t10k-labels-idx1-ubyte.gz",
}
HELD_OUT = 6_000
"""The last training rows, which weights are not fitted to."""


@dataclass(frozen=True)
class Measured:
    """What one measured process found."""

    seconds: Mapping[str, float]
    """By row of the results; most variants have one row, named like themselves."""
    said: str = ""
    """What shows that the work was done, such as the accuracy that was reached."""
    missing: str = ""
    """The module that is not installed; then there are no seconds."""


Variants = Mapping[str, Callable[[], Measured]]


def answer(variants: Variants) -> None:
    """Measure the variant that the command line names, and print what was found as the last line."""
    parser = argparse.ArgumentParser(description="Measure one variant; `python -m benchmarks` calls this.")
    parser.add_argument("variant", choices=list(variants))
    try:
        found = variants[parser.parse_args().variant]()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in OURS:
            raise
        found = Measured({}, missing=error.name or str(error))
    print(json.dumps(dataclasses.asdict(found)), flush=True)


def timed(work: Callable[[], Any], repeats: int = 5) -> float:
    """Return the median seconds of `repeats` calls, after one that does not count."""
    work()
    return statistics.median(_seconds(work) for _ in range(1 if quick() else repeats))


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def threads() -> int:
    """Return how many threads this process may use."""
    return int(os.environ.get(THREADS_VARIABLE, "1"))


def quick() -> bool:
    """Return whether shortened work is asked for."""
    return os.environ.get(QUICK_VARIABLE) == "1"


def work_folder() -> Path:
    """Return the folder that measured processes share; without one, a new temporary one."""
    return Path(os.environ.get(WORK_VARIABLE) or tempfile.mkdtemp(prefix="idxflow-bench-"))


def new_folder(name: str) -> Path:
    """Make an empty folder of this process's own in the working folder."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=work_folder()))


def archive(role: str) -> Path:
    """Return the archive of `role`, such as `train-images`."""
    return Path(os.environ[MNIST_VARIABLE]) / FILES[role]


def load(role: str) -> np.ndarray:
    """Read an archive in the plainest way: uint8, of shape (rows, 28, 28) or (rows,)."""
    with gzip.open(archive(role)) as stream:
        return plain(stream.read())


def plain(data: bytes) -> np.ndarray:
    """Return the array in the bytes of an uncompressed IDX file of bytes, without any check."""
    dimensions = data[3]
    shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def normalised() -> tuple[np.ndarray, np.ndarray]:
    """Return all training rows by the tutorial's recipe: float32 of shape (60000, 784), and labels as int64."""
    pixels = (load("train-images").reshape(-1, 784) / np.float32(255) - np.float32(0.5)) * np.float32(2)
    pixels -= pixels.mean(axis=0, dtype=np.float64).astype(np.float32)
    pixels /= pixels.std(dtype=np.float64).astype(np.float32)
    return pixels, load("train-labels").astype(np.int64)
