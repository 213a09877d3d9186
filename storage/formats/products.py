"""Matrix products with the same bytes however many threads compute them."""

from __future__ import annotations

import numpy as np

_TERMS = 288
"""So many terms OpenBLAS adds in one piece: the kernels of current processors take 320 or more.

It divides longer sums, with several threads at other places than with one, so the last bits would depend on the number
of processors (`interface/gemm.c` calls `driver/level3/level3.c` or `level3_thread.c`, which round differently). Nine
pixels of 32 channels, a usual convolution, are still one piece.
"""


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the matrix product of float32 arrays of shape (n, k) and (k, m): float32 of shape (n, m)."""
    total: np.ndarray = left[:, :_TERMS] @ right[:_TERMS]
    for start in range(_TERMS, left.shape[1], _TERMS):
        total += left[:, start : start + _TERMS] @ right[start : start + _TERMS]
    return total
