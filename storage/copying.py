"""Copy a data set from one store to another, in a folder or in object storage, with everything that it knows.

First, everything is compared: the history at the target (versions, and records of the ledger) must be a part of that
at the source, or the reverse. Then the copy goes in the order of the references: entries, versions, runs and arrivals,
decisions, and the pointer to the champion last. So at any moment the target is a store that is complete as far as it
goes; a copy that was cut off is repeated, and copies only what is missing. Nothing is replaced: everything is created
if absent, except the pointer.

Every file is checked against the SHA-256 in its entry, and every JSON object against its seal. An entry has one
result: if both stores have it, each keeps its own, as long as both models have the same weights.

Not copied: work and runs in progress, locks, indexes, downloads, archives of embedded data sets, and which data of your
own is scheduled, because that names manifests of one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from storage import released
from storage.arrivals import Arrivals
from storage.drifts import DRIFTS
from storage.errors import DamagedEntry, StoreError
from storage.files import MAX_JSON_BYTES, copy_file, flush, sha256_of, unsealed
from storage.formats.members import MEMBERS, keys_in
from storage.ledger import place
from storage.objects.folder import Folder
from storage.registry import Registry
from storage.runtime import cancellation
from storage.store import ENTRY, FOLDERS, Store

VERSIONS = "registry/versions"
RETIRED = "registry/retired"
DECISIONS = "ledger/decisions"
HISTORY = (DECISIONS, f"ledger/{DRIFTS}", "ledger/arrivals", "ledger/studies", "ledger/runs", VERSIONS)
"""In the order of reading: what comes later may be named by what comes earlier. It is written in the reverse order."""
POINTER = "registry/champion.json"

_AT_ONCE = 8
"""Objects that are copied at the same time: most of it is waiting for answers."""

A = TypeVar("A")
B = TypeVar("B")

Advance = Callable[[int, int], None]
"""Called with the number of bytes of entries that are copied, and that of all."""


@dataclass(frozen=True)
class Copied:
    """What was copied of a data set, or would be."""

    dataset: str
    entries: int
    bytes: int
    """Of the files of these entries."""
    versions: int
    records: int
    """Of the ledger: runs, decisions, arrivals, studies, drifts."""
    released: int
    """Rows released from quarantine."""
    arrivals: int
    """Snapshots of archives that have arrived."""
    present: int
    """Entries, versions and records that the target had already."""


@dataclass(frozen=True)
class _Entry:
    """An entry of the source."""

    store: Store
    folder: str
    """Its key."""
    described: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        return sum(file["bytes"] for file in self.described["files"].values())

    def write(self, name: str, place: Path) -> None:
        if isinstance(self.store.objects, Folder):
            self._check(name, copy_file(self.store.objects.root / self.key_of(name), place))
            return
        self.path(name, place)
        flush(place)

    def path(self, name: str, place: Path) -> Path:
        key = self.key_of(name)
        if isinstance(self.store.objects, Folder):
            place = self.store.objects.root / key
        else:
            self.store.objects.download(key, place)
        self._check(name, sha256_of(place))
        return place

    def key_of(self, name: str) -> str:
        """Return the key of one of its files."""
        return "/".join(filter(None, (self.folder, self.described.get("attempt"), name)))

    def _check(self, name: str, found: str) -> None:
        expected = self.described["files"][name]["sha256"]
        if found != expected:
            raise DamagedEntry(
                f"{self.store.objects.where(self.key_of(name))}: expected SHA-256 {expected:.12}…; found {found:.12}…; "
                f"`{self.store.command('verify')}` says what to do"
            )


@dataclass(frozen=True)
class _Names:
    """The names of the records in one folder of the history, at the source and at the target."""

    folder: str
    """Its key."""
    ours: frozenset[str]
    theirs: frozenset[str]

    @property
    def missing(self) -> list[str]:
        """The keys of those that only the source has, in their order."""
        return self._keys(self.ours - self.theirs)

    @property
    def more(self) -> list[str]:
        """The keys of those that only the target has."""
        return self._keys(self.theirs - self.ours)

    @property
    def common(self) -> list[str]:
        return self._keys(self.ours & self.theirs)

    def _keys(self, names: Iterable[str]) -> list[str]:
        return [f"{self.folder}/{name}" for name in sorted(names, key=place)]


@dataclass(frozen=True)
class _Plan:
    """What the target lacks."""

    source: Store
    target: Store
    dataset: str
    history: tuple[_Names, ...]
    retired: _Names
    """The marks of versions whose models may be missing; a mark is as good as another one."""
    records: Mapping[str, bytes]
    """Those of the history, and the marks, that the target lacks, by key."""
    pointer: bytes | None
    """That to the champion, if there is one."""
    entries: tuple[_Entry, ...]
    released: Mapping[str, str]
    """Comments of rows, by digest."""
    snapshots: tuple[str, ...]
    present: int
    """Entries that the target has."""

    @property
    def copied(self) -> Copied:
        counts = {names.folder.partition("/")[2]: len(names.missing) for names in self.history}
        return Copied(
            dataset=self.dataset,
            entries=len(self.entries),
            bytes=sum(entry.bytes for entry in self.entries),
            versions=counts.pop(VERSIONS),
            records=sum(counts.values()),
            released=len(self.released),
            arrivals=len(self.snapshots),
            present=self.present + sum(len(names.common) for names in self.history),
        )


def copy(source: Store, target: Store, dataset: str, dry_run: bool = False, advance: Advance | None = None) -> Copied:
    """Copy what `target` lacks of a data set of `source`. No `gc` removes entries of either meanwhile.

    Args:
        source: the store to copy from; nothing in it is changed.
        target: the store to copy to, which need not exist yet.
        dataset: a data set of `source`.
        dry_run: only return what would be copied.
        advance: called as the copy goes on, in this thread.

    Raises:
        StoreError: the target has another history of the data set, and nothing was copied; or something cannot be
            read or written.
        DamagedEntry: something of the source is damaged.
    """
    with _errors(), ExitStack() as held:
        held.enter_context(source.in_use(dataset))
        if not dry_run:
            target.prepare()
            held.enter_context(target.in_use(dataset))
        plan = _planned(source, target, dataset)
        if not dry_run:
            _carry_out(plan, advance or _silent)
        return plan.copied


def bring(source: Store, target: Store, dataset: str, step: str, key: str) -> None:
    """Copy one entry, with those that it lists, unless the target has them; every file is checked.

    Raises:
        DamagedEntry: an entry is missing at the source, or damaged.
        StoreError: one of the stores cannot be read or written.
    """
    with _errors():
        for each in _with_listed(source, dataset, step, key):
            _adopted(target, each)


def _with_listed(source: Store, dataset: str, step: str, key: str) -> Iterator[_Entry]:
    entry = _entry(source, source.entry_key(dataset, step, key))
    yield entry
    if MEMBERS in entry.described["files"]:
        name = entry.key_of(MEMBERS)
        for listed in keys_in(source.objects.get(name), source.objects.where(name)):
            yield from _with_listed(source, dataset, step, listed)


def _silent(done: int, total: int) -> None:
    """Tell nobody."""


def _planned(source: Store, target: Store, dataset: str) -> _Plan:
    pointer = _get(source, f"{dataset}/{POINTER}")
    # In this order, so that all that is named by what was listed before is listed as well, if runs go on at the source.
    history = tuple(_names(source, target, f"{dataset}/{folder}") for folder in HISTORY)
    retired = _names(source, target, f"{dataset}/{RETIRED}")
    ours, theirs = _entries(source, dataset), _entries(target, dataset)
    _check_one_history(source, target, history)
    _check_same(source, target, (key for names in history for key in names.common))
    _check_weights(source, target, ours & theirs)
    # The pointer is right.
    Registry(source, dataset).champion()
    known, comments = {*released.read(target, dataset)}, released.comments(source, dataset)
    arrivals = Arrivals(target, dataset)
    return _Plan(
        source=source,
        target=target,
        dataset=dataset,
        history=history,
        retired=retired,
        records=dict(_each(partial(_record, source), (key for names in (*history, retired) for key in names.missing))),
        pointer=pointer,
        entries=tuple(sorted(_each(partial(_entry, source), ours - theirs), key=lambda entry: entry.folder)),
        released={digest: comment for digest, comment in comments.items() if digest not in known},
        snapshots=tuple(sorted({*Arrivals(source, dataset).names()} - {*arrivals.names()})),
        present=len(ours & theirs),
    )


def _names(source: Store, target: Store, folder: str) -> _Names:
    listings = (store.objects.list(folder).objects for store in (source, target))
    ours, theirs = (frozenset(found.name for found in one if found.name.endswith(".json")) for one in listings)
    return _Names(folder, ours, theirs)


def _entries(store: Store, dataset: str) -> set[str]:
    """Return the keys of the folders of all entries of a data set."""
    parts = dict.fromkeys(FOLDERS.values())
    found = (found for part in parts for found in store.objects.walk(f"{dataset}/{part}"))
    return {one.key.rpartition("/")[0] for one in found if one.name == ENTRY}


def _check_one_history(source: Store, target: Store, history: Iterable[_Names]) -> None:
    """Check that one history is a part of the other.

    Raises:
        StoreError: each has what the other has not.
    """
    missing = [key for names in history for key in names.missing]
    more = [key for names in history for key in names.more]
    if missing and more:
        raise StoreError(
            f"expected {target.objects.where(more[0])} to be in {source.address}, too; found none, and in return "
            f"{target.address} has no {missing[0]}: the two have gone separate ways; nothing of "
            f"{more[0].partition('/')[0]} was copied; choose another target"
        )


def _check_same(source: Store, target: Store, keys: Iterable[str]) -> None:
    """Check that both have the same under these keys.

    Raises:
        StoreError: they have not.
    """
    for key, same in _each(lambda key: (key, _get(source, key) == _get(target, key)), keys):
        if not same:
            raise _differs(source, target, key)


def _check_weights(source: Store, target: Store, entries: Iterable[str]) -> None:
    """Check that the models, and their evaluations, that both have are of the same weights.

    Raises:
        StoreError: they are not.
    """

    def weights(store: Store, key: str) -> Any:
        return _entry(store, key).described["record"].get("weights_digest")

    about_models = (FOLDERS["train"], FOLDERS["evaluate"])
    keys = (key for key in entries if key.split("/")[1] in about_models)
    for key, same in _each(lambda key: (key, weights(source, key) == weights(target, key)), keys):
        if not same:
            raise _differs(source, target, key)


def _differs(source: Store, target: Store, key: str) -> StoreError:
    return StoreError(
        f"expected {target.objects.where(key)} to be the same as {source.objects.where(key)}; found another one: the "
        f"histories of {key.partition('/')[0]} went separate ways, and nothing of it was copied; choose another target"
    )


def _record(source: Store, key: str) -> tuple[str, bytes]:
    """Return a JSON object of the source by its key, as it is, after checking its seal."""
    data = source.objects.get(key, MAX_JSON_BYTES + 1)
    try:
        unsealed(data)
    except ValueError as error:
        raise DamagedEntry(
            f"{source.objects.where(key)}: {error}; `{source.command('verify')}` says what to do"
        ) from error
    return key, data


def _entry(store: Store, key: str) -> _Entry:
    dataset, part, name = key.split("/")
    try:
        return _Entry(store, key, store.described(dataset, part, name))
    except DamagedEntry as error:
        raise DamagedEntry(f"{error}; `{store.command('verify')}` says what to do") from error


def _carry_out(plan: _Plan, advance: Advance) -> None:
    source, target, dataset = plan.source, plan.target, plan.dataset
    done, total = 0, plan.copied.bytes

    def count(entry: _Entry) -> None:
        nonlocal done
        done += entry.bytes
        advance(done, total)

    advance(done, total)
    # First what is listed, then what lists it. Lists that keep other lists do not read them.
    for lists in (False, True):
        entries = (entry for entry in plan.entries if (MEMBERS in entry.described["files"]) == lists)
        _each(partial(_adopted, target), entries, count)
    with Registry(target, dataset).deciding(), target.alone(dataset, "ledger"):
        # Runs may have gone on at the target meanwhile.
        history = [replace(names, theirs=_names(source, target, names.folder).theirs) for names in plan.history]
        _check_one_history(source, target, history)
        for names in (plan.retired, *reversed(plan.history)):
            _create(plan, names)
        if plan.pointer is not None and not any(names.more for names in history):
            target.objects.put(f"{dataset}/{POINTER}", plan.pointer)
    if plan.released:
        released.release(target, dataset, plan.released)
    if plan.snapshots:
        _copy_snapshots(plan)


def _adopted(target: Store, entry: _Entry) -> _Entry:
    target.adopt({name: value for name, value in entry.described.items() if name != "attempt"}, entry)
    return entry


def _create(plan: _Plan, names: _Names) -> None:
    def create(key: str) -> None:
        data = plan.records[key]
        created = plan.target.objects.create(key, data)
        if not created and names is not plan.retired and _get(plan.target, key) != data:
            raise StoreError(
                f"expected no {plan.target.objects.where(key)} yet; another process has just written it; repeat the "
                "command to compare both stores again"
            )

    if names.folder.endswith(DECISIONS):
        # Each of them rests on those before it.
        for key in names.missing:
            create(key)
    else:
        _each(create, names.missing)


def _copy_snapshots(plan: _Plan) -> None:
    source, arrivals = (Arrivals(store, plan.dataset) for store in (plan.source, plan.target))
    # After their records, which this would otherwise write.
    with arrivals.alone():
        for snapshot in plan.snapshots:
            arrivals.adopt(source, snapshot)


def _get(store: Store, key: str) -> bytes | None:
    try:
        return store.objects.get(key, MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        return None


def _each(function: Callable[[A], B], items: Iterable[A], done: Callable[[B], None] | None = None) -> list[B]:
    """Call a function for all items, several at a time; return the results in the order in which they came.

    Args:
        done: called with each result, in this thread. If it raises an error, or a call does, no other call begins, and
            those in progress have ended when the error leaves this function.
    """
    results: list[B] = []
    # The pool waits for its threads, after these have been told to stop.
    with ThreadPoolExecutor(_AT_ONCE) as pool, cancellation.cancellable():
        calls = [pool.submit(copy_context().run, function, item) for item in items]
        try:
            for call in as_completed(calls):
                results.append(call.result())
                if done:
                    done(results[-1])
        finally:
            for call in calls:
                call.cancel()
    return results


@contextmanager
def _errors() -> Iterator[None]:
    """Turn an `OSError` about one of the stores into a `StoreError` with a remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(
            f"expected {error.filename}; found none any more: another process has removed it; repeat the command, "
            "which copies what is missing"
        ) from error
    except OSError as error:
        # Python does not say which file could not be written to.
        where = f" at {error.filename}" if error.filename else ""
        raise StoreError(
            f"expected to copy all of it; {error.strerror}{where}; free space or correct the permissions "
            "there, and repeat the command, which copies what is missing"
        ) from error
