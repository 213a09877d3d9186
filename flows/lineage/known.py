"""What the ledger, the registry and the store know of a data set's runs and results; each record is read once."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from flows.dataset_in_store import DatasetInStore
from flows.lineage.graph import State
from storage.datasets.catalog import ROLES
from storage.errors import DamagedEntry, StoreError
from storage.ledger import Ledger
from storage.outcomes import steps_of
from storage.records import Step
from storage.registry import PastDecision, Registry, Version
from storage.store import FOLDERS

MEMBERS = "parts.jsonl"
"""The file of an entry that lists its parts, see `storage.formats.members`, which takes NumPy and Arrow to import."""
LOG = "predictions"
"""The folder of the log of predictions (`storage.prediction_log`)."""
_SHORT = re.compile(r"\bsha256 ([0-9a-f]{12})\b")
"""The beginning of an archive's digest in the line about its step."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Run:
    """A run of the ledger."""

    values: Mapping[str, Any]
    """Its record."""
    steps: tuple[Step, ...]

    @property
    def id(self) -> str:
        return str(self.values.get("run") or "")

    @property
    def time(self) -> str:
        """When it was started, ISO 8601, UTC; when its end was recorded, in older records."""
        return str(self.values.get("started") or self.values.get("time") or "")

    @property
    def version(self) -> int | None:
        number = self.values.get("version")
        return number if type(number) is int else None

    def step(self, name: str, subject: str | None = None, of: str = "") -> Step | None:
        """Return the step with this name, subject and model."""
        found = (step for step in self.steps if (step.step, step.of) == (name, of) and subject in (None, step.subject))
        return next(found, None)

    def key(self, name: str, subject: str | None = None) -> str:
        """Return the key of a step's result; empty if the run did not get there."""
        step = self.step(name, subject)
        return step.key if step else ""


@dataclass(frozen=True)
class Described:
    """The description of an entry, whose files are not read."""

    state: State
    made_from: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    """Empty unless the entry is in the store."""
    files: Mapping[str, Any] = field(default_factory=dict)
    attempt: str = ""


@dataclass(frozen=True)
class ArchiveOf:
    """An archive that a run used, as far as it is known."""

    role: str
    key: str
    """Of its entry; of the list, if that was removed."""
    state: State
    file: str = ""
    sha256: str = ""
    """64 hexadecimal digits; the first 12 if its entry was removed; empty if it was in a list that was removed."""
    bytes: int | None = None
    source: str = ""
    """Where it came from, without credentials."""
    payload: str = ""
    """SHA-256 of what it holds decompressed, if that is known."""
    rows: int | None = None
    several: int = 0
    """If it stands for all archives of a list that was removed: how many, or 1 if that is not known."""

    def has(self, digests: tuple[str, ...]) -> bool:
        """Return whether a digest, or the beginning of one, is that of this archive or of its payload."""
        own = [digest for digest in (self.sha256, self.payload) if digest]
        return any(mine.startswith(digest) or digest.startswith(mine) for mine in own for digest in digests)


class Known:
    """What is known of one data set."""

    def __init__(self, data: DatasetInStore) -> None:
        self.data = data
        self.store = data.store
        self.dataset = data.name
        self.described = cache(self._described)
        self._archives = cache(self._archives_of)

    @property
    def registry(self) -> Registry:
        return self.data.registry

    @property
    def ledger(self) -> Ledger:
        return self.data.ledger

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """All runs, oldest first."""
        return tuple(Run(values, _steps(values)) for values in self.ledger.read("runs"))

    @cached_property
    def decisions(self) -> list[PastDecision]:
        """All decisions, oldest first, without their reasons."""
        return self.registry.outline()

    @cached_property
    def champion(self) -> int | None:
        """The version in use."""
        return self.registry.standing().champion

    @cached_property
    def first_uses(self) -> Mapping[tuple[str, str], Run]:
        """The first run that used an archive, by role and digest."""
        first: dict[tuple[str, str], Run] = {}
        for run in self.runs:
            for archive in self.used(run):
                first.setdefault((archive.role, archive.sha256), run)
        return first

    @cached_property
    def makers(self) -> Mapping[tuple[str, str], Run]:
        """The run that made a result, by the folder of its step and its key; else the first that used it."""
        first: dict[tuple[str, str], Run] = {}
        made: dict[tuple[str, str], Run] = {}
        for run in self.runs:
            for step in run.steps:
                place = FOLDERS.get(step.step, ""), step.key
                first.setdefault(place, run)
                if not step.reused:
                    made.setdefault(place, run)
        return first | made

    @cached_property
    def answered(self) -> Mapping[int, int]:
        """How many images each version has classified, as far as the log of predictions has them."""
        # It takes Arrow, and without a log there is nothing to read.
        if not self.store.objects.list(self.store.key(self.dataset, LOG)).objects:
            return {}
        from storage import prediction_log

        try:
            return Counter(prediction_log.read(self.store, self.dataset, ("version",))["version"].to_pylist())
        except StoreError as error:
            _log.warning("left out the log of predictions: %s", error)
            return {}

    def alike(self, version: Version) -> list[int]:
        """Return the other versions that have the weights of this one."""
        alike = self._by_weights[version.weights_digest]
        return [number for number in alike if number != version.number]

    @cached_property
    def _by_weights(self) -> Mapping[str, list[int]]:
        found: defaultdict[str, list[int]] = defaultdict(list)
        for number, digest in self.registry.weights().items():
            found[digest].append(number)
        return found

    @cached_property
    def _by_id(self) -> Mapping[str, Run]:
        """The newest record of each run."""
        return {run.id: run for run in self.runs}

    def maker(self, step: str, key: str) -> Run | None:
        """Return the run that made a result."""
        return self.makers.get((FOLDERS[step], key)) if key else None

    def run(self, name: str) -> Run | None:
        """Return the run with this id."""
        return self._by_id.get(name)

    def archives(self, run: Run, role: str) -> tuple[ArchiveOf, ...]:
        """Return the archives of a role that a run used; none if it did not get so far."""
        step = run.step("fetch", role)
        if not step or not step.key:
            return ()
        found = self._archives(role, step.key, run.key("decode", role.partition("-")[0]))
        return found or (_of_summary(step, self.described("fetch", step.key).state),)

    def used(self, run: Run) -> Iterator[ArchiveOf]:
        """Yield all archives that a run used."""
        return (archive for role in ROLES for archive in self.archives(run, role))

    def _archives_of(self, role: str, key: str, split: str) -> tuple[ArchiveOf, ...]:
        """Return the archives of an entry of the step fetch; none if it is not in the store.

        Args:
            split: the key of the split that was decoded from them; empty if none was.
        """
        found, decoded = self.described("fetch", key), self.described("decode", split)
        if found.state != "kept":
            return ()
        lines: list[Mapping[str, Any]] = [{"key": key, "record": found.record}]
        parts: list[Mapping[str, Any]] = [{"record": decoded.record}]
        if found.record.get("parts"):
            lines = [*self._members("fetch", key, found)]
            parts = [line for line in self._members("decode", split, decoded) if "record" in line]
        # A large archive is cut into several parts: then parts and archives do not correspond.
        if len(parts) != len(lines):
            parts = [{"record": {}}] * len(lines)
        return tuple(
            _archive(role, line, part["record"], _payload(found.made_from))
            for line, part in zip(lines, parts, strict=True)
        )

    def _members(self, step: str, key: str, found: Described) -> list[dict[str, Any]]:
        """Return the lines of an entry's list of parts; none if there is no list, or it is damaged."""
        if MEMBERS not in found.files:
            return []
        place = "/".join(filter(None, (self.store.entry_key(self.dataset, step, key), found.attempt, MEMBERS)))
        try:
            file = found.files[MEMBERS]
            # In object storage, through the cache.
            data = self.store.file(place, str(file["sha256"]), int(file["bytes"])).read_bytes()
            if hashlib.sha256(data).hexdigest() != file["sha256"]:
                raise ValueError("its SHA-256 is not as recorded")
            return [json.loads(line) for line in data.splitlines()]
        except (OSError, ValueError, StoreError) as error:
            _log.warning("%s: left out: %s", self.store.objects.where(place), error)
            return []

    def _described(self, step: str, key: str) -> Described:
        """Return the description of an entry."""
        if not key:
            return Described("removed")
        try:
            values = self.store.described(self.dataset, FOLDERS[step], key)
        except DamagedEntry:
            return Described("damaged" if self.store.has(self.dataset, step, key) else "removed")
        except StoreError as error:
            _log.warning("left out %s %s: %s", step, key, error)
            return Described("damaged")
        return Described(
            "kept", values["made_from"], values["record"], values["files"], str(values.get("attempt") or "")
        )


def terms(known: Known, version: int) -> Iterator[tuple[PastDecision, PastDecision | None]]:
    """Yield when a version became champion, and when another did after it, if one has."""
    changes = [turn for turn in known.decisions if turn.changed]
    for turn, then in zip(changes, [*changes[1:], None], strict=True):
        if turn.after == version:
            yield turn, then


def _steps(values: Mapping[str, Any]) -> tuple[Step, ...]:
    try:
        return steps_of(values)
    except (AttributeError, TypeError, ValueError) as error:
        _log.warning("left out the steps of run %s: %s", values.get("run"), error)
        return ()


def _archive(role: str, line: Mapping[str, Any], split: Mapping[str, Any], payload: str) -> ArchiveOf:
    """Return an archive.

    Args:
        line: its key and its record.
        split: the record of the rows that were decoded from it; empty if that is not known.
        payload: SHA-256 of what it holds, if its entry says it.
    """
    record = line["record"]
    rows = split.get("rows")
    return ArchiveOf(
        role,
        str(line["key"]),
        "kept",
        str(record.get("file_name") or ""),
        str(record.get("sha256") or ""),
        record.get("size_bytes"),
        str(record.get("source") or ""),
        payload or str((split.get("sources") or {}).get(role) or ""),
        rows if isinstance(rows, int) else None,
    )


def _payload(made_from: Mapping[str, Any]) -> str:
    return str((made_from.get("inputs") or {}).get("payload") or "")


def _of_summary(step: Step, state: State) -> ArchiveOf:
    """Return what the line about a step says of archives whose entry was removed."""
    if found := _SHORT.search(step.summary):
        return ArchiveOf(step.subject, step.key, state, sha256=found[1])
    count = re.match(r"([0-9,]+) archives\b", step.summary)
    return ArchiveOf(step.subject, step.key, state, several=int(count[1].replace(",", "")) if count else 1)
