"""How fast a trained network answers with NumPy alone, and with TensorFlow.

python -m benchmarks.answers
python -m benchmarks.answers --rows 1000 --profile default

Classifies random images of 28 × 28 pixels with the networks of these profiles, three times, and prints the fastest.
NumPy takes all processors, TensorFlow one, as idxflow sets it up. To load TensorFlow is counted apart. The weights are
those at the start of a training: the time does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from storage.datasets import catalog
from storage.datasets.training import PROFILES, training_config
from tasks.model import forward, network

SHAPE, CLASSES, AT_ONCE = (28, 28), 10, 2048


def main() -> None:
    """Measure, and print a line for each profile and library."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--profile", action="append", choices=tuple(PROFILES), help="can be repeated")
    asked = parser.parse_args()
    profiles = asked.profile or ["default", "conv"]
    rows = np.random.default_rng(0).normal(size=(asked.rows, SHAPE[0] * SHAPE[1])).astype(np.float32)
    networks = {name: _network(name) for name in profiles}
    for name, (architecture, weights) in networks.items():
        _print(name, "NumPy", len(rows), _fastest(partial(forward.logits, architecture, weights), rows))
    started = time.perf_counter()
    network.tensorflow()
    for name, (architecture, weights) in networks.items():
        model = network.build(architecture, weights)
        if name == profiles[0]:
            print(f"to load TensorFlow and Keras: {time.perf_counter() - started:.2f} s")
        compiled = network.tensorflow().function(model)
        _print(name, "TensorFlow", len(rows), _fastest(compiled, rows))


def _network(profile: str) -> tuple[network.Architecture, network.Weights]:
    config = training_config(catalog.find("mnist"), profile)  # type: ignore[arg-type]
    shape = SHAPE if config.conv else None
    architecture = network.Architecture(
        SHAPE[0] * SHAPE[1], config.hidden, config.activation, CLASSES, config.conv, shape, config.batch_norm
    )
    return architecture, network.initial_weights(architecture, 1)


def _fastest(answer: Callable[[np.ndarray], Any], rows: np.ndarray) -> float:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        for first in range(0, len(rows), AT_ONCE):
            answer(rows[first : first + AT_ONCE])
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _print(profile: str, library: str, rows: int, seconds: float) -> None:
    print(f"{profile:10}  {library:10}  {seconds:6.2f} s for {rows:,} rows", flush=True)


if __name__ == "__main__":
    main()
