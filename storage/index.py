"""An index of a folder of records: the fields that are searched for, without reading every record each time.

    <root>/<folder>.index    SHA-256 of the rest, and a JSON object with each record's file stamp and searched fields

The records are authoritative. The index is used for a record only if its file still has the same size, modification
time and inode (in object storage: the same stamp, see `Found`); a record that is not in the index is read. So a
missing, damaged, truncated or outdated index costs only time, and it can be built for any folder. It is a file of this
machine, replaced atomically: from time to time where the records are files, too, and else whenever a record was read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from storage.files import canonical, write_bytes
from storage.objects.folder import Folder
from storage.objects.protocol import Objects, Stamp

_KEEP_EVERY = 32
"""The number of files read without the index that causes it to be written. An object that was read takes far longer."""

_Line = tuple[Stamp, dict[str, Any]]

_log = logging.getLogger(__name__)


class Index:
    """Some fields of all records of one folder."""

    def __init__(
        self,
        objects: Objects,
        root: Path,
        folder: str,
        fields: tuple[str, ...],
        read: Callable[[str], Mapping[str, Any]],
    ) -> None:
        """Read nothing yet.

        Args:
            objects: those of the store.
            root: the folder of the store on this machine.
            folder: the key of the records' folder.
            fields: the fields to keep.
            read: returns a record by its name, and raises an error if it is damaged.
        """
        self.file = root / f"{folder}.index"
        self._objects = objects
        self._folder = folder
        self._fields = fields
        self._are_files = isinstance(objects, Folder)
        self._read = read
        self._lines: dict[str, _Line] | None = None
        self._unkept = 0

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the fields of each existing record, by file name, in no particular order.

        Raises:
            OSError: the folder cannot be read.
        """
        before = self.intact_lines() if self._lines is None else self._lines
        lines: dict[str, _Line] = {}
        for name, stamp in self._stamps():
            line = before.get(name)
            if line is None or line[0] != stamp:
                line = stamp, self._of(self._read(name))
                self._unkept += 1
            lines[name] = line
        self._lines = lines
        if not self._are_files:
            self.keep()
        return {name: values for name, (_, values) in lines.items()}

    def keep(self) -> None:
        """Write the index if it lacks so many records that reading them takes long. A failure loses nothing."""
        if self._lines and self._unkept >= (_KEEP_EVERY if self._are_files else 1):
            text = canonical({"fields": self._fields, "lines": self._lines})
            with suppress(OSError):
                write_bytes(self.file, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
                self._unkept = 0

    def intact_lines(self) -> dict[str, _Line]:
        """Return the lines of the index file, by record; none if it is missing or damaged."""
        try:
            return self.stored()
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.debug("%s: %s; the records are read instead", self.file, error)
            return {}

    def stored(self) -> dict[str, _Line]:
        """Return the lines of the index file, by record; none if it was written for other fields.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not byte for byte what was written.
        """
        digest, _, text = self.file.read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            raise ValueError("its contents do not have the SHA-256 written in it")
        contents = json.loads(text)
        if contents["fields"] != list(self._fields):
            return {}
        return {name: (tuple(line[0]), line[1]) for name, line in contents["lines"].items()}

    def differing(self) -> list[str]:
        """Return the names of the records whose line in the index file differs from the record.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not byte for byte what was written.
        """
        stamps, wrong = dict(self._stamps()), []
        for name, (stamp, values) in sorted(self.stored().items()):
            if stamps.get(name) == stamp and self._of(self._read(name)) != values:
                wrong.append(name)
        return wrong

    def _of(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {field: record[field] for field in self._fields if record.get(field) is not None}

    def _stamps(self) -> Iterator[tuple[str, Stamp]]:
        for found in self._objects.list(self._folder).objects:
            if found.name.endswith(".json"):
                yield found.name, found.stamp
