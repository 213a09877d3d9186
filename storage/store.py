"""The store: immutable results of steps, looked up by what they were made from.

    <root>/store.json                         the format of the store, see `store_format`
    <root>/<dataset>/0-inbox/                 archives of an embedded data set, on their way in
                     1-archives/<key>/        one entry per archive
                     2-splits/<key>/          one per split
                     …
                     7-reports/<run>/
                     8-studies/<key>/         a study; <key>-<number>/ its trials, see `tasks.tune`
                     registry/  ledger/       see `registry` and `ledger`
                     locks/                   empty files, used only for locking; one per running step
    <root>/_downloads/<sha256>/               a ZIP file that several data sets share, see `tasks.sources.zip_file`

An entry is a folder named by a key, the digest of what it was made from (`Plan`). It is built in
`.<key>.partial`, every file flushed to disk, `entry.json` last, and renamed into place, so an entry
is either complete or absent. Looking it up checks the size and SHA-256 of every file. It is made
under a lock that the kernel releases when its holder exits, so two runs never do the same work. The next
run resumes from what a killed run left in the partial folder, or clears it away.

A process that uses a data set's entries holds `locks/in-use.lock`, shared; no entry is removed while it is held.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import logging
import os
import shlex
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from storage import store_format
from storage.differences import Difference, differences, flat
from storage.errors import DamagedEntry, StoreError, unreadable
from storage.files import (
    WAITING,
    NotRegular,
    canonical,
    check_regular,
    flush,
    locked,
    make_folder,
    read_json,
    sealed,
    sha256_of,
)
from storage.objects import sealed as sealed_json
from storage.objects.address import is_address, parse
from storage.objects.cache import option_of
from storage.objects.folder import Folder
from storage.objects.leases import Leases
from storage.objects.protocol import Found, Objects
from storage.records import Done, Entry, FolderEntry, Step, from_json, to_json
from storage.runtime import timings
from storage.words import brief

FOLDERS = {
    "fetch": "1-archives",
    "decode": "2-splits",
    "audit": "3-audits",
    "quarantine": "2-splits",
    "validate": "3-validations",
    "normalize": "4-normalization",
    "train": "5-models",
    "evaluate": "6-evaluations",
    "confirm": "6-evaluations",
    "probe": "6-evaluations",
    "publish": "7-reports",
    "tune": "8-studies",
}
INBOX = "0-inbox"
DOWNLOADS = "_downloads"
"""The folder of ZIP files that several data sets share; no data set can have this name."""
LOCKS = "locks"
PARTS = frozenset({*FOLDERS.values(), INBOX, "registry", "ledger", LOCKS})
"""The folders of a data set."""
IN_USE = "in-use.lock"
CHAMPION = "champion"
"""The name of the lock of deciding, which is in `registry`, for `Store.alone`."""
ENTRY = "entry.json"
ENTRY_FORMAT = 2
"""The format of `entry.json`, part of every key: raising it invalidates all entries, even archives without a source."""
_PARTS = ("parameters", "inputs", "code", "libraries")
"""The parts of `Plan.made_from`, in the order in which their changes are given as reasons."""
_LONGEST = 40
"""The most characters of a value shown in a reason."""
LOOKED_AT = 32
"""The most entries of a step to read when looking for the one most similar to a new one."""
STORE_VARIABLE = "IDXFLOW_STORE"

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from storage.objects.cache import Cache
    from storage.upkeep import Upkeep

BESIDE = Path(__file__).resolve().parent.parent / "store"
"""The default store."""


def store_address(store: str | Path | None = None) -> str:
    """Return where the store is: `store`, or `IDXFLOW_STORE`, or `store` next to the source code; absolute.

    Raises:
        ConfigError: it is not an address of object storage, although it begins like one.
    """
    chosen = str(store or os.environ.get(STORE_VARIABLE) or BESIDE)
    # A space around an address would make it a path.
    address = chosen.strip()
    return str(parse(address)) if is_address(address) else str(Path(chosen).expanduser().absolute())


def command_for(address: str, words: str, usual: str | Path | None = None) -> str:
    """Return an idxflow command for the store at an address, as `Store.command` does."""
    option = "" if address == str(usual or store_address()) else f" --store {shlex.quote(address)}"
    return f"idxflow {words}{option}"


class Stored(Protocol):
    """A record that lives in a store entry."""

    @property
    def entry(self) -> Entry:
        """The entry that the record describes."""


class Files(Protocol):
    """The files of an entry of another store, for `Store.adopt`."""

    def write(self, name: str, place: Path) -> None:
        """Write a file durably to a path where none is yet, and check its SHA-256.

        Raises:
            DamagedEntry: it has another one.
        """

    def path(self, name: str, place: Path) -> Path:
        """Return the path of a file on this machine after checking its SHA-256: `place`, if it had to be fetched.

        Raises:
            DamagedEntry: it has another one.
        """


R = TypeVar("R", bound=Stored)


@dataclass(frozen=True)
class Plan:
    """The inputs that determine a result. Equal plans describe the same work."""

    dataset: str
    step: str
    subject: str = ""
    """Which of several results of the step: an archive's role, a split's name."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Digest of each input, by name."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Everything else the result depends on, as JSON values."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Digest of each module the step runs, by name: `storage.runtime.code_digests.digests`."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Version of each library that shapes the result."""
    name: str = ""
    """Name of the entry's folder, if people look for it by name; otherwise the key is used."""
    one_of_many: bool = False
    """Whether nobody asks why it was made: it is one of thousands of parts. To find out takes a list of all results."""
    why: str = ""
    """Why it is made, if that is known already (`Store.explained`)."""

    @property
    def made_from(self) -> dict[str, Any]:
        return {
            "inputs": dict(self.inputs),
            "parameters": dict(self.parameters),
            "code": dict(self.code),
            "libraries": dict(self.libraries),
        }

    @property
    def key(self) -> str:
        """32 hexadecimal digits."""
        identity = {"step": self.step, "subject": self.subject, "format": ENTRY_FORMAT, **self.made_from}
        return hashlib.sha256(canonical(identity)).hexdigest()[:32]

    @property
    def folder(self) -> str:
        return self.name or self.key

    @property
    def label(self) -> str:
        return f"{self.step} {self.subject}".strip()


class Store:
    """Everything idxflow keeps, below one folder. Only this class builds paths in it."""

    _ANOTHER_FOLDER = "choose another with --store or IDXFLOW_STORE"
    """What to do about a folder on this machine that cannot be used."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.objects: Objects = Folder(self.root)
        self.leases: Leases | None = None
        """Those of this process, where the kernel does not tell others that it has ended."""
        self.cache: Cache | None = None
        """The files of entries on this machine, where the store itself is elsewhere."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # In another process, it is opened again: a connection, a lock and a lease belong to one process.
        from storage.opening import reopened

        return reopened, (self.address,)

    @property
    def address(self) -> str:
        """Where it is, for people and for `--store`: a path, or an address such as s3://bucket/prefix."""
        return str(self.root)

    def exists(self) -> bool:
        """Return whether anything has been stored."""
        return self.root.is_dir()

    def command(self, words: str, usual: str | Path | None = None) -> str:
        """Return an idxflow command for this store, ready to be typed.

        It names the store unless it is the `usual` one, by default the one a command without `--store` would use.
        """
        return command_for(self.address, words, usual)

    def dataset(self, name: str) -> Path:
        return self.root / name

    def datasets(self, parts: Collection[str] = PARTS) -> list[str]:
        """Return the names of the data sets that have something in the store, in one of these folders."""
        try:
            folders = sorted(path for path in self.root.iterdir() if path.is_dir())
        except FileNotFoundError:
            return []
        return [folder.name for folder in folders if any((folder / part).is_dir() for part in parts)]

    def part(self, dataset: str, name: str) -> Path:
        """Return a folder of a data set, which need not exist yet.

        Raises:
            StoreError: it cannot be read, or it is a symbolic link: the store keeps everything below its root.
        """
        folder = self.dataset(dataset)
        for path in (folder, folder / name):
            with store_errors(path):
                link = path.is_symlink()
            if link:
                raise StoreError(
                    f"expected a folder of the store at {path}; it is a symbolic link; "
                    "move what it points to there, or choose another store with --store"
                )
        return folder / name

    def key(self, dataset: str, part: str) -> str:
        """Return the key of a folder of a data set, or of a small file in it, for `objects`.

        Raises:
            StoreError: as for `part`.
        """
        self.part(dataset, part)
        return f"{dataset}/{part}"

    @contextmanager
    def alone(self, dataset: str, name: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Keep others from the same work while the block runs, as far as the store can. It only saves work.

        Args:
            name: of the work, such as `ledger`.
            on_wait: called once if others are at it; it may raise to stop waiting.

        Raises:
            OSError: the lock file cannot be written.
        """
        folder = "registry" if name == CHAMPION else LOCKS
        with locked(self.part(dataset, folder) / f"{name}.lock", on_wait):
            yield

    def inbox(self, dataset: str) -> Path:
        """Return the folder where an embedded data set writes its archives before they are fetched."""
        return self.part(dataset, INBOX)

    def downloads(self, sha256: str) -> Path:
        """Return the folder of a downloaded ZIP file, which need not exist yet: it has the digest's first half as name.

        Raises:
            StoreError: as for `part`.
        """
        return self.part(DOWNLOADS, sha256[:32])

    def download_lock(self, sha256: str) -> Path:
        """Return the lock that is held while that ZIP file is downloaded or removed."""
        return self.part(DOWNLOADS, f"{sha256[:32]}.lock")

    def entries(self, dataset: str, step: str) -> Path:
        return self.part(dataset, FOLDERS[step])

    @contextmanager
    def in_use(self, dataset: str) -> Iterator[None]:
        """Keep the entries of a data set from being removed while the block runs.

        If the store is read-only or its disk is too full for the lock file, no lock is held: removing entries
        requires the same lock, so no other process can remove them either.
        """
        lock = self.part(dataset, LOCKS) / IN_USE

        def say_waiting() -> None:
            _log.info("%s: waiting for `gc` to finish", dataset, extra=WAITING)

        with ExitStack() as held:
            try:
                held.enter_context(locked(lock, say_waiting, shared=True))
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT):
                    raise
            yield

    def check_in_use(self, dataset: str) -> None:
        """Check that no `gc` can have begun since this process has used a data set (`in_use`).

        A lock of the kernel is never lost; only in object storage there is something to check.

        Raises:
            StoreError: this process was paused or cut off from the store for too long.
        """

    def strays(self) -> list[Found]:
        """Return the objects beside all data sets that processes left which are gone: none in a folder."""
        return []

    def upkeep(self, dataset: str) -> Upkeep:
        """Return what `verify` and `gc` need to look after the entries of a data set."""
        from storage.upkeep import FolderUpkeep

        return FolderUpkeep(self, dataset)

    def prepare(self) -> None:
        """Create the store's folder.

        Raises:
            StoreError: it cannot be created or written, or was written by a later version.
        """
        try:
            make_folder(self.root)
        except OSError as error:
            raise StoreError(
                f"expected a folder that can be written at {self.root}; {error.strerror}; {self._ANOTHER_FOLDER}"
            ) from error
        if not os.access(self.root, os.W_OK):
            raise StoreError(
                f"expected a folder that can be written at {self.root}; permission denied; {self._ANOTHER_FOLDER}"
            )
        store_format.mark(self.objects)

    def find(self, plan: Plan, kind: type[R]) -> R | None:
        """Return the verified result of `plan`, or None if there is no such entry.

        Raises:
            DamagedEntry: the entry exists, but one of its files is not as recorded.
        """
        return self._load(plan.dataset, plan.step, plan.folder, kind)

    def get(self, dataset: str, step: str, key: str, kind: type[R]) -> R:
        """Return the verified entry of a step by its key.

        Raises:
            DamagedEntry: the entry does not exist, or one of its files is not as recorded.
        """
        record = self._load(dataset, step, key, kind)
        if record is None:
            raise DamagedEntry(f"{self.where_entry(dataset, step, key)}: expected an entry of the store; found none")
        return record

    def _load(self, dataset: str, step: str, key: str, kind: type[R]) -> R | None:
        folder = self.entries(dataset, step) / key
        return load(folder, kind) if folder.exists() else None

    def has(self, dataset: str, step: str, key: str) -> bool:
        """Return whether there is an entry of a step, complete or damaged."""
        return (self.entries(dataset, step) / key).is_dir()

    def where_entry(self, dataset: str, step: str, key: str) -> str:
        """Return the path or address of an entry, for messages."""
        return self.objects.where(self.entry_key(dataset, step, key))

    def entry_key(self, dataset: str, step: str, name: str) -> str:
        """Return the key of an entry's folder."""
        return f"{dataset}/{FOLDERS[step]}/{name}"

    def file(self, key: str, sha256: str, size: int) -> Path:
        """Return the path of an object with this digest and size in bytes, on this machine.

        Raises:
            FileNotFoundError: there is none; only a store elsewhere looks, and checks the digest.
            DigestDiffers: its contents are not the expected ones.
        """
        return self.root / key

    def described(self, dataset: str, part: str, key: str) -> dict[str, Any]:
        """Return `entry.json` of an entry in one of the folders of `FOLDERS`, without reading its files.

        Raises:
            DamagedEntry: there is no such entry, its description is invalid, or it lacks a file.
            StoreError: it cannot be read now.
        """
        return read_entry(self.part(dataset, part) / key, contents=False)

    def adopt(self, entry: Mapping[str, Any], files: Files) -> None:
        """Publish an entry of another store, unless this one has it already.

        Args:
            entry: its `entry.json`.
            files: its files.

        Raises:
            OSError: it cannot be written.
            StoreError: likewise, or a file cannot be read.
        """
        plan = plan_of(entry)
        final = self.entries(plan.dataset, plan.step) / plan.folder
        with self._exclusively(plan):
            if self.has(plan.dataset, plan.step, plan.folder):
                return
            partial = empty_partial(final)
            for name in entry["files"]:
                files.write(name, partial / name)
                (partial / name).chmod(0o444)
            _seal(partial, entry)
            os.rename(partial, final)
            flush(final.parent)

    def made_from(self, dataset: str, step: str, key: str) -> dict[str, Any]:
        """Return `Plan.made_from` of an entry without checking its files.

        Raises:
            DamagedEntry: its description cannot be read.
        """
        object_key = f"{self.entry_key(dataset, step, key)}/{ENTRY}"
        try:
            origin: dict[str, Any] = sealed_json.read(self.objects, object_key)["made_from"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            where = self.objects.where(object_key)
            raise DamagedEntry(f"{where}: expected what it was made from; {error}") from error
        return origin

    def newest_entries(self, dataset: str, step: str) -> Iterator[dict[str, Any]]:
        """Yield `entry.json` of the newest entries of a step, newest first, without checking anything else.

        At most `LOOKED_AT` entries are read.
        """
        folder = self.entries(dataset, step)
        for name in _newest(folder):
            try:
                yield read_json(folder / name / ENTRY)
            except (OSError, ValueError):
                continue

    def explained(self, plan: Plan) -> Plan:
        """Return a plan that says why its result is made, if the store lacks it.

        Steps in parts ask before they make the parts. These are results of the same step, so afterwards they would be
        what the plan is compared with, instead of what was there before the run.
        """
        with store_errors(self.root):
            return plan if self.has(plan.dataset, plan.step, plan.folder) else replace(plan, why=self._why(plan))

    def get_or_make(
        self,
        plan: Plan,
        kind: type[R],
        make: Callable[[Path], R],
        describe: Callable[[R], str],
    ) -> Done[R]:
        """Return the result of `plan` from the store, or make it if it is missing or damaged.

        Args:
            make: writes its files into the folder it is given and returns their record. The folder may hold
                files of an interrupted run; `make` must remove any that do not belong to the result.
            describe: returns one line with counts about the record, for people.

        Raises:
            StoreError: the store cannot be written.
            Exception: any error that `make` raises; then nothing is published.
        """
        started = time.perf_counter()
        with timings.span(f"step {plan.step}"), store_errors(self.root):
            record, reason, reused = self._obtain(plan, kind, make)
        seconds = time.perf_counter() - started
        step = Step(plan.step, plan.key, describe(record), seconds, reused, reason, subject=plan.subject)
        _log.debug("%s %s: %s", plan.label, plan.key, reason)
        return Done(record, step)

    def _obtain(self, plan: Plan, kind: type[R], make: Callable[[Path], R]) -> tuple[R, str, bool]:
        """Return the result of `plan`, the reason why it was made or reused, and whether it was reused."""
        with self._exclusively(plan):
            damaged = self.has(plan.dataset, plan.step, plan.folder)
            record, reason = self._reuse(plan, kind)
            if record is not None:
                return record, reason, True
            return self._make(plan, make, damaged), reason, False

    @contextmanager
    def _exclusively(self, plan: Plan) -> Iterator[None]:
        lock = self.part(plan.dataset, LOCKS) / f"{plan.step}-{plan.key}.lock"

        def say_waiting() -> None:
            _log.info("%s: waiting for another run that is making it", plan.label, extra=WAITING)

        with self.in_use(plan.dataset), locked(lock, say_waiting, passing=True):
            yield

    def _reuse(self, plan: Plan, kind: type[R]) -> tuple[R | None, str]:
        try:
            record = self.find(plan, kind)
        except DamagedEntry as error:
            _log.warning("%s: %s; making it again", plan.label, error)
            return None, f"damaged: {error}"
        return (record, "nothing changed") if record is not None else (None, self._why(plan))

    def _make(self, plan: Plan, make: Callable[[Path], R], damaged: bool) -> R:
        final = self.entries(plan.dataset, plan.step) / plan.folder
        partial = final.with_name(f".{plan.folder}.partial")
        record = made_in(partial, make)
        _seal(partial, description(partial, plan, record))
        if damaged:
            discard(final)
        try:
            os.rename(partial, final)
        except OSError:
            if not final.exists():
                raise
            # Someone removed the lock file, and another process has published this entry: keep that one.
            return load(final, type(record))
        flush(final.parent)
        return from_json(type(record), to_json(record), FolderEntry(final))

    def _why(self, plan: Plan) -> str:
        """Return what differs from the most similar existing result."""
        if plan.why:
            return plan.why
        if plan.name:
            return "new for each run"
        if plan.one_of_many:
            return "new"
        same = (plan.step, plan.subject)
        others = [
            entry for entry in self.newest_entries(plan.dataset, plan.step) if (entry["step"], entry["subject"]) == same
        ]
        if not others:
            looked_at_all = len(_newest(self.entries(plan.dataset, plan.step))) < LOOKED_AT
            return "first run" if looked_at_all else "nothing similar among the newest results"
        now = flat(plan.made_from)
        before = (flat({part: entry["made_from"][part] for part in _PARTS}) for entry in others)
        fewest = min((differences(entry, now) for entry in before), key=len)
        # What only one of them has may follow from what both have, such as a parameter of another optimizer.
        changes = [_in_words(d) for d in sorted(fewest, key=lambda d: d.old is None or d.new is None)]
        rest = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        return ", ".join(changes[:3]) + rest if changes else "made again"


def load(folder: Path, kind: type[R]) -> R:
    """Read the record of the entry in `folder`, after checking the size and SHA-256 of each file.

    Raises:
        DamagedEntry: the entry's description is invalid, or a file is missing or changed.
        StoreError: it cannot be read now, so it may be intact.
    """
    try:
        return from_json(kind, read_entry(folder)["record"], FolderEntry(folder))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedEntry(f"{folder / ENTRY}: expected a record of {kind.__name__}; {error}") from error


def read_entry(folder: Path, contents: bool = True) -> dict[str, Any]:
    """Return `entry.json` of the entry in `folder` after checking that it has exactly the listed files.

    The size of each file is checked, and its SHA-256 unless `contents` is False.

    Raises:
        DamagedEntry: the entry's description is invalid, or a file is missing, changed or not listed.
        StoreError: it cannot be read now, so it may be intact.
    """
    try:
        entry = read_json(folder / ENTRY)
        files = {str(name): (int(file["bytes"]), str(file["sha256"])) for name, file in entry["files"].items()}
        check_identity((folder.parent.parent.name, folder.parent.name, folder.name), entry)
    except (
        *(FileNotFoundError, NotADirectoryError, IsADirectoryError, NotRegular),
        *(ValueError, KeyError, TypeError, AttributeError),
    ) as error:
        raise DamagedEntry(f"{folder / ENTRY} cannot be read ({error})") from error
    except OSError as error:
        raise unreadable(folder / ENTRY, error) from error
    for name, (size, sha256) in files.items():
        _check_file(folder / name, size, sha256 if contents else None)
    others = sorted({path.name for path in folder.iterdir()} - {ENTRY, *files})
    if others:
        raise DamagedEntry(f"{folder}: expected the files of {ENTRY}; found {', '.join(others)} as well")
    return entry


def check_identity(expected: tuple[str, str, str], entry: Mapping[str, Any]) -> None:
    """Check that the entry has the key of what it was made from; a copied or edited one does not.

    Args:
        expected: its data set, the folder of its step, and its own.
        entry: `entry.json`.

    Raises:
        ValueError: the format, the key or a file name is not the expected one.
    """
    if entry["format"] != ENTRY_FORMAT:
        raise ValueError(f"expected format {ENTRY_FORMAT}; found {entry['format']!r}")
    plan = plan_of(entry)
    actual = (entry["dataset"], FOLDERS.get(plan.step), plan.folder)
    if actual != expected:
        raise ValueError(f"expected the entry of {'/'.join(expected)}; found that of {'/'.join(map(str, actual))}")
    for name in entry["files"]:
        if name in (ENTRY, "", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"expected the names of files in its folder; found {name!r}")


def plan_of(entry: Mapping[str, Any]) -> Plan:
    """Return the plan of the result that `entry.json` describes."""
    return Plan(entry["dataset"], entry["step"], entry["subject"], name=entry["name"], **entry["made_from"])


def _check_file(path: Path, size: int, sha256: str | None) -> None:
    try:
        if path.is_symlink():
            raise DamagedEntry(f"{path}: expected a file; found a symbolic link")
        check_regular(path)
        actual = path.stat().st_size
        if actual != size:
            raise DamagedEntry(f"{path}: expected {size:,} bytes; found {actual:,}")
        digest = sha256_of(path) if sha256 else None
    except (FileNotFoundError, IsADirectoryError, NotRegular) as error:
        raise DamagedEntry(f"{path}: expected {size:,} bytes; {error.strerror}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if digest != sha256:
        raise DamagedEntry(f"{path}: expected SHA-256 {sha256:.12}…; found {digest:.12}…")


@contextmanager
def store_errors(where: Path) -> Iterator[None]:
    """Turn an `OSError` about the store into a `StoreError` with a remedy."""
    try:
        yield
    except OSError as error:
        path = Path(str(error.filename or where))
        remedy = f"free space or correct the permissions there, or choose another with {option_of(path)}"
        if isinstance(error, NotADirectoryError):
            # The nearest path that exists is the obstacle.
            path = next(place for place in (path, *path.parents) if place.exists())
            remedy = "move it away, because a folder belongs there: `idxflow verify` lists all such paths"
        raise StoreError(f"the store cannot be used: {error.strerror} at {path}; {remedy}") from error


def description(folder: Path, plan: Plan, record: Stored) -> dict[str, Any]:
    """Return what `entry.json` says of a result whose files are in `folder`, after making these durable."""
    (folder / ENTRY).unlink(missing_ok=True)
    files = sorted(p for p in folder.iterdir() if p.is_file())
    for path in files:
        path.chmod(0o444)
        flush(path)
    return {
        "format": ENTRY_FORMAT,
        "dataset": plan.dataset,
        "step": plan.step,
        "subject": plan.subject,
        "name": plan.name,
        "made_from": plan.made_from,
        "files": {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in files},
        "record": to_json(record),
    }


def _seal(folder: Path, entry: Mapping[str, Any]) -> None:
    path = folder / ENTRY
    with path.open("wb") as stream:
        stream.write(sealed(entry))
        stream.flush()
        os.fsync(stream.fileno())
    path.chmod(0o444)
    flush(folder)


def made_in(partial: Path, make: Callable[[Path], R]) -> R:
    """Return the record of a result that `make` writes into a working folder, which an error leaves for resuming."""
    take_over(partial)
    try:
        return make(partial)
    except BaseException:
        # An empty folder is of no use for that.
        with suppress(OSError):
            partial.rmdir()
        raise


def take_over(partial: Path) -> None:
    """Create the working folder, or reuse one that a killed run left, without following any link out of it."""
    if partial.is_symlink():
        partial.unlink()
    make_folder(partial)
    for path in partial.iterdir():
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            # Remove links, which lead elsewhere, and FIFOs, which block when opened.
            path.unlink()
        else:
            # A run killed while sealing the entry left its files read-only.
            path.chmod(0o755 if path.is_dir() else 0o644)


def empty_partial(final: Path) -> Path:
    """Return the working folder of an entry, new and empty."""
    partial = final.with_name(f".{final.name}.partial")
    # A link, which leads elsewhere, stays here, and is removed there.
    shutil.rmtree(partial, ignore_errors=True)
    take_over(partial)
    return partial


def _newest(folder: Path) -> list[str]:
    """Return the names of the newest entries in a folder, newest first, at most `LOOKED_AT`."""
    try:
        with os.scandir(folder) as entries:
            candidates = [
                (e.stat(follow_symlinks=False).st_mtime_ns, e.name) for e in entries if not e.name.startswith(".")
            ]
    except OSError:
        return []
    return [name for _, name in heapq.nlargest(LOOKED_AT, candidates)]


def discard(folder: Path) -> None:
    """Remove an entry: rename it atomically, then delete it."""
    doomed = folder.with_name(f".{folder.name}.discarded")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(folder, doomed)
    # A power loss in between must not bring back the old name for a folder whose files have been deleted.
    flush(folder.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def _in_words(difference: Difference) -> str:
    if difference.part == "inputs":
        return f"new {difference.name}"
    if difference.part == "code":
        return f"code of {difference.name} changed"
    return f"{difference.name} {brief(difference.old, _LONGEST)} → {brief(difference.new, _LONGEST)}"
