"""What somebody does who can write the store, and knows how."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from storage.files import read_json, sealed
from storage.store import ENTRY, Store


def writable_copy(store: Path, folder: Path) -> Store:
    """Copy a store into `folder`, without its permissions."""
    return Store(shutil.copytree(store, folder / "store", copy_function=shutil.copyfile))


def reseal(folder: Path, **record: Any) -> None:
    """Give an entry a description that fits its files."""
    path = folder / ENTRY
    values = read_json(path)
    for name in values["files"]:
        data = (folder / name).read_bytes()
        values["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    values["record"] |= record
    path.write_bytes(sealed(values))


class Marker:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)
