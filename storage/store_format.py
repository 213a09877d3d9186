"""The format of a store, and whether this version of idxflow can use it.

    <root>/store.json      {"format": 4, "idxflow": "0.1.0"}, written by the first run in a store

Versions of the registry and records of the ledger contain the number, too. The first run or decision of this version
raises the number in a store of an earlier format, and leaves its records as they are. docs/store-format.md describes
each format.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from storage.errors import DamagedEntry, StoreError, unreadable
from storage.files import NotRegular
from storage.objects import sealed
from storage.objects.folder import Folder
from storage.objects.protocol import Objects

FORMAT = 4
"""The format that this version writes."""
READABLE = (2, 3, FORMAT)
"""The formats that it reads; a store without `store.json` has format 2."""
STORE_FILE = "store.json"


def check(objects: Objects) -> int | None:
    """Check that this version can use the store of `objects`; return the format in its `store.json`, if it has one.

    Raises:
        StoreError: a later version of idxflow wrote it, or `store.json` cannot be read now.
        DamagedEntry: `store.json` does not name a format.
    """
    path = objects.where(STORE_FILE)
    try:
        values = sealed.read(objects, STORE_FILE)
        number = values["format"]
        if type(number) is not int:
            raise ValueError(f"found the format {number!r}")
    except FileNotFoundError:
        return None
    except (NotRegular, IsADirectoryError, ValueError, KeyError) as error:
        raise DamagedEntry(
            f"{path}: expected the format of the store; {error}; remove this file: the next run writes it again"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if number not in READABLE:
        raise StoreError(
            f"{path}: expected a store of format {FORMAT} or earlier; found format {number}, written by idxflow "
            f"{values.get('idxflow', 'unknown')}; use that version or a later one, or choose another store with --store"
        )
    return int(number)


def mark(objects: Objects) -> None:
    """Record that the store of `objects` has the format of this version, unless that is recorded already.

    Raises:
        StoreError, DamagedEntry: see `check`.
    """
    recorded = check(objects)
    # If the disk is full, the store may still hold everything the run needs; the next run records the format.
    with suppress(OSError):
        if isinstance(objects, Folder):
            for left_by_a_killed_run in objects.root.glob(f".{STORE_FILE}.*"):
                left_by_a_killed_run.unlink()
        if recorded != FORMAT:
            sealed.write(objects, STORE_FILE, {"format": FORMAT, "idxflow": _version()})


def _version() -> str:
    try:
        return version("idxflow")
    except PackageNotFoundError:
        # Imported from a checkout that is not installed.
        return "unknown"
