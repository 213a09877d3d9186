"""The rows of a data set that a person has released from quarantine.

    <dataset>/released.txt           in a folder: a row digest per line, as `idxflow quarantine list` prints it; what
                                     follows a `#` is a comment; people may edit it
    <dataset>/released/<digest>      in object storage: an object per row, with the comment; people may remove one

Two people who release rows at once must not undo each other's work. A text file is read and replaced under a lock.
Object storage has no lock, so a row is released by creating its object, and no longer released once that is removed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress

from storage.errors import StoreError
from storage.objects.folder import Folder
from storage.store import Store, store_errors

FILE = "released.txt"
FOLDER = "released"
MAX_BYTES = 1 << 26
"""The largest file that is read: a million rows."""
_LONGEST_COMMENT = 1 << 12
_DIGEST = re.compile(r"[0-9a-f]{32}")
_LINE = re.compile(r"([0-9a-fA-F]{32})?\s*(#.*)?")


def where(store: Store, dataset: str) -> str:
    """Return where the released rows are listed, for people; there need not be any yet."""
    return store.objects.where(_key(store, dataset))


def read(store: Store, dataset: str) -> tuple[str, ...]:
    """Return the digests of the released rows, sorted.

    Raises:
        StoreError: the file cannot be read, or a line is not a row digest.
    """
    key = _key(store, dataset)
    if _is_text(store):
        return tuple(sorted({digest for line in _lines(store, key) if (digest := _digest(line))}))
    return tuple(found.name for found in store.objects.list(key).objects if _DIGEST.fullmatch(found.name))


def misnamed(store: Store, dataset: str) -> list[str]:
    """Return the keys of objects, in object storage, that are in the place of released rows and name none."""
    if _is_text(store):
        return []
    return [
        found.key for found in store.objects.list(_key(store, dataset)).objects if not _DIGEST.fullmatch(found.name)
    ]


def comments(store: Store, dataset: str) -> dict[str, str]:
    """Return the comment of each released row, by its digest.

    Raises:
        StoreError: as for `read`.
    """
    key = _key(store, dataset)
    if _is_text(store):
        lines = (line.partition("#") for line in _lines(store, key) if _digest(line))
        return {digest.strip().lower(): comment.strip() for digest, _, comment in lines}
    found: dict[str, str] = {}
    for digest in read(store, dataset):
        # It may have been taken back since it was listed.
        with suppress(FileNotFoundError):
            data = store.objects.get(f"{key}/{digest}", _LONGEST_COMMENT)
            found[digest] = " ".join(data.decode(errors="replace").split())
    return found


def release(store: Store, dataset: str, rows: Mapping[str, str]) -> int:
    """Release rows, each given as its digest and a comment; return how many were not released before.

    Raises:
        StoreError: the file cannot be read or written.
    """
    key = _key(store, dataset)
    if not _is_text(store):
        return sum(store.objects.create(f"{key}/{digest}", f"{comment}\n".encode()) for digest, comment in rows.items())
    with store_errors(store.root / key), store.alone(dataset, FOLDER):
        known, lines = {*read(store, dataset)}, _lines(store, key)
        new = [f"{digest}  # {comment}" for digest, comment in rows.items() if digest not in known]
        if new:
            _write(store, key, [*lines, *new])
        return len(new)


def take_back(store: Store, dataset: str, digests: Iterable[str]) -> int:
    """End the release of rows; return of how many.

    Raises:
        StoreError: the file cannot be read or written.
    """
    key = _key(store, dataset)
    if not _is_text(store):
        ended = {*digests} & {*read(store, dataset)}
        store.objects.delete(f"{key}/{digest}" for digest in sorted(ended))
        return len(ended)
    with store_errors(store.root / key), store.alone(dataset, FOLDER):
        ended, lines = {*digests} & {*read(store, dataset)}, _lines(store, key)
        if ended:
            _write(store, key, [line for line in lines if _digest(line) not in ended])
        return len(ended)


def _is_text(store: Store) -> bool:
    return isinstance(store.objects, Folder)


def _key(store: Store, dataset: str) -> str:
    return store.key(dataset, FILE if _is_text(store) else FOLDER)


def _lines(store: Store, key: str) -> list[str]:
    """Return the lines of the file after checking each; empty if there is no file."""
    path = store.objects.where(key)
    try:
        data = store.objects.get(key, MAX_BYTES + 1)
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


def _write(store: Store, key: str, lines: list[str]) -> None:
    store.objects.put(key, "".join(f"{line}\n" for line in lines).encode())
