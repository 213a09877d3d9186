"""A store in object storage, shared by machines; what it promises is what a store in a folder does (`storage.store`).

    <dataset>/2-splits/<key>/<attempt>/<file>    files of an entry; an attempt's name is random, and nobody else's
    <dataset>/2-splits/<key>/entry.json          created if absent, last: this publishes one of the attempts
    <dataset>/claims/<step>-<key>.json           a lease: its owner is making this entry, and others wait for it
    <dataset>/leases/<id>.json                   a lease: its owner uses entries of the data set
    <dataset>/gc/<id>.json                       a lease: its owner removes entries of the data set

Work may be done twice, but is published once: who comes second uses what the store has. Claims only save work.

A process that uses entries writes its lease first and looks for that of a `gc` then; a `gc` does the reverse. So one
of them sees the other.

Files are read through a cache on this machine (`storage.objects.cache`). Everything that is unfinished is in a working
folder of this machine, `root`, which is laid out like a store in a folder: there, a killed run's work is resumed.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage import store_format
from storage.errors import DamagedEntry, StoreError, published_by
from storage.files import WAITING, make_folder
from storage.objects import sealed
from storage.objects.cache import Cache, DigestDiffers, cache_folder, cache_size, unusable
from storage.objects.leases import Leases
from storage.objects.protocol import Found, Objects
from storage.records import Entry, from_json
from storage.runtime import cancellation
from storage.runtime.ranged import Ranged, Source
from storage.store import (
    ENTRY,
    FOLDERS,
    LOOKED_AT,
    PARTS,
    Files,
    Plan,
    R,
    Store,
    check_identity,
    description,
    empty_partial,
    made_in,
    plan_of,
)

USERS, COLLECTING, CLAIMS = "leases", "gc", "claims"
"""The folders of leases of a data set."""
_ATTEMPT = re.compile(r"[0-9a-f]{16}")
_POLL_SECONDS = 1.0

if TYPE_CHECKING:
    from storage.cloud_upkeep import CloudUpkeep

_log = logging.getLogger(__name__)


class CloudStore(Store):
    """A store whose objects are elsewhere."""

    _ANOTHER_FOLDER = "choose another folder with IDXFLOW_CACHE"

    def __init__(self, objects: Objects, leases: Leases | None = None, cache: Path | None = None) -> None:
        cache = cache or cache_folder()
        name = hashlib.sha256(objects.address.encode()).hexdigest()[:16]
        super().__init__(cache / "stores" / name)
        self.objects = objects
        self.leases: Leases = leases or Leases(objects)
        self.cache: Cache = Cache(cache / "files", cache_size())
        self.mends = True
        """Whether an entry that turns out to be damaged is removed, so that it is made again: for runs, not readers."""
        self._in_use: dict[str, str] = {}
        """The lease of each data set in use."""
        self._users: Counter[str] = Counter()
        self._counting = threading.Lock()

    @property
    def address(self) -> str:
        return self.objects.address

    def exists(self) -> bool:
        listing = self.objects.list("")
        return bool(listing.objects or listing.folders)

    def datasets(self, parts: Collection[str] = PARTS) -> list[str]:
        names = self.objects.list("").folders
        return [name for name in names if not {*parts}.isdisjoint(self.objects.list(name).folders)]

    def prepare(self) -> None:
        if not store_format.check(self.objects):
            # Once per store: a server that replaces what is there would lose results without a word.
            self.objects.probe()
        try:
            make_folder(self.root)
        except OSError as error:
            raise unusable(error) from error
        super().prepare()
        self.mends = True

    def strays(self) -> list[Found]:
        if not self.objects.hidden():
            return []
        # The time first: if the listing takes long, objects look younger than they are, and never the reverse.
        oldest_needed = self.objects.now() - self.leases.life
        return [found for found in self.objects.hidden() if found.modified < oldest_needed]

    def upkeep(self, dataset: str) -> CloudUpkeep:
        from storage.cloud_upkeep import CloudUpkeep

        return CloudUpkeep(self, dataset)

    def has(self, dataset: str, step: str, key: str) -> bool:
        try:
            self.objects.get(f"{self.entry_key(dataset, step, key)}/{ENTRY}", 1)
        except FileNotFoundError:
            return False
        return True

    def file(self, key: str, sha256: str, size: int) -> Path:
        name = key.rpartition("/")[2]
        return self.cache.path(name, sha256, size, lambda place: self.objects.download(key, place))

    @contextmanager
    def in_use(self, dataset: str) -> Iterator[None]:
        """Keep the entries of a data set from being removed while the block runs, as for a store in a folder."""
        # A `gc` on this machine must not remove the unfinished work in the working folder.
        with super().in_use(dataset):
            self._begin_use(dataset)
            try:
                yield
            finally:
                self._end_use(dataset)

    def _begin_use(self, dataset: str) -> None:
        # Threads share one lease.
        with self._counting:
            if not self._users[dataset]:
                lease = f"{dataset}/{USERS}/{secrets.token_hex(8)}.json"
                try:
                    self._hold(dataset, lease)
                except BaseException:
                    # It would be renewed as long as this process lives.
                    self.leases.release(lease)
                    raise
                self._in_use[dataset] = lease
            self._users[dataset] += 1

    def _end_use(self, dataset: str) -> None:
        with self._counting:
            self._users[dataset] -= 1
            if not self._users[dataset]:
                self.leases.release(self._in_use.pop(dataset))

    def check_in_use(self, dataset: str) -> None:
        if dataset in self._in_use:
            self.leases.check(self._in_use[dataset])

    @contextmanager
    def alone(self, dataset: str, name: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold nothing: between machines there are no locks, and what is right does not depend on them."""
        yield

    def newest_entries(self, dataset: str, step: str) -> Iterator[dict[str, Any]]:
        described = [found for found in self.objects.walk(f"{dataset}/{FOLDERS[step]}") if found.name == ENTRY]
        for found in sorted(described, key=lambda found: found.modified, reverse=True)[:LOOKED_AT]:
            with suppress(FileNotFoundError, ValueError):
                yield sealed.read(self.objects, found.key)

    def described(self, dataset: str, part: str, key: str) -> dict[str, Any]:
        where = f"{dataset}/{part}/{key}/{ENTRY}"
        try:
            described = sealed.read(self.objects, where)
            check_identity((dataset, part, key), described)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = getattr(error, "strerror", None) or str(error)
            raise DamagedEntry(f"{self.objects.where(where)} cannot be read ({problem})") from error
        return described

    def adopt(self, entry: Mapping[str, Any], files: Files) -> None:
        plan, attempt = plan_of(entry), secrets.token_hex(8)
        folder = self.entry_key(plan.dataset, plan.step, plan.folder)
        # What has to be fetched first passes through the working folder, which processes of this machine share.
        with super()._exclusively(plan):
            partial = empty_partial(self.entries(plan.dataset, plan.step) / plan.folder)
            for name in entry["files"]:
                cancellation.check()
                self.objects.upload(f"{folder}/{attempt}/{name}", files.path(name, partial / name))
                (partial / name).unlink(missing_ok=True)
            partial.rmdir()
        self.check_in_use(plan.dataset)
        if sealed.create(self.objects, f"{folder}/{ENTRY}", {**entry, "attempt": attempt}):
            self._check_published(plan.dataset, CloudEntry(self, folder, attempt, files_of(entry)))
        else:
            self.objects.delete([f"{folder}/{attempt}/{name}" for name in entry["files"]])

    def _obtain(self, plan: Plan, kind: type[R], make: Callable[[Path], R]) -> tuple[R, str, bool]:
        # What is there needs no claim.
        with suppress(DamagedEntry):
            record = self._load(plan.dataset, plan.step, plan.folder, kind)
            if record is not None:
                self.check_in_use(plan.dataset)
                return record, "nothing changed", True
        return super()._obtain(plan, kind, make)

    def _load(self, dataset: str, step: str, key: str, kind: type[R]) -> R | None:
        folder = self.entry_key(dataset, step, key)
        where = self.objects.where(f"{folder}/{ENTRY}")
        try:
            described = sealed.read(self.objects, f"{folder}/{ENTRY}")
            check_identity((dataset, FOLDERS[step], key), described)
            return self._record(kind, folder, described)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedEntry(f"{where}: expected a record of {kind.__name__}; {error}") from error

    def _record(self, kind: type[R], folder: str, described: Mapping[str, Any]) -> R:
        entry: Entry = CloudEntry(self, folder, attempt_of(described), files_of(described))
        return from_json(kind, described["record"], entry)

    @contextmanager
    def _exclusively(self, plan: Plan) -> Iterator[None]:
        # Processes of this machine share the working folder, so they also need its lock.
        with super()._exclusively(plan):
            claim = f"{plan.dataset}/{CLAIMS}/{plan.step}-{plan.folder}.json"
            self._claim(claim, plan)
            try:
                yield
            finally:
                self.leases.release(claim)

    def _claim(self, claim: str, plan: Plan) -> None:
        said = False
        while not self.leases.acquire(claim):
            if not said:
                _log.info("%s: waiting for another run that is making it", plan.label, extra=WAITING)
                said = True
            cancellation.sleep(_POLL_SECONDS)

    def _hold(self, dataset: str, lease: str) -> None:
        """Write a lease while no `gc` runs."""
        said = False
        while True:
            self.leases.hold(lease)
            if not self.leases.survey(f"{dataset}/{COLLECTING}").living:
                return
            self.leases.release(lease)
            if not said:
                _log.info("%s: waiting for `gc` to finish", dataset, extra=WAITING)
                said = True
            cancellation.sleep(_POLL_SECONDS)

    def _make(self, plan: Plan, make: Callable[[Path], R], damaged: bool) -> R:
        partial = self.entries(plan.dataset, plan.step) / f".{plan.folder}.partial"
        record = made_in(partial, make)
        folder = self.entry_key(plan.dataset, plan.step, plan.folder)
        if damaged:
            self.objects.delete([f"{folder}/{ENTRY}"])
        published = self._publish(folder, partial, description(partial, plan, record), type(record))
        shutil.rmtree(partial, ignore_errors=True)
        return published

    def _publish(self, folder: str, partial: Path, described: dict[str, Any], kind: type[R]) -> R:
        """Upload the files of an entry, then publish it, unless another run has: then return what that one made."""
        dataset, step, key = described["dataset"], described["step"], folder.rpartition("/")[2]
        attempt = secrets.token_hex(8)
        described = {**described, "attempt": attempt}
        for name in described["files"]:
            cancellation.check()
            self.objects.upload(f"{folder}/{attempt}/{name}", partial / name)
        while True:
            self.check_in_use(dataset)
            if sealed.create(self.objects, f"{folder}/{ENTRY}", described):
                self._check_published(dataset, CloudEntry(self, folder, attempt, files_of(described)))
                for name, file in described["files"].items():
                    self.cache.add(partial / name, file["sha256"])
                return self._record(kind, folder, described)
            theirs = self._load(dataset, step, key, kind)
            if theirs is not None:
                self.objects.delete([f"{folder}/{attempt}/{name}" for name in described["files"]])
                return theirs

    def _check_published(self, dataset: str, entry: CloudEntry) -> None:
        """Take a new entry back if this process was paused, or waited for an answer, for too long while publishing it.

        A `gc` may have removed its files meanwhile.
        """
        try:
            self.check_in_use(dataset)
        except StoreError:
            entry.unpublish()
            raise


@dataclass(frozen=True)
class StoredFile:
    """Size in bytes and SHA-256 of one file of an entry."""

    bytes: int
    sha256: str


def attempt_of(described: Mapping[str, Any]) -> str:
    """Return which attempt `entry.json` publishes.

    Raises:
        ValueError, KeyError: it does not say that.
    """
    attempt = described["attempt"]
    if not (isinstance(attempt, str) and _ATTEMPT.fullmatch(attempt)):
        raise ValueError(f"expected the name of an attempt; found {attempt!r}")
    return attempt


def files_of(described: Mapping[str, Any]) -> dict[str, StoredFile]:
    """Return the files that `entry.json` lists, by name.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it does not list them.
    """
    return {name: StoredFile(int(file["bytes"]), str(file["sha256"])) for name, file in described["files"].items()}


@dataclass(frozen=True)
class CloudEntry:
    """An entry in object storage; its files come through the cache."""

    store: CloudStore
    folder: str
    """Its key in the store."""
    attempt: str
    files: Mapping[str, StoredFile]

    @property
    def key(self) -> str:
        return self.folder.rpartition("/")[2]

    def where(self, name: str = "") -> str:
        return self.store.objects.where(f"{self.folder}/{self.attempt}/{name}" if name else self.folder)

    def sha256(self, name: str) -> str | None:
        return self.files[name].sha256 if name in self.files else None

    def source(self, name: str) -> Source:
        if name not in self.files or self.store.cache.has(name, self.files[name].sha256):
            return self.path(name)
        file = self.files[name]
        return Ranged(self.where(name), file.bytes, file.sha256, partial(self._range, name), partial(self.path, name))

    def _range(self, name: str, start: int, stop: int) -> bytes:
        with self._removed(name):
            return self.store.objects.range(self._key(name), start, stop)

    def path(self, name: str) -> Path:
        if name not in self.files:
            # As in a folder: whoever opens it finds that it is not there.
            return self.store.root / "none" / name
        file = self.files[name]
        fetch = partial(self.store.file, self._key(name), file.sha256, file.bytes)
        try:
            with self._removed(name):
                try:
                    path = fetch()
                except DigestDiffers as error:
                    # Damaged on its way, perhaps: the object itself may be intact.
                    _log.warning("%s: %s; fetching it once more", self.where(name), error)
                    path = fetch()
        except DigestDiffers as error:
            raise self._damaged(name, error) from error
        published_by(path, f"{self.where()}/{ENTRY}")
        return path

    def _damaged(self, name: str, error: DigestDiffers) -> DamagedEntry:
        if self.store.mends:
            self.unpublish()
            remedy = "the damaged entry was removed from the store: run again to rebuild it"
        else:
            remedy = f"remove {self.where()}/{ENTRY}, then run again"
        return DamagedEntry(f"{self.where(name)}: {error}; {remedy}", removed=self.store.mends)

    def beside(self, key: str) -> Entry:
        return PartEntry(self.store, f"{self.folder.rpartition('/')[0]}/{key}")

    def unpublish(self) -> None:
        """Remove the description of this damaged entry, so that it is made again, unless another run has done that."""
        described = f"{self.folder}/{ENTRY}"
        with suppress(FileNotFoundError, ValueError, KeyError):
            if sealed.read(self.store.objects, described)["attempt"] == self.attempt:
                self.store.objects.delete([described])

    def _key(self, name: str) -> str:
        return f"{self.folder}/{self.attempt}/{name}"

    @contextmanager
    def _removed(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if self.store.mends:
                self.unpublish()
            raise StoreError(
                f"expected {self.where(name)}; found none: `idxflow gc` has removed its entry, or another program did; "
                "run again"
            ) from error


@dataclass(frozen=True)
class PartEntry:
    """An entry in object storage that another one names; its description is read when a file of it is needed."""

    store: CloudStore
    folder: str
    """Its key in the store."""

    @property
    def key(self) -> str:
        return self.folder.rpartition("/")[2]

    def where(self, name: str = "") -> str:
        return self._entry.where(name) if name else self.store.objects.where(self.folder)

    def path(self, name: str) -> Path:
        return self._entry.path(name)

    def source(self, name: str) -> Source:
        return self._entry.source(name)

    def sha256(self, name: str) -> str | None:
        return self._entry.sha256(name)

    def beside(self, key: str) -> Entry:
        return PartEntry(self.store, f"{self.folder.rpartition('/')[0]}/{key}")

    @cached_property
    def _entry(self) -> CloudEntry:
        dataset, part, key = self.folder.split("/")
        described = self.store.described(dataset, part, key)
        return CloudEntry(self.store, self.folder, attempt_of(described), files_of(described))
