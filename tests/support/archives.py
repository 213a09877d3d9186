"""Archives for tests."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from storage.datasets import catalog
from storage.formats import idx


def write_archives(folder: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write arrays, by role, as archives with the usual names; return the folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for role, array in arrays.items():
        (folder / catalog.DEFAULT_FILES[role]).write_bytes(gzip.compress(idx.encode(array), mtime=0))
    return folder
