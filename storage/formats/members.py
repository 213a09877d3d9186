"""The entries that another entry consists of: the parts of a split, the archives of a role.

An entry of parts has a file that lists them, so that records stay small with thousands of parts. A part is an entry in
the same folder of the store: made, verified, reused and mended by itself, and kept as long as the one that lists it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from storage.errors import DamagedEntry, made_again
from storage.records import Entry, from_json, to_json

MEMBERS = "parts.jsonl"
"""The name of the list: JSON Lines, the key and the record of each part, in order."""

R = TypeVar("R")


def write(folder: Path, members: Sequence[Any]) -> None:
    """Write the list of `members`, records that live in entries of the store, into the folder of a new entry."""
    with (folder / MEMBERS).open("w", encoding="utf-8") as file:
        for member in members:
            line = {"key": member.entry.key, "record": to_json(member)}
            file.write(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n")


def read(entry: Entry, kind: type[R]) -> Iterator[R]:
    """Yield the records of an entry's members, in order, each with the entry it lives in.

    Raises:
        DamagedEntry: the list is missing or damaged, or a member is missing.
    """
    for values in _listed(entry):
        record: Any = _revived(entry, kind, values)
        yield replace(record, entry=entry.beside(values["key"]))


def keys(entry: Entry) -> list[str]:
    """Return the keys of an entry's members, in order, without looking for them.

    Raises:
        DamagedEntry: the list is missing or damaged.
    """
    return [str(values["key"]) for values in _listed(entry)]


def _listed(entry: Entry) -> Iterator[Mapping[str, Any]]:
    path = entry.path(MEMBERS)
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _revived(entry: Entry, kind: type[R], values: Mapping[str, Any]) -> R:
    try:
        return from_json(kind, values["record"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(entry.path(MEMBERS), error) from error


def _damaged(path: Path, error: Exception) -> DamagedEntry:
    return DamagedEntry(f"{path}: expected the list of its parts; {error}; {made_again(path)}")
