"""The entries that another entry consists of: the parts of a split, the archives of a role.

An entry of parts has a file that lists them, so that records stay small with thousands of parts. A part is an entry in
the same folder of the store: made, verified, reused and mended by itself, and kept as long as the one that lists it.

The list may end with other entries of the data set, in any folder, without their records: results from which the parts
are made again sooner. They are only kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from storage.errors import DamagedEntry, made_again
from storage.records import Entry, from_json, to_json

MEMBERS = "parts.jsonl"
"""The name of the list: JSON Lines, the key and the record of each part, in order."""

R = TypeVar("R")


def write(folder: Path, members: Iterable[Any], kept: Iterable[str] = ()) -> None:
    """Write the list of `members`, records that live in entries of the store, into the folder of a new entry.

    Args:
        folder: of the new entry.
        members: the records, in order.
        kept: keys of other entries to keep as long as this one.
    """
    with (folder / MEMBERS).open("w", encoding="utf-8") as file:
        lines = ({"key": member.entry.key, "record": to_json(member)} for member in members)
        for line in chain(lines, ({"key": key} for key in kept)):
            file.write(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n")


def of(record: R) -> Iterator[R]:
    """Yield the members of a record that has them, `parts` of them, and otherwise the record itself.

    Raises:
        DamagedEntry: as for `read`.
    """
    whole: Any = record
    if whole.parts:
        yield from read(whole.entry, type(record))
    else:
        yield record


def read(entry: Entry, kind: type[R]) -> Iterator[R]:
    """Yield the records of an entry's members, in order, each with the entry it lives in.

    Raises:
        DamagedEntry: the list is missing or damaged, or a member is missing.
    """
    for values in _listed(entry):
        if "record" in values:
            record: Any = _revived(entry, kind, values)
            yield replace(record, entry=entry.beside(values["key"]))


def keys(entry: Entry) -> list[str]:
    """Return the keys of an entry's members, in order, and of what is kept with them, without looking for them.

    Raises:
        DamagedEntry: the list is missing or damaged.
    """
    path = entry.path(MEMBERS)
    try:
        return keys_in(path.read_bytes(), path)
    except OSError as error:
        raise _damaged(path, error) from error


def keys_in(data: bytes, place: Path | str) -> list[str]:
    """Return the same of the bytes of a list.

    Args:
        data: the list.
        place: its path or address, for messages.

    Raises:
        DamagedEntry: it is damaged.
    """
    try:
        return [str(json.loads(line)["key"]) for line in data.splitlines()]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(place, error) from error


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


def _damaged(path: Path | str, error: Exception) -> DamagedEntry:
    return DamagedEntry(f"{path}: expected the list of its parts; {error}; {made_again(path)}")
