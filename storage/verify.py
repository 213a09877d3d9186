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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from storage import store_format
from storage.arrivals import ARRIVALS, Arrivals
from storage.errors import IdxflowError
from storage.files import kind_of, locked, read_json, sha256_of
from storage.ledger import KINDS, Place, is_decision, jumps, place, place_in, run_of, time_of
from storage.objects import sealed
from storage.objects.protocol import Found
from storage.registry import Registry, Version
from storage.store import DOWNLOADS, ENTRY, FOLDERS, IN_USE, INBOX, LOCKS, Store, read_entry, store_errors
from storage.underway import UNDER_WAY, was_cut_off

PARTS = (*dict.fromkeys(FOLDERS.values()), INBOX, "registry", "ledger", LOCKS)
INNER = ("registry/versions", "registry/retired", *(f"ledger/{kind}" for kind in (*KINDS, UNDER_WAY)))
_MOVE_LINKED = "move what it points to into its place"
_MOVE_AWAY = "move it away, and restore the folder from a backup if it held anything"
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

    path: Path
    """Below the store's root, also if the store is elsewhere: `Store.objects` says where a key is."""
    kind: Literal["damage", "leftover", "remark"]
    problem: str
    """The expectation and what was found instead."""
    remedy: str

    def where(self, store: Store) -> str:
        """Return the path or the address, for people."""
        return store.objects.where(self.path.relative_to(store.root).as_posix())


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
        findings += _of_downloads(store, contents)
    return Verdict(
        entries=sum(c.entries for c in checks),
        versions=sum(c.versions for c in checks),
        records=sum(c.records for c in checks),
        bytes=sum(c.bytes for c in checks),
        findings=tuple(sorted(findings, key=lambda finding: (finding.kind, finding.path))),
    )


def _of_format(store: Store) -> Iterator[StoreFinding]:
    try:
        store_format.check(store.objects)
    except IdxflowError as error:
        remedy = "remove it: the next run writes it again"
        yield StoreFinding(store.root / store_format.STORE_FILE, "damage", _one_line(error), remedy)


def _of_downloads(store: Store, contents: bool) -> Iterator[StoreFinding]:
    """Check the downloaded ZIP files: a complete one has the digest that its folder is named by."""
    place = store.root / DOWNLOADS
    if not _is_folder(place):
        actual = "a symbolic link" if place.is_symlink() else kind_of(place)
        yield StoreFinding(place, "damage", f"expected a folder; found {actual}", _REMOVE_DOWNLOAD)
        return
    for folder in downloads(store):
        with ExitStack() as held:
            # Before the files are listed: one that is being downloaded gets another name at the end.
            is_abandoned = free_to_remove(store, folder, held) and not _may_be_resumed(store, folder)
            paths = sorted(folder.iterdir())
        for path in paths:
            if not path.name.endswith((_PART, _NOTE)):
                if contents and (problem := _wrong_download(path)):
                    yield StoreFinding(path, "damage", problem, _REMOVE_DOWNLOAD)
            elif is_abandoned:
                remedy = f"`{store.command('gc')}` removes it, and the next run that needs it resumes it"
                yield StoreFinding(path, "leftover", "a run ended while downloading it", remedy)


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
        raise _Busy

    if lock.exists() and os.access(lock, os.W_OK):
        try:
            held.enter_context(locked(lock, give_up, passing=True))
        except _Busy:
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


class _Busy(Exception):
    pass


class _Check:
    """One pass over a data set."""

    def __init__(self, store: Store, dataset: str, contents: bool, now: datetime) -> None:
        self.store = store
        self.now = now
        self.contents = contents
        self.dataset = dataset
        self.folder = store.dataset(dataset)
        self.entries = self.versions = self.records = self.bytes = 0
        self.findings: list[StoreFinding] = []

    def run(self) -> None:
        if not self._only_folders():
            return
        # `gc` must not remove entries between listing and reading.
        with self.store.in_use(self.dataset):
            self._entries()
            self._arrivals()
            self._registry()
            self._ledger()
        self._leftovers()

    @property
    def _clear(self) -> str:
        return f"`{self.store.command('gc')}` removes it, and so does the next run that uses this path"

    def _damage(self, path: Path, problem: object, remedy: str) -> None:
        self.findings.append(StoreFinding(path, "damage", _one_line(problem), remedy))

    def _only_folders(self) -> bool:
        """Report everything that is in the place of a folder; return whether nothing is."""
        others = [path for part in ("", *PARTS) if not _is_folder(path := self.folder / part)]
        others += [path for part in INNER if _is_folder((path := self.folder / part).parent) and not _is_folder(path)]
        for path in others:
            actual = "a symbolic link" if path.is_symlink() else kind_of(path)
            self._damage(path, f"expected a folder; found {actual}", _MOVE_LINKED if path.is_symlink() else _MOVE_AWAY)
        return not others

    def _entries(self) -> None:
        for part in dict.fromkeys(FOLDERS.values()):
            for path in _visible(self.folder / part):
                self.entries += 1
                try:
                    entry = read_entry(path, self.contents)
                except IdxflowError as error:
                    self._damage(path, error, _REMOVE_REPORT if part == FOLDERS["publish"] else _MAKE_AGAIN)
                else:
                    self.bytes += sum(file["bytes"] for file in entry["files"].values())

    def _arrivals(self) -> None:
        for path, problem in Arrivals(self.store, self.dataset).damage(self.contents):
            self._damage(path, problem, "copy the set into its folder again, and remove this")

    def _registry(self) -> None:
        registry, versions = Registry(self.store, self.dataset), dict[Version, Found]()
        for found in self._found("registry/versions"):
            self.versions += 1
            try:
                versions[self._version(registry, found)] = found
            except (IdxflowError, ValueError) as error:
                remedy = "restore it from a backup; its number is in the ledger's decisions"
                self._damage(self._path(found), error, remedy)
        for found in self._found("registry/retired"):
            self._sealed(found, "remove it if the version's model is there")
        try:
            retired = registry.retired_of(versions)
        except IdxflowError:
            # The unreadable record is reported with the ledger.
            retired = []
        for version, found in versions.items():
            if version not in retired:
                self._parts_of(version, self._path(found))
        self._champion(registry, retired)
        self._indexes(registry)

    def _champion(self, registry: Registry, retired: list[Version]) -> None:
        pointer = self.folder / "registry" / "champion.json"
        is_hint = any(is_decision(name) for name in registry.ledger.names("decisions"))
        if is_hint:
            self._hint(registry)
        try:
            if registry.champion() in retired:
                self._damage(pointer, "the champion's model was collected", "promote another version")
        except IdxflowError as error:
            problem = str(error).removeprefix(f"{self.store.objects.where(registry.pointer)}: ")
            remedy = f"the newest file in {self.folder / 'ledger' / 'decisions'} says which version was the champion"
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
                        self._damage(self._path(found), problem, _REMOVE_HINT)

    def _version(self, registry: Registry, found: Found) -> Version:
        number = found.name.removesuffix(".json")
        version = registry.version(int(number))
        if (version.dataset, f"{version.number:08d}.json") != (self.dataset, found.name):
            raise ValueError(
                f"expected version {number} of {self.dataset}; found version {version.number} of {version.dataset}"
            )
        self.bytes += found.size
        return version

    def _parts_of(self, version: Version, path: Path) -> None:
        for step, key in (("train", version.model), ("evaluate", version.evaluation)):
            folder = self.store.entries(self.dataset, step) / key
            if not (folder / ENTRY).is_file():
                self._damage(path, f"expected its {step} entry at {folder}; found none", _MAKE_AGAIN)
        try:
            record = read_json(self.store.entries(self.dataset, "train") / version.model / ENTRY)["record"]
        except (OSError, ValueError, KeyError):
            return
        if record.get("weights_digest") != version.weights_digest:
            self._damage(path, "its model has other weights than it was registered with", "restore it from a backup")

    def _ledger(self) -> None:
        times: dict[Place, tuple[Path, datetime]] = {}
        decisions: dict[str, Mapping[str, Any]] = {}
        for kind in KINDS:
            for found in self._found(f"ledger/{kind}"):
                self.records += 1
                remedy = _RESTORE if is_decision(found.name) else f"{_RESTORE} or move it out of the ledger"
                record = self._sealed(found, remedy)
                self._name(found, record)
                if time := time_of(record):
                    times[place_in(record, found.name)] = self._path(found), time
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
                self.folder / "registry" / "champion.json",
                "expected the champion's version; the file is gone",
                f'write {{"version": {named}}} there: the newest decision names it',
            )
        versions = {found.name for found in self._found("registry/versions")}
        for number in sorted({d[name] for d in decisions for name in ("version", "champion") if d.get(name)}):
            if f"{number:08d}.json" not in versions:
                path = self.folder / "registry" / "versions" / f"{number:08d}.json"
                self._damage(path, "expected the version that a decision names; found none", _RESTORE)

    def _sequence(self, decisions: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that the numbers of decisions have no gap, and that each decision found the champion of the last."""
        numbers = sorted(place(name)[1] for name in decisions if is_decision(name))
        earlier = max((place(name)[1] for name in decisions if not is_decision(name)), default=0)
        for before, number in pairwise([earlier, *numbers]):
            path = self.folder / "ledger" / "decisions" / f"{number:08d}.json"
            last, this = decisions.get(f"{before:08d}.json"), decisions[path.name]
            if number != before + 1:
                problem = f"expected decision {before + 1:,} before it; found none"
                remedy = "restore that from a backup if there is one; the champion does not depend on it"
                self.findings.append(StoreFinding(path, "remark", problem, remedy))
            elif last and this and this.get("previous") != last.get("champion"):
                actual = f"{this.get('previous')}, where the decision before it has {last.get('champion')}"
                self._damage(path, f"expected the champion of the decision before it; found {actual}", _RESTORE)

    def _name(self, found: Found, record: Mapping[str, Any]) -> None:
        """Check that the name of a record of the ledger fits it. The name of a decision is only its number."""
        if record and not is_decision(found.name) and record.get("run") != run_of(found.name):
            problem = f"expected a record of run {run_of(found.name)}, as it is named; found one of {record.get('run')}"
            self._damage(self._path(found), problem, "restore its original name")

    def _clock(self, times: dict[Place, tuple[Path, datetime]]) -> None:
        paths = {path.name: path for path, _ in times.values()}
        for jump in jumps({here: time for here, (_, time) in times.items()}, self.now):
            remedy = _SET_CLOCK if jump.ahead else _CLOCK_IS_RIGHT
            self.findings.append(StoreFinding(paths[jump.name], "remark", jump.problem, remedy))

    def _indexes(self, registry: Registry) -> None:
        for index in registry.indexes:
            try:
                wrong = index.differing() if index.file.exists() else []
            except (OSError, ValueError, KeyError, TypeError, IdxflowError) as error:
                self._damage(index.file, error, _REMOVE_INDEX)
                continue
            if wrong:
                problem = f"expected it to agree with the records; it differs on {len(wrong)}, first {wrong[0]}"
                self._damage(index.file, problem, _REMOVE_INDEX)

    def _sealed(self, found: Found, remedy: str) -> dict[str, Any]:
        try:
            values = sealed.read(self.store.objects, found.key)
        except (OSError, ValueError) as error:
            self._damage(self._path(found), error, remedy)
            return {}
        self.bytes += found.size
        return values

    def _found(self, folder: str) -> list[Found]:
        """Return everything in a folder of the data set, also what is a folder where an object belongs."""
        key = f"{self.dataset}/{folder}"
        listing = self.store.objects.list(key)
        return [*listing.objects, *(Found(f"{key}/{name}", 0, (), 0.0) for name in listing.folders)]

    def _path(self, found: Found) -> Path:
        return self.store.root / found.key

    def _leftovers(self) -> None:
        try:
            with _unused(self.store, self.dataset):
                paths = leftovers(self.store, self.dataset)
        except _Busy:
            return
        try:
            needed = for_the_next_run(Registry(self.store, self.dataset))
        except IdxflowError:
            # The unreadable record is already reported as damage.
            needed = ()
        for path in paths:
            remedy = _GO_ON if path in needed else self._clear
            self.findings.append(StoreFinding(path, "leftover", "a run ended while writing it", remedy))


@contextmanager
def _unused(store: Store, dataset: str) -> Iterator[None]:
    """Keep other processes from starting to use a data set's entries while the block runs. Keep the block short.

    Raises:
        _Busy: a process uses them. In a read-only store, which cannot be locked, no process does.
    """
    lock = store.part(dataset, LOCKS) / IN_USE

    def give_up() -> None:
        raise _Busy

    with ExitStack() as held:
        if lock.exists() and os.access(lock, os.W_OK):
            held.enter_context(locked(lock, give_up))
        yield


def leftovers(store: Store, dataset: str) -> list[Path]:
    """Return the paths in a data set's folder whose names nothing looks for: unfinished and discarded entries."""
    folder = store.dataset(dataset)
    places = [folder, folder / "registry", *(folder / part for part in PARTS)]
    places += [folder / INBOX / ARRIVALS]
    places += [folder / "registry" / name for name in ("versions", "retired")]
    places += [folder / "ledger" / kind for kind in (*KINDS, UNDER_WAY)]
    paths = {path for place in places if place.is_dir() for path in place.iterdir() if path.name.startswith(".")}
    return sorted(paths)


def for_the_next_run(registry: Registry) -> tuple[Path, ...]:
    """Return the unfinished work that the next run resumes from: none if the newest run finished.

    Raises:
        StoreError: the ledger cannot be read.
    """
    store, dataset = registry.store, registry.dataset
    if not was_cut_off(store, dataset, registry.ledger):
        return ()
    steps = {store.dataset(dataset) / part for part in FOLDERS.values()}
    return tuple(path for path in leftovers(store, dataset) if path.parent in steps and path.suffix == ".partial")


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder or does not exist."""
    return not path.is_symlink() and (path.is_dir() or not path.exists())


def _visible(folder: Path) -> Iterator[Path]:
    """Yield the paths in a folder that are not hidden, sorted; none if the folder does not exist."""
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if not path.name.startswith("."))


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
        "damage": [_finding(finding, store) for finding in verdict.damage],
        "leftovers": [_finding(finding, store) for finding in verdict.leftovers],
        "remarks": [_finding(finding, store) for finding in verdict.remarks],
    }
    return json.dumps(values, ensure_ascii=False)


def _finding(finding: StoreFinding, store: Store) -> dict[str, str]:
    return {"path": finding.where(store), "problem": finding.problem, "remedy": finding.remedy}
