"""Tables that suites are evaluated on."""

from __future__ import annotations

import numpy as np

from expectations import summary


def faulty(rows: int, classes: int, seed: int) -> summary.Table:
    """Return an image table with faults of every kind in it."""
    random = np.random.default_rng(seed)
    table: summary.Table = {name: random.integers(0, 2, rows) for name in summary.IMAGE_COLUMNS}
    table |= {"index": np.arange(rows), "digest": random.integers(-(2**63), 2**63 - 1, rows)}
    # Most classes are in few rows, some in none; some labels are no class.
    table["label"] = np.minimum(random.geometric(4 / classes, rows), classes + 2)
    table |= {"pixel_min": random.integers(0, 90, rows), "pixel_max": random.integers(90, 256, rows)}
    table |= {"mean": random.uniform(10, 40, rows)}
    return {name: table[name].astype(kind) for name, kind in summary.IMAGE_COLUMNS.items()}
