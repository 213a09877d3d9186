"""Variables of the environment that would change the weights of a training."""

from __future__ import annotations

import os

ARITHMETIC = (
    *("TF_ENABLE_ONEDNN_OPTS", "TF_DISABLE_MKL", "TF_SET_ONEDNN_FPMATH_MODE", "TF_XLA_FLAGS", "XLA_FLAGS"),
    *(f"{library}_{name}" for library in ("ONEDNN", "DNNL") for name in ("MAX_CPU_ISA", "DEFAULT_FPMATH_MODE")),
    *(f"{library}_CPU_ISA_HINTS" for library in ("ONEDNN", "DNNL")),
)
"""Variables by which TensorFlow and oneDNN choose among kernels that round differently."""


def leave_to_the_processor() -> None:
    """Remove variables that would give other weights for the same data, parameters, code and seed.

    Every process that trains calls this before it imports TensorFlow, which reads them on import. They are removed
    rather than set: the weights in every store were made with what TensorFlow chooses without them.
    """
    for name in ARITHMETIC:
        os.environ.pop(name, None)
