"""The rows of a data set that a person has released from quarantine: a text file in the store.

`<dataset>/released.txt` has a row digest per line, as `idxflow quarantine list` prints it; what follows a `#` is a
comment. People may edit it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from storage.errors import StoreError
from storage.files import locked, open_regular, write_bytes
from storage.store import LOCKS, Store, store_errors

FILE = "released.txt"
LOCK = "released.lock"
MAX_BYTES = 1 << 26
"""The largest file that is read: a million rows."""
_LINE = re.compile(r"([0-9a-fA-F]{32})?\s*(#.*)?")


def path_of(store: Store, dataset: str) -> Path:
    """Return the path of the file, which need not exist."""
    return store.part(dataset, FILE)


def read(store: Store, dataset: str) -> tuple[str, ...]:
    """Return the digests of the released rows, sorted.

    Raises:
        StoreError: the file cannot be read, or a line is not a row digest.
    """
    path = path_of(store, dataset)
    return tuple(sorted({digest for line in _lines(path) if (digest := _digest(line))}))


def release(store: Store, dataset: str, rows: Mapping[str, str]) -> int:
    """Release rows, each given as its digest and a comment; return how many were not released before.

    Raises:
        StoreError: the file cannot be read or written.
    """
    path = path_of(store, dataset)
    with store_errors(path), locked(store.part(dataset, LOCKS) / LOCK):
        known, lines = {*read(store, dataset)}, _lines(path)
        new = [f"{digest}  # {comment}" for digest, comment in rows.items() if digest not in known]
        if new:
            _write(path, [*lines, *new])
        return len(new)


def take_back(store: Store, dataset: str, digests: Iterable[str]) -> int:
    """End the release of rows; return of how many.

    Raises:
        StoreError: the file cannot be read or written.
    """
    path = path_of(store, dataset)
    with store_errors(path), locked(store.part(dataset, LOCKS) / LOCK):
        ended, lines = {*digests} & {*read(store, dataset)}, _lines(path)
        if ended:
            _write(path, [line for line in lines if _digest(line) not in ended])
        return len(ended)


def _lines(path: Path) -> list[str]:
    """Return the lines of the file after checking each; empty if there is no file."""
    try:
        with open_regular(path) as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        lines = data.decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise StoreError(
            f"{path}: expected the list of released rows; found {problem}; correct or remove it"
        ) from error
    for number, line in enumerate(lines, 1):
        if not _LINE.fullmatch(line.strip()):
            raise StoreError(
                f"{path}: expected a row digest of 32 hexadecimal digits, as `idxflow quarantine list` prints it, or a "
                f"comment after #; found {line[:40]!r} in line {number:,}; correct or remove that line"
            )
    return lines


def _digest(line: str) -> str | None:
    match = _LINE.fullmatch(line.strip())
    return match[1].lower() if match and match[1] else None


def _write(path: Path, lines: list[str]) -> None:
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
