"""What was measured on, without anything that names this very machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = (
    "tensorflow", "keras", "numpy", "pyarrow", "pandas", "scikit-learn", "great-expectations", "prefect",
    "torch", "jax", "jaxlib", "idx2numpy", "python-mnist", "isal", "zlib-ng", "deflate",
)  # fmt: skip
"""Whose versions stand in the results."""


@dataclass(frozen=True)
class Machine:
    """Processor, memory, versions, date and load."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    blas: str
    packages: tuple[tuple[str, str], ...]
    date: str
    load: float
    """Processes that ran or waited for a processor in the minute before."""


def describe() -> Machine:
    """Look at this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        _processor(),
        len(os.sched_getaffinity(0)),
        memory / (1 << 30),
        f"{platform.system()} {platform.machine()}",
        platform.python_version(),
        _blas(),
        tuple((name, _version(name)) for name in PACKAGES),
        datetime.now(UTC).date().isoformat(),
        os.getloadavg()[0],
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _blas() -> str:
    """Return which BLAS kernels NumPy uses, if threadpoolctl is there to ask."""
    try:
        from threadpoolctl import threadpool_info
    except ModuleNotFoundError:
        return "unknown"
    import numpy as np

    np.dot(np.ones(2), np.ones(2))
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return ", ".join(f"{pool['internal_api']} {pool['version']}, {pool.get('architecture', '')}" for pool in pools)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
