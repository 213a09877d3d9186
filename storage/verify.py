"""Check the whole store, as `fsck` does for a file system. Read-only; needs only the standard library.

There are three kinds of findings. Damage breaks a guarantee of the store: an entry that is not byte for byte as
published, a version without its model, a champion pointer to a missing version, a changed record of the ledger. A
leftover is unfinished work of a killed run: nothing looks for its name, and the next run or `retention` removes it.
A remark concerns intact data that is still unexpected: times from a clock that was wrong.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from storage import released, store_format
from storage.arrivals import Arrivals
from storage.errors import IdxflowError
from storage.files import kind_of, locked, sha256_of
from storage.ledger import KINDS, Place, is_decision, jumps, place, place_in, run_of, time_of
from storage.objects import sealed
from storage.objects.protocol import Found
from storage.registry import Registry, Version
from storage.store import DOWNLOADS, FOLDERS, Store, store_errors
from storage.underway import was_cut_off
from storage.upkeep import ENDED, STEP_FOLDERS, CheckedEntry, EntryName, FolderUpkeep, InUse, is_folder

_MAKE_AGAIN = "run the same command again to rebuild it"
_REMOVE_REPORT = "remove its folder: a report is written once, and no result depends on it"
_REMOVE_INDEX = "remove it: it is rebuilt from the records next to it"
_REMOVE_HINT = "remove it: the decisions in the ledger say which version is the champion"
_RESTORE = "restore it from a backup"
_SET_CLOCK = "correct the clock if it is wrong; the records and their order are intact, only these times are unreliable"
_CLOCK_IS_RIGHT = "nothing to do: the order of the records does not depend on their times"
_PART, _NOTE = ".part", ".part.json"
"""How the names of unfinished downloads end (`tasks.sources.partial_file`)."""
_GO_ON = "run the same command again to resume"
_REMOVE_DOWNLOAD = "remove it: it is downloaded again when a run needs it"


@dataclass(frozen=True)
class StoreFinding:
    """One problem in the store."""

    where: str
    """The path, or the address in object storage."""
    kind: Literal["damage", "leftover", "remark"]
    problem: str
    """The expectation and what was found instead."""
    remedy: str


@dataclass(frozen=True)
class Verdict:
    """The findings of a check of the store, and how much was checked."""

    entries: int
    versions: int
    records: int
    """Number of ledger records: runs and decisions."""
    bytes: int
    """Total size of the files read."""
    findings: tuple[StoreFinding, ...]

    @property
    def damage(self) -> tuple[StoreFinding, ...]:
        return tuple(finding for finding in self.findings if finding.kind == "damage")

    @property
    def leftovers(self) -> tuple[StoreFinding, ...]:
        return tuple(finding for finding in self.findings if finding.kind == "leftover")

    @property
    def remarks(self) -> tuple[StoreFinding, ...]:
        return tuple(finding for finding in self.findings if finding.kind == "remark")


def verify(store: Store, dataset: str | None = None, contents: bool = True, now: datetime | None = None) -> Verdict:
    """Read and check every entry, version, pointer and ledger record of one data set, or of all.

    Nothing is changed, and runs may continue during the check; unfinished work of a run in progress is not a leftover.

    Args:
        store: the store to check.
        dataset: check only this data set.
        contents: False checks only the sizes of an entry's files, which takes milliseconds even for large files.
        now: the current time, by default that of the machine's clock.

    Raises:
        StoreError: a folder of the store cannot be listed.
    """
    now = now or datetime.now(UTC)
    checks = [_Check(store, name, contents, now) for name in ([dataset] if dataset else store.datasets())]
    for check in checks:
        with store_errors(check.folder):
            check.run()
    findings = [*_of_format(store), *(finding for check in checks for finding in check.findings)]
    if dataset is None:
        findings += [*_of_downloads(store, contents), *_of_strays(store)]
    return Verdict(
        entries=sum(c.entries for c in checks),
        versions=sum(c.versions for c in checks),
        records=sum(c.records for c in checks),
        bytes=sum(c.bytes for c in checks),
        findings=tuple(sorted(findings, key=lambda finding: (finding.kind, finding.where))),
    )


def _of_format(store: Store) -> Iterator[StoreFinding]:
    try:
        store_format.check(store.objects)
    except IdxflowError as error:
        remedy = "remove it: the next run writes it again"
        yield StoreFinding(store.objects.where(store_format.STORE_FILE), "damage", _one_line(error), remedy)


def _of_strays(store: Store) -> Iterator[StoreFinding]:
    for found in store.strays():
        yield StoreFinding(store.objects.where(found.key), "leftover", ENDED, f"`{store.command('gc')}` removes it")


def _of_downloads(store: Store, contents: bool) -> Iterator[StoreFinding]:
    """Check the downloaded ZIP files: a complete one has the digest that its folder is named by."""
    place = store.root / DOWNLOADS
    if not is_folder(place):
        actual = "a symbolic link" if place.is_symlink() else kind_of(place)
        yield StoreFinding(str(place), "damage", f"expected a folder; found {actual}", _REMOVE_DOWNLOAD)
        return
    for folder in downloads(store):
        with ExitStack() as held:
            # Before the files are listed: one that is being downloaded gets another name at the end.
            is_abandoned = free_to_remove(store, folder, held) and not _may_be_resumed(store, folder)
            paths = sorted(folder.iterdir())
        for path in paths:
            if not path.name.endswith((_PART, _NOTE)):
                if contents and (problem := _wrong_download(path)):
                    yield StoreFinding(str(path), "damage", problem, _REMOVE_DOWNLOAD)
            elif is_abandoned:
                remedy = f"`{store.command('gc')}` removes it, and the next run that needs it resumes it"
                yield StoreFinding(str(path), "leftover", "a run ended while downloading it", remedy)


def _may_be_resumed(store: Store, folder: Path) -> bool:
    try:
        return resumed_by_the_next_run(store, folder)
    except IdxflowError:
        # The unreadable record is reported as damage.
        return True


def _wrong_download(path: Path) -> str:
    """Say what is wrong with a downloaded ZIP file: its folder has the first half of its SHA-256 as name."""
    try:
        digest = sha256_of(path)
    except FileNotFoundError:
        # `gc` has removed it meanwhile.
        return ""
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    name = path.parent.name
    return "" if digest.startswith(name) else f"expected SHA-256 {name}…, the name of its folder; found {digest[:32]}…"


def downloads(store: Store) -> list[Path]:
    """Return the folders of the downloaded ZIP files of a store."""
    place = store.root / DOWNLOADS
    return sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []


def free_to_remove(store: Store, folder: Path, held: ExitStack) -> bool:
    """Tell whether no process is downloading into `folder`, and keep others from it until `held` is closed."""
    lock = store.download_lock(folder.name)

    def give_up() -> None:
        raise InUse

    if lock.exists() and os.access(lock, os.W_OK):
        try:
            held.enter_context(locked(lock, give_up, passing=True))
        except InUse:
            return False
    return True


def resumed_by_the_next_run(store: Store, folder: Path) -> bool:
    """Tell whether a download is unfinished and a run was cut off that may have made it.

    Raises:
        StoreError: a ledger cannot be read.
    """
    if not any(folder.glob(f"*{_PART}")):
        return False
    return any(for_the_next_run(Registry(store, name)) for name in store.datasets())


class _Check:
    """One pass over a data set."""

    def __init__(self, store: Store, dataset: str, contents: bool, now: datetime) -> None:
        self.store = store
        self.now = now
        self.contents = contents
        self.dataset = dataset
        self.folder = store.dataset(dataset)
        self.upkeep = store.upkeep(dataset)
        self.weights: dict[EntryName, Any] = {}
        """The weights' digest of each model, and None for each other entry."""
        self.entries = self.versions = self.records = self.bytes = 0
        self.findings: list[StoreFinding] = []

    def run(self) -> None:
        obstacles = [*self.upkeep.obstacles()]
        for obstacle in obstacles:
            self._damage(obstacle.where, obstacle.problem, obstacle.remedy)
        if obstacles:
            return
        # `gc` must not remove entries between listing and reading.
        with self.store.in_use(self.dataset):
            self._entries()
            self._arrivals()
            self._released()
            self._registry()
            self._ledger()
        self._leftovers()

    @property
    def _clear(self) -> str:
        by_a_run = "" if self.store.leases else ", and so does the next run that uses this path"
        return f"`{self.store.command('gc')}` removes it{by_a_run}"

    def _damage(self, where: str, problem: object, remedy: str) -> None:
        self.findings.append(StoreFinding(where, "damage", _one_line(problem), remedy))

    def _where(self, key: str) -> str:
        """Return the path or the address of a file of the data set."""
        return self.store.objects.where(f"{self.dataset}/{key}")

    def _entries(self) -> None:
        members: dict[EntryName, str] = {}
        for entry in self.upkeep.checked(self.contents):
            self.entries += 1
            self.weights[entry.name] = _weights(entry)
            members |= {EntryName(entry.name.folder, key): entry.where for key in entry.members}
            if entry.problem:
                again = _REMOVE_REPORT if entry.name.folder == FOLDERS["publish"] else _MAKE_AGAIN
                self._damage(entry.where, entry.problem, entry.remedy or again)
            else:
                self.bytes += sum(file["bytes"] for file in entry.described["files"].values())
        self._members(members)

    def _members(self, members: Mapping[EntryName, str]) -> None:
        """Check that the entries that others list are there: those that are only kept, in the folder of any step."""
        known = {name.key for name in self.weights}
        steps = {folder: step for step, folder in FOLDERS.items()}
        for name in members:
            # A run may have made it since the entries were listed.
            if name.key not in known and not any(
                self.store.has(self.dataset, step, name.key) for step in steps.values()
            ):
                place = self._where(f"{name.folder}/{name.key}")
                self._damage(members[name], f"expected a part of it at {place}; found none", _MAKE_AGAIN)

    def _arrivals(self) -> None:
        for where, problem in Arrivals(self.store, self.dataset).damage(self.contents):
            self._damage(where, problem, "copy the set into its folder again, and remove this")

    def _released(self) -> None:
        where = released.where(self.store, self.dataset)
        try:
            released.read(self.store, self.dataset)
        except IdxflowError as error:
            problem, _, remedy = str(error).removeprefix(f"{where}: ").rpartition("; ")
            self._damage(where, problem, remedy)
        for key in released.misnamed(self.store, self.dataset):
            problem = "expected the digest of a row as its name, 32 hexadecimal digits"
            self._damage(self.store.objects.where(key), problem, "remove it")

    def _registry(self) -> None:
        registry, versions = Registry(self.store, self.dataset), dict[Version, Found]()
        for found in self._found("registry/versions"):
            self.versions += 1
            try:
                versions[self._version(registry, found)] = found
            except (IdxflowError, ValueError) as error:
                remedy = "restore it from a backup; its number is in the ledger's decisions"
                self._damage(self._at(found), error, remedy)
        for found in self._found("registry/retired"):
            self._sealed(found, "remove it if the version's model is there")
        try:
            retired = registry.retired_of(versions)
        except IdxflowError:
            # The unreadable record is reported with the ledger.
            retired = []
        for version, found in versions.items():
            if version not in retired:
                self._parts_of(version, self._at(found))
        self._champion(registry, retired)
        self._indexes(registry)

    def _champion(self, registry: Registry, retired: list[Version]) -> None:
        pointer = self.store.objects.where(registry.pointer)
        is_hint = any(is_decision(name) for name in registry.ledger.names("decisions"))
        if is_hint:
            self._hint(registry)
        try:
            if registry.champion() in retired:
                self._damage(pointer, "the champion's model was collected", "promote another version")
        except IdxflowError as error:
            problem = str(error).removeprefix(f"{pointer}: ")
            remedy = f"the newest file in {self._where('ledger/decisions')} says which version was the champion"
            # A damaged decision is reported with the ledger, and so is a missing version.
            if not is_hint:
                self._damage(pointer, problem, remedy)

    def _hint(self, registry: Registry) -> None:
        for found in self._found("registry"):
            if found.key == registry.pointer and (values := self._sealed(found, _REMOVE_HINT)):
                with suppress(IdxflowError):
                    decision = registry.ledger.decision(values.get("decision") or 0)
                    if decision is None or decision.get("champion") != values.get("version"):
                        actual = f"{values.get('version')} after decision {values.get('decision')}"
                        problem = f"expected the champion after a decision in the ledger; found {actual}"
                        self._damage(self._at(found), problem, _REMOVE_HINT)

    def _version(self, registry: Registry, found: Found) -> Version:
        number = found.name.removesuffix(".json")
        version = registry.version(int(number))
        if (version.dataset, f"{version.number:08d}.json") != (self.dataset, found.name):
            raise ValueError(
                f"expected version {number} of {self.dataset}; found version {version.number} of {version.dataset}"
            )
        self.bytes += found.size
        return version

    def _parts_of(self, version: Version, where: str) -> None:
        for step, key in (("train", version.model), ("evaluate", version.evaluation)):
            # A run may have made it since the entries were listed.
            if EntryName(FOLDERS[step], key) not in self.weights and not self.store.has(self.dataset, step, key):
                place = self.store.where_entry(self.dataset, step, key)
                self._damage(where, f"expected its {step} entry at {place}; found none", _MAKE_AGAIN)
        weights = self.weights.get(EntryName(FOLDERS["train"], version.model))
        if weights not in (None, version.weights_digest):
            self._damage(where, "its model has other weights than it was registered with", "restore it from a backup")

    def _ledger(self) -> None:
        times: dict[Place, tuple[Found, datetime]] = {}
        decisions: dict[str, Mapping[str, Any]] = {}
        for kind in KINDS:
            for found in self._found(f"ledger/{kind}"):
                self.records += 1
                remedy = _RESTORE if is_decision(found.name) else f"{_RESTORE} or move it out of the ledger"
                record = self._sealed(found, remedy)
                self._name(found, record)
                if time := time_of(record):
                    times[place_in(record, found.name)] = found, time
                if kind == "decisions":
                    decisions[found.name] = record
        self._clock(times)
        if all(decisions.values()):
            self._named([decisions[name] for name in sorted(decisions, key=place)], any(map(is_decision, decisions)))
        self._sequence(decisions)

    def _named(self, decisions: list[Mapping[str, Any]], has_numbers: bool) -> None:
        """Check that what decisions name is there."""
        has_pointer = any(found.name == "champion.json" for found in self._found("registry"))
        if any(d.get("previous") for d in decisions) and not has_pointer and not has_numbers:
            named = next(d["champion"] for d in reversed(decisions) if d.get("champion"))
            self._damage(
                self._where("registry/champion.json"),
                "expected the champion's version; the file is gone",
                f'write {{"version": {named}}} there: the newest decision names it',
            )
        versions = {found.name for found in self._found("registry/versions")}
        for number in sorted({d[name] for d in decisions for name in ("version", "champion") if d.get(name)}):
            if f"{number:08d}.json" not in versions:
                where = self._where(f"registry/versions/{number:08d}.json")
                self._damage(where, "expected the version that a decision names; found none", _RESTORE)

    def _sequence(self, decisions: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that the numbers of decisions have no gap, and that each decision found the champion of the last."""
        numbers = sorted(place(name)[1] for name in decisions if is_decision(name))
        earlier = max((place(name)[1] for name in decisions if not is_decision(name)), default=0)
        for before, number in pairwise([earlier, *numbers]):
            name = f"{number:08d}.json"
            where = self._where(f"ledger/decisions/{name}")
            last, this = decisions.get(f"{before:08d}.json"), decisions[name]
            if number != before + 1:
                problem = f"expected decision {before + 1:,} before it; found none"
                remedy = "restore that from a backup if there is one; the champion does not depend on it"
                self.findings.append(StoreFinding(where, "remark", problem, remedy))
            elif last and this and this.get("previous") != last.get("champion"):
                actual = f"{this.get('previous')}, where the decision before it has {last.get('champion')}"
                self._damage(where, f"expected the champion of the decision before it; found {actual}", _RESTORE)

    def _name(self, found: Found, record: Mapping[str, Any]) -> None:
        """Check that the name of a record of the ledger fits it. The name of a decision is only its number."""
        if record and not is_decision(found.name) and record.get("run") != run_of(found.name):
            problem = f"expected a record of run {run_of(found.name)}, as it is named; found one of {record.get('run')}"
            self._damage(self._at(found), problem, "restore its original name")

    def _clock(self, times: dict[Place, tuple[Found, datetime]]) -> None:
        places = {found.name: self._at(found) for found, _ in times.values()}
        for jump in jumps({here: time for here, (_, time) in times.items()}, self.now):
            remedy = _SET_CLOCK if jump.ahead else _CLOCK_IS_RIGHT
            self.findings.append(StoreFinding(places[jump.name], "remark", jump.problem, remedy))

    def _indexes(self, registry: Registry) -> None:
        for index in registry.indexes:
            try:
                wrong = index.differing() if index.file.exists() else []
            except (OSError, ValueError, KeyError, TypeError, IdxflowError) as error:
                self._damage(str(index.file), error, _REMOVE_INDEX)
                continue
            if wrong:
                problem = f"expected it to agree with the records; it differs on {len(wrong)}, first {wrong[0]}"
                self._damage(str(index.file), problem, _REMOVE_INDEX)

    def _sealed(self, found: Found, remedy: str) -> dict[str, Any]:
        try:
            values = sealed.read(self.store.objects, found.key)
        except (OSError, ValueError) as error:
            self._damage(self._at(found), error, remedy)
            return {}
        self.bytes += found.size
        return values

    def _found(self, folder: str) -> list[Found]:
        """Return everything in a folder of the data set, also what is a folder where an object belongs."""
        key = f"{self.dataset}/{folder}"
        listing = self.store.objects.list(key)
        return [*listing.objects, *(Found(f"{key}/{name}", 0, (), 0) for name in listing.folders)]

    def _at(self, found: Found) -> str:
        return self.store.objects.where(found.key)

    def _leftovers(self) -> None:
        try:
            with self.upkeep.unused():
                leftovers = [*self.upkeep.leftovers(), *Arrivals(self.store, self.dataset).unfinished()]
        except InUse:
            return
        try:
            needed = for_the_next_run(Registry(self.store, self.dataset))
        except IdxflowError:
            # The unreadable record is already reported as damage.
            needed = ()
        for leftover in leftovers:
            remedy = _GO_ON if leftover.path in needed else self._clear
            self.findings.append(StoreFinding(leftover.where, "leftover", leftover.problem, remedy))


def for_the_next_run(registry: Registry) -> tuple[Path, ...]:
    """Return the unfinished work that the next run resumes from: none if the newest run finished.

    In object storage, only what this machine has of it.

    Raises:
        StoreError: the ledger cannot be read.
    """
    store, dataset = registry.store, registry.dataset
    if not was_cut_off(store, dataset, registry.ledger):
        return ()
    steps = {store.dataset(dataset) / part for part in STEP_FOLDERS}
    paths = (leftover.path for leftover in FolderUpkeep(store, dataset).leftovers() if leftover.path)
    return tuple(path for path in paths if path.parent in steps and path.suffix == ".partial")


def _weights(entry: CheckedEntry) -> Any:
    record = entry.described.get("record") if entry.name.folder == FOLDERS["train"] else None
    return record.get("weights_digest") if isinstance(record, dict) else None


def _one_line(problem: object) -> str:
    return " ".join(str(problem).split())


def as_json(verdict: Verdict, store: Store) -> str:
    """Return the verdict as one JSON object, for machines."""
    values = {
        "store": store.objects.address,
        "entries": verdict.entries,
        "versions": verdict.versions,
        "records": verdict.records,
        "bytes": verdict.bytes,
        "damage": [_finding(finding) for finding in verdict.damage],
        "leftovers": [_finding(finding) for finding in verdict.leftovers],
        "remarks": [_finding(finding) for finding in verdict.remarks],
    }
    return json.dumps(values, ensure_ascii=False)


def _finding(finding: StoreFinding) -> dict[str, str]:
    return {"path": finding.where, "problem": finding.problem, "remedy": finding.remedy}
