"""Stores as earlier versions wrote them (tests/storage/test_store_format.py says what is in them)."""

from __future__ import annotations

import tarfile
from pathlib import Path

from storage.store import Store

_FOLDER = Path(__file__).parents[1] / "storage"


def unpacked(number: int, folder: Path) -> Store:
    """Unpack the store of a format beside the manifest and the archives of its data set, `tiny`; return it."""
    with tarfile.open(_FOLDER / f"store-format-{number}.tar.xz") as archive:
        # Python 3.11 has had filters since its fourth patch release; Debian 12 has the second.
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return Store(folder / "store")
