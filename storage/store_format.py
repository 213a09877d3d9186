"""Which format a store has, and whether this version of idxflow can use it.

    <root>/store.json      {"format": 3, "idxflow": "0.1.0"}, written by the first run in a store

Versions of the registry and records of the ledger carry the number, too: a store of the format before gets `store.json`
from the first run of this version, and keeps its records as they are. docs/store-format.md says what each format has.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from storage.errors import DamagedEntry, StoreError, unreadable
from storage.files import NotRegular, create_json, read_json

FORMAT = 3
"""What this version writes."""
READABLE = (2, FORMAT)
"""What it reads: a store without `store.json` has format 2."""
STORE_FILE = "store.json"


def check(root: Path) -> bool:
    """Make sure that this version can use the store at `root`; return whether it has a `store.json`.

    Raises:
        StoreError: a later version of idxflow has written it, or `store.json` cannot be read now.
        DamagedEntry: that file does not say which format it is.
    """
    path = root / STORE_FILE
    try:
        values = read_json(path)
        number = values["format"]
        if type(number) is not int:
            raise ValueError(f"found the format {number!r}")
    except FileNotFoundError:
        return False
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
    return True


def mark(root: Path) -> None:
    """Write down the format of the store at `root`, unless that has been done.

    Raises:
        StoreError, DamagedEntry: see `check`.
    """
    is_marked = check(root)
    # A disk that is full may have all that the run needs; the next run marks the store.
    with suppress(OSError):
        for left_by_a_killed_run in root.glob(f".{STORE_FILE}.*"):
            left_by_a_killed_run.unlink()
        if not is_marked:
            create_json(root / STORE_FILE, {"format": FORMAT, "idxflow": _version()})


def _version() -> str:
    try:
        return version("idxflow")
    except PackageNotFoundError:
        # Imported from a checkout that is not installed.
        return "unknown"
