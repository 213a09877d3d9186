"""Fetch the archives of a role into the store, byte for byte as published, each from the first source that has it.

Each archive is an entry of its own. If a role has several, another entry lists them.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import ROLES, ArchiveSpec, Dataset
from storage.errors import FormatError, IdxflowError, SourceUnavailable
from storage.files import digest_of
from storage.formats import chunks, idx, members, split_rows
from storage.records import Archive, Done, FolderEntry
from storage.store import Plan, Store
from storage.workers.current import current, in_order, using
from storage.workers.here import Here
from storage.workers.protocol import Workers
from tasks.sources.download import POLICY, DownloadPolicy
from tasks.sources.origins import EMBEDDED, GZIP_MAGIC, EmbeddedSource, Folder, Origin, measured, origins_of
from tasks.sources.partial_file import PartialFile, Received, SourceFailed
from tasks.ui.steps import log_step, with_new

_FIX = "with --source FOLDER or URL, or IDXFLOW_SOURCE"

_log = logging.getLogger(__name__)

T = TypeVar("T")


@task(task_run_name="fetch-{spec.role}", cache_policy=NO_CACHE)
def fetch(store: Store, dataset: Dataset, spec: ArchiveSpec, source: str | None = None) -> Done[Archive]:
    """Fetch all archives of a role of `dataset` into the store, or find them there.

    Sources of each, in order: `source`, the manifest's folder, the embedded data, the manifest's mirrors. A source that
    fails causes a warning if another is left to try. An archive without a digest comes from the first of these or not
    at all, so that all such archives of a data set come from one place.

    Args:
        spec: the first archive of the role, mostly the only one.
        source: a folder, as a path or `file:` URL, or an http(s) address to which the file's name is appended.

    Raises:
        ConfigError: `source` is none of these, or is a network address for an archive without a digest.
        DigestMismatch: a source's bytes differ from the published ones, and no other source had them.
        FormatError: likewise, if a source has more bytes than the limit or another size than declared.
        SourceUnavailable: no source could be read, or the only source of an archive without a digest lacks it.
    """
    others = dataset.archives_of(spec.role)[1:]
    result = (
        _several(store, dataset, (spec, *others), source) if others else _fetched(_One(store, dataset, spec, source))
    )
    log_step(_log, result.step)
    return result


@dataclass(frozen=True)
class _One:
    """One archive to fetch, wherever that is done."""

    store: Store
    dataset: Dataset
    spec: ArchiveSpec
    source: str | None

    @property
    def label(self) -> str:
        """What people call it."""
        return self.spec.file


def _fetched(one: _One) -> Done[Archive]:
    return find_or_fetch(one.store, one.dataset, one.spec, one.source, POLICY)


def _several(store: Store, dataset: Dataset, specs: Sequence[ArchiveSpec], source: str | None) -> Done[Archive]:
    """Fetch each archive of a role; return the entry that lists them, with how many are new."""
    started, role = time.perf_counter(), specs[0].role
    # Without the archives, of which there may be thousands: each item goes to another process.
    each = [_One(store, replace(dataset, archives=(spec,)), spec, source) for spec in specs]
    # An archive that is not pinned comes from a folder, one after the other.
    first = replace(_plan(dataset, specs[0]), one_of_many=False)
    why = store.explained(first).why if specs[0].pinned else ""
    with using(_who_fetches(dataset, source)):
        done = in_order(_fetched, each, f"fetch {role}")
    archives = [one.record for one in done]
    plan = Plan(
        dataset.name, "fetch", role, inputs={"archives": digest_of([[a.entry.key, a.sha256] for a in archives])}
    )
    plan = replace(plan, why=why or ("" if done[0].step.reused else done[0].step.reason))
    result = store.get_or_make(plan, Archive, partial(_listed, archives), _line_of_several)
    new = sum(not one.step.reused for one in done)
    return with_new(result, len(done), new, time.perf_counter() - started, "archive")


def _who_fetches(dataset: Dataset, source: str | None) -> Workers:
    """Return the workers of the run only if all archives come from the manifest's mirrors.

    A folder is one of this machine, and a source that was given for the run may have a password in it.
    """
    return Here() if source or dataset.source or dataset.embedded else current()


def _listed(archives: Sequence[Archive], folder: Path) -> Archive:
    members.write(folder, archives)
    return replace(
        archives[0],
        entry=FolderEntry(folder),
        size_bytes=sum(archive.size_bytes for archive in archives),
        sha256=digest_of([archive.sha256 for archive in archives]),
        parts=len(archives),
    )


def _line_of_several(archive: Archive) -> str:
    return f"{archive.parts:,} archives, {archive.size_bytes:,} bytes from {_place(archive.source)}"


def find_or_fetch(
    store: Store, dataset: Dataset, spec: ArchiveSpec, source: str | None, policy: DownloadPolicy
) -> Done[Archive]:
    """Do what `fetch` does, with the timeouts and retries of `policy`.

    An archive is identified by its digests alone, not by its source. So an archive in the store is found without
    reading any source, and a change of this code does not fetch it again. An archive without published digests is
    identified by the current digest of the file in the folder.
    """
    origins = origins_of(store, dataset, spec, source)
    place = ""
    if not spec.pinned:
        spec, place = _pin(dataset, spec, origins)
    request = FetchRequest(dataset.name, spec, policy)
    result = store.get_or_make(
        _plan(dataset, spec), Archive, lambda folder: bring(request, origins, folder), partial(_line, spec, place)
    )
    if source and result.step.reused and spec.role == ROLES[0] and not spec.number:
        _warn_of_no_folder(request, origins[0])
    return result


def _plan(dataset: Dataset, spec: ArchiveSpec) -> Plan:
    digests = {"archive": spec.sha256, "payload": spec.payload_sha256}
    inputs = {name: digest for name, digest in digests.items() if digest}
    # Of several archives, the first tells what is new: to compare each with all others would take long.
    return Plan(dataset.name, "fetch", spec.role, inputs=inputs, one_of_many=spec.number > 0)


def _warn_of_no_folder(request: FetchRequest, origin: Origin) -> None:
    """Warn that a missing folder was not needed: the user may believe that its files were read."""
    if isinstance(origin, Folder) and not origin.path.is_dir():
        _log.warning("%s: %s: no such folder; using the archives that are in the store", request.dataset, origin.where)


@dataclass(frozen=True)
class FetchRequest:
    """The archive to fetch, with its timeouts and retries."""

    dataset: str
    spec: ArchiveSpec
    policy: DownloadPolicy

    @property
    def name(self) -> str:
        """Data set and file, for messages."""
        return f"{self.dataset}: {self.spec.file}"


def bring(request: FetchRequest, origins: Sequence[Origin], folder: Path) -> Archive:
    """Write the archive into `folder` from the first of `origins` that has it.

    `folder` may hold the files of an interrupted run: a partial download is resumed, anything else is removed. The
    file has a temporary name until it has been verified.

    Raises:
        DigestMismatch, FormatError, SourceUnavailable: see `fetch`.
        StoreError: there is less free space than the archive's declared size.
        OSError: the folder cannot be written.
    """
    part = PartialFile(folder, request.spec.file)
    _remove_others(folder, part)
    part.check_room(request.name, request.spec.bytes)
    deadline = request.policy.clock() + request.policy.deadline_seconds

    def look(origin: Origin) -> tuple[str, Received]:
        try:
            return origin.deliver(request.spec, part, request.policy, deadline)
        except SourceFailed as failure:
            if failure.refused or not part.note.exists():
                part.clear()
            raise

    source, received = _first(request, origins, look)
    name = _final_name(request.spec, part.path)
    os.replace(part.path, folder / name)
    part.clear()
    if _is_cut(folder / name):
        chunks.write(folder / name)
    return Archive(FolderEntry(folder), request.spec.role, name, received.size_bytes, received.sha256, source)


def _pin(dataset: Dataset, spec: ArchiveSpec, origins: Sequence[Origin]) -> tuple[ArchiveSpec, str]:
    """Return `spec` with the digest of the file at the only origin in `origins`, and that file's location."""
    request = FetchRequest(dataset.name, spec, POLICY)
    if not origins:
        raise _error(request, [])
    (origin,) = origins
    if not isinstance(origin, Folder | EmbeddedSource):
        raise TypeError(f"expected a folder for an archive without a digest; found {origin.where}")
    try:
        path = origin.find(spec)
        return _with_measured_digest(spec, path), EMBEDDED if isinstance(origin, EmbeddedSource) else str(path)
    except SourceFailed as failure:
        if failure.refused:
            raise _error(request, [(origin, failure)]) from failure
        raise SourceUnavailable(
            f"{request.name}: expected it in {origin.where}, because all archives without a digest in the manifest "
            f"come from one place; found at {origin.where}: {failure}; put it there, or give the folder that has them "
            f"all {_FIX}"
        ) from failure


def _with_measured_digest(spec: ArchiveSpec, path: Path) -> ArchiveSpec:
    received = measured(path)
    declared = spec.bytes if path.suffix == Path(spec.file).suffix else spec.payload_bytes
    if declared not in (None, received.size_bytes):
        raise SourceFailed(
            f"found {received.size_bytes:,} bytes; the manifest declares {declared:,}", refused=FormatError
        )
    return replace(spec, bytes=received.size_bytes, sha256=received.sha256, payload_bytes=None)


def _first(request: FetchRequest, origins: Sequence[Origin], look: Callable[[Origin], T]) -> T:
    """Return the result of `look` for the first of `origins` at which it succeeds."""
    failures: list[tuple[Origin, SourceFailed]] = []
    for number, origin in enumerate(origins, start=1):
        try:
            return look(origin)
        except SourceFailed as failure:
            failures.append((origin, failure))
            if number < len(origins):
                _log.warning("%s: %s: %s; trying %s", request.name, origin.where, failure, origins[number].where)
    raise _error(request, failures)


def _error(request: FetchRequest, failures: Sequence[tuple[Origin, SourceFailed]]) -> IdxflowError:
    if not failures:
        return SourceUnavailable(f"{request.name}: expected a source in the manifest; found none; give one {_FIX}")
    refused = next((failure.refused for _, failure in failures if failure.refused), None)
    reasons = "; ".join(f"{origin.where}: {failure}" for origin, failure in failures)
    if not refused:
        places = "its source" if len(failures) == 1 else f"one of {len(failures)} sources"
        return SourceUnavailable(f"{request.name}: expected it at {places}; {reasons}; give another {_FIX}")
    own = any(failure.refused and isinstance(origin, Folder) for origin, failure in failures)
    meant = (
        "; to train on the file found instead, name its data set if the catalog has it (`idxflow datasets`), or write "
        "its manifest with `idxflow manifest FOLDER` and give that with --dataset-file"
    )
    return refused(
        f"{request.name}: expected {_published(request.spec)}; {reasons}; give a place that has the expected file "
        f"{_FIX}{meant if own else ''}"
    )


def _published(spec: ArchiveSpec) -> str:
    size = f" of {spec.bytes:,} bytes" if spec.bytes else ""
    digests = [f"SHA-256 {spec.sha256[:12]}…{size}" if spec.sha256 else ""]
    digests.append(f"payload SHA-256 {spec.payload_sha256[:12]}…" if spec.payload_sha256 else "")
    return " or ".join(filter(None, digests)) or "the declared size"


def _final_name(spec: ArchiveSpec, path: Path) -> str:
    with path.open("rb") as stream:
        return spec.file if stream.read(2) == GZIP_MAGIC else spec.file.removesuffix(".gz")


def _is_cut(path: Path) -> bool:
    """Return whether an archive is decoded in parts that are read by themselves: it has many rows, uncompressed."""
    size = path.stat().st_size
    with path.open("rb") as stream, suppress(FormatError):
        # What is wrong with it, decoding says.
        return size > split_rows.PART_ROWS and idx.rows_of(stream) > split_rows.PART_ROWS
    return False


def _remove_others(folder: Path, part: PartialFile) -> None:
    for path in folder.iterdir():
        if path in (part.path, part.note):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _line(spec: ArchiveSpec, location: str, archive: Archive) -> str:
    recompressed = spec.sha256 and spec.sha256 != archive.sha256
    note = ", compressed again, same content as published" if recompressed else ""
    return f"{archive.size_bytes:,} bytes from {_place(location or archive.source)}, sha256 {archive.sha256[:12]}{note}"


def _place(source: str) -> str:
    if source.startswith(("http://", "https://")):
        return urlsplit(source).netloc
    return source if source == EMBEDDED else str(Path(source).parent)
