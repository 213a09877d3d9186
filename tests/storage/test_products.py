"""Matrix products, and what is computed with them, are the same with one thread and with several."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from storage.formats.products import product
from tasks.model import forward
from tasks.model.network import Architecture

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [(1, 784, 10), (64, 784, 128), (1000, 784, 10), (1000, 784, 300), (500, 1030, 64), (2000, 288, 64)]
CHILD = "from tests.storage.test_products import computed; print(computed())"


def computed() -> str:
    """Return the digest of some products and of the logits of a network."""
    drawn = np.random.default_rng(1)
    total = hashlib.sha256()
    for rows, terms, columns in SHAPES:
        left, right = (drawn.standard_normal(shape, np.float32) for shape in ((rows, terms), (terms, columns)))
        total.update(product(left, right).tobytes())
    architecture = Architecture(inputs=784, hidden=(128,), activation="relu", classes=10)
    weights = {name: drawn.standard_normal(shape, np.float32) for name, shape in architecture.shapes.items()}
    total.update(forward.logits(architecture, weights, drawn.standard_normal((500, 784), np.float32)).tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_the_number_of_threads_changes_no_byte(threads: str) -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads}
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert child.stdout.strip() == computed()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_is_right(shape: tuple[int, int, int]) -> None:
    rows, terms, columns = shape
    drawn = np.random.default_rng(2)
    left, right = (drawn.integers(-8, 8, shape) for shape in ((rows, terms), (terms, columns)))
    found = product(left.astype(np.float32), right.astype(np.float32))
    assert found.dtype == np.float32
    assert np.array_equal(found, left @ right)
