"""Define where an archive may come from, and verify that it is the right one."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from storage.arrivals import Arrivals
from storage.datasets import catalog
from storage.datasets.catalog import DEFAULT_FILES, ArchiveSpec, Dataset, ZipSpec
from storage.errors import ConfigError, DigestMismatch, FormatError
from storage.files import kind_of, locked, open_regular, sha256_of
from storage.formats import idx
from storage.objects.address import is_address
from storage.objects.cache import DigestDiffers
from storage.store import Store, store_errors
from storage.words import meant
from tasks.sources import embedded
from tasks.sources.download import DownloadPolicy, download, redacted
from tasks.sources.partial_file import BLOCK, PartialFile, Received, SourceFailed, too_large
from tasks.sources.zip_file import KeptZip, in_folder, take_out

DEFAULT_LIMIT = 1 << 32
"""Maximum bytes of an archive, or of its payload, if the manifest does not state the size."""
INSPECTED = 1 << 28
"""Maximum bytes of a wrong archive's payload that are read to identify it."""
EMBEDDED = "scikit-learn (embedded)"
GZIP_MAGIC = b"\x1f\x8b"

OPEN_SOURCE = r"^(?!(?:[A-Za-z][A-Za-z0-9+.-]+:|[\s\S]*://)[\s\S]*[@?#])"
"""Pattern of a source that may be shown to everyone: no address with the characters that introduce a user, password,
query or fragment. Also valid in JSON Schema, so that Prefect's server refuses other sources before it stores them."""

# A folder with such a name is written `./a:b`, as in RFC 3986, 4.2. The second form matches an address inside quotes or
# blanks: reported as a missing folder, it would be shown with its password.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:|.*://", re.IGNORECASE | re.DOTALL)


_USUAL = frozenset(file for name in DEFAULT_FILES.values() for file in (name, name.removesuffix(".gz")))


class Origin(Protocol):
    """A place where the archive may be."""

    @property
    def where(self) -> str:
        """Human-readable name, without secrets."""

    def deliver(
        self, spec: ArchiveSpec, part: PartialFile, policy: DownloadPolicy, deadline: float
    ) -> tuple[str, Received]:
        """Write the archive into `part`, and return its exact location, without secrets.

        Raises:
            SourceFailed: the archive is not here, or is not the wanted one.
        """


@dataclass(frozen=True)
class Folder:
    """A folder of archives, compressed or not, or with the ZIP file that they are published in."""

    path: Path
    zipped: ZipSpec | None = None

    @property
    def where(self) -> str:
        """See `Origin`."""
        return str(self.path)

    def find(self, spec: ArchiveSpec) -> Path:
        """Return the archive's file.

        Raises:
            SourceFailed: there is no readable file.
        """
        with _reading(self.path):
            if not self.path.is_dir():
                problem = (
                    f"it is {kind_of(self.path)}, not a folder" if self.path.exists() else "there is no such folder"
                )
                raise SourceFailed(problem)
            for name in file_names(spec):
                path = self.path / name
                if path.is_file():
                    return path
                if path.exists():
                    raise SourceFailed(f"{name} is {kind_of(path)}, not a regular file")
        nor = f", and no {self.zipped.file} with it" if self.zipped else ""
        raise SourceFailed(f"there is no {spec.file}{nor}{self._alike(spec)}")

    def _alike(self, spec: ArchiveSpec) -> str:
        """Return the file that was probably meant, if its name was mistyped."""
        names = sorted(path.name for path in self.path.iterdir() if path.is_file() and path.name not in _USUAL)
        # A high threshold, because the usual names resemble each other.
        return catalog.one_line(meant(spec.file, names, alike=0.9))

    def deliver(
        self, spec: ArchiveSpec, part: PartialFile, policy: DownloadPolicy, deadline: float
    ) -> tuple[str, Received]:
        """See `Origin`."""
        try:
            path = self.find(spec)
        except SourceFailed:
            with _reading(self.path):
                whole = in_folder(self.path, self.zipped) if self.zipped else None
            if not self.zipped or not whole:
                raise
            return str(whole), _out_of(whole, self.zipped, spec, part)
        return str(path), _copy(path, spec, part)


@dataclass(frozen=True)
class Arrived:
    """A set of archives that has arrived, in a store elsewhere."""

    arrivals: Arrivals
    arrival: str

    @property
    def where(self) -> str:
        """See `Origin`."""
        return self.arrivals.where(self.arrival)

    def deliver(
        self, spec: ArchiveSpec, part: PartialFile, policy: DownloadPolicy, deadline: float
    ) -> tuple[str, Received]:
        """See `Origin`."""
        try:
            path = self.arrivals.fetched(self.arrival, spec.role)
        except FileNotFoundError:
            raise SourceFailed("the set is no longer there") from None
        except DigestDiffers as error:
            raise SourceFailed(f"it is not what arrived: {error}", refused=DigestMismatch) from error
        return f"{self.where}/{path.name}", _copy(path, spec, part)


@dataclass(frozen=True)
class EmbeddedSource:
    """Data shipped with a library, written as archives into the store's inbox first."""

    store: Store
    dataset: Dataset

    @property
    def where(self) -> str:
        """See `Origin`."""
        return EMBEDDED

    def find(self, spec: ArchiveSpec) -> Path:
        """Return the archive's file, writing it first if it is missing or wrong."""
        inbox = self.store.inbox(self.dataset.name)
        lock = self.store.dataset(self.dataset.name) / "locks" / "inbox.lock"
        # The first process to get the lock writes all archives.
        with store_errors(self.store.root), locked(lock):
            path = inbox / spec.file
            if path.is_file() and not _matches(spec, path):
                path.unlink()
            embedded.write(self.dataset, inbox)
        return path

    def deliver(
        self, spec: ArchiveSpec, part: PartialFile, policy: DownloadPolicy, deadline: float
    ) -> tuple[str, Received]:
        """See `Origin`."""
        return EMBEDDED, _copy(self.find(spec), spec, part)


@dataclass(frozen=True)
class Web:
    """One http(s) address."""

    url: str

    @property
    def where(self) -> str:
        """See `Origin`."""
        return redacted(self.url)

    def deliver(
        self, spec: ArchiveSpec, part: PartialFile, policy: DownloadPolicy, deadline: float
    ) -> tuple[str, Received]:
        """See `Origin`."""
        check = partial(check_archive, spec, part.path)
        received = download(self.url, part, network_limit(spec), check, policy, deadline)
        return self.where, received


@dataclass(frozen=True)
class ZippedWeb:
    """The ZIP file of the archives, at one http(s) address."""

    store: Store
    zipped: ZipSpec
    url: str

    @property
    def where(self) -> str:
        """See `Origin`."""
        return redacted(self.url)

    def deliver(
        self, spec: ArchiveSpec, part: PartialFile, policy: DownloadPolicy, deadline: float
    ) -> tuple[str, Received]:
        """See `Origin`. The time limit is that of the ZIP file, whoever downloads it."""
        kept = KeptZip(self.store, self.zipped, self.url, partial(_check_zip, self.zipped))
        with kept.opened(policy) as stream:
            try:
                return self.where, _member(stream, self.zipped, spec, part)
            except SourceFailed:
                # What has been in the store for long may be damaged.
                if not kept.discarded(stream):
                    raise
        with kept.opened(policy) as stream:
            return self.where, _member(stream, self.zipped, spec, part)


def origins_of(store: Store, dataset: Dataset, spec: ArchiveSpec, source: str | None) -> list[Origin]:
    """Return the places to look for an archive, in order, without opening any.

    A digest ensures that each place gives the same file. An archive without a digest is only looked for in the first
    place: another could have different data, with labels that do not belong to the images.

    Raises:
        ConfigError: the user's `source` is not a valid source.
    """
    origins: list[Origin] = _source_origins(store, dataset, spec, source) if source else []
    if dataset.source:
        origins.append(Folder(dataset.source, dataset.zipped))
    if dataset.embedded:
        origins.append(EmbeddedSource(store, dataset))
    if not spec.pinned:
        return origins[:1]
    zipped = dataset.zipped
    in_zip = [ZippedWeb(store, zipped, url) for url in zipped.mirrors] if zipped else []
    return [*origins, *(Web(url) for url in spec.mirrors), *in_zip]


def check_source(source: str) -> None:
    """Check a source given as a run parameter, before anything starts.

    Prefect stores and shows the parameters of all runs, so an address among them must not contain credentials.

    Raises:
        ConfigError: it is not a valid source, or may contain a secret.
    """
    _place(source)
    if not re.match(OPEN_SOURCE, source):
        raise ConfigError(
            "--source: expected an address without user, password, query and fragment (no @, ? or #), because Prefect "
            f"keeps and shows the parameters of a run; found one of them after {redacted(source)}; give the whole "
            "address in the environment variable IDXFLOW_SOURCE instead"
        )


def _place(source: str) -> Folder | SplitResult:
    """Parse `source` as a folder or an http(s) address."""
    if "\0" in source:
        raise ConfigError("--source: expected a folder or an address; found a text with a NUL character; remove it")
    if not _ADDRESS.match(source):
        return Folder(Path(source).expanduser().absolute())
    try:
        parts = urlsplit(source)
        network = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise _unusable(source) from None
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Folder(Path(unquote(parts.path)).absolute())
    if not network:
        raise _unusable(source)
    return parts


def _source_origins(store: Store, dataset: Dataset, spec: ArchiveSpec, source: str) -> list[Origin]:
    """Turn the user's source into places to look: for the archive, and for the ZIP file that it is published in."""
    arrivals, last = Arrivals(store, dataset.name), source.rpartition("/")[2]
    if is_address(source) and source == arrivals.where(last):
        return [Arrived(arrivals, last)]
    parts = _place(source)
    if isinstance(parts, Folder):
        return [Folder(parts.path, dataset.zipped)]
    if not spec.pinned:
        raise ConfigError(
            f"{dataset.manifest}: expected archives.{spec.role}.sha256 because {spec.file} would be fetched over the "
            f"network from {redacted(source)}; found none; add it, or give a folder as --source"
        )
    origins: list[Origin] = [Web(_joined(parts, spec.file))]
    if dataset.zipped:
        origins.append(ZippedWeb(store, dataset.zipped, _joined(parts, dataset.zipped.file)))
    return origins


def _joined(parts: SplitResult, name: str) -> str:
    """Return the address of a file below an address."""
    path = f"{parts.path.rstrip('/')}/{quote(name)}"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _unusable(source: str) -> ConfigError:
    return ConfigError(
        f"--source: expected a folder, a file: URL of one, or an http(s) address; found {redacted(source)!r}; "
        "give one of these"
    )


def check_archive(spec: ArchiveSpec, path: Path, received: Received) -> None:
    """Accept the received file at `path` if its SHA-256, or that of its payload, is the published one.

    Raises:
        SourceFailed: neither is; the message says what was found.
    """
    if received.sha256 == spec.sha256:
        return
    problem = ""
    if spec.payload_sha256:
        try:
            if payload_sha256(path, spec.payload_bytes or DEFAULT_LIMIT) == spec.payload_sha256:
                return
        except FormatError as error:
            problem = str(error)
    short = spec.bytes is not None and received.size_bytes < spec.bytes
    hint = _published_as(path, received) or problem or _hint(path, received)
    if not hint and short:
        hint = "a complete file, but another one" if _is_whole(path) else "is it cut short?"
    raise SourceFailed(
        f"found {received.sha256[:12]}…, {received.size_bytes:,} bytes" + (f" ({hint})" if hint else ""),
        refused=DigestMismatch,
        retryable=short and not received.framed,
    )


def _published_as(path: Path, received: Received) -> str:
    """Return the name of the other catalog archive that this file is, recompressed or not; empty if none."""
    digests = {received.sha256}
    with suppress(FormatError):
        digests.add(payload_sha256(path, INSPECTED))
    for dataset in map(catalog.find, catalog.names()):
        for spec in dataset.archives:
            if digests & {spec.sha256, spec.payload_sha256}:
                return f"it is {spec.file} of {dataset.name}"
    return ""


def _is_whole(path: Path) -> bool:
    """Tell whether a file is a complete gzip or IDX file with any content."""
    try:
        with open_regular(path) as stream:
            is_gzip = stream.read(2) == GZIP_MAGIC
        if is_gzip:
            payload_sha256(path, INSPECTED)
        else:
            with idx.Reader(path, path.name) as reader:
                deque(reader.blocks(max(1, BLOCK // max(1, reader.header.row_bytes))), maxlen=0)
    except (FormatError, OSError):
        return False
    return True


def payload_sha256(path: Path, limit: int) -> str:
    """Return the SHA-256 of a gzip file's content, with all its members, or of the file itself if it is not gzip.

    Memory does not grow with the payload, and at most `limit` bytes of it (plus one block) are inflated.

    Raises:
        FormatError: the gzip stream is truncated, damaged, has trailing data or holds more than `limit` bytes.
    """
    with open_regular(path) as stream:
        if stream.read(2) != GZIP_MAGIC:
            return sha256_of(path)
        stream.seek(0)
        digest, size = hashlib.sha256(), 0
        for data in _inflated(stream):
            digest.update(data)
            size += len(data)
            if size > limit:
                raise FormatError(f"it holds more than {limit:,} bytes")
    return digest.hexdigest()


def network_limit(spec: ArchiveSpec) -> int:
    """Return the maximum number of bytes to read over the network.

    This is the published size, or twice that plus 1 MiB if the payload's digest permits a recompressed file.
    """
    if spec.payload_sha256:
        size = 2 * spec.bytes if spec.bytes else spec.payload_bytes
        return size + (1 << 20) if size else DEFAULT_LIMIT
    return spec.bytes or DEFAULT_LIMIT


def _inflated(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the inflated members of a gzip file in order, in pieces of at most `BLOCK` bytes."""
    pending = stream.read(BLOCK)
    while pending:
        inflate = zlib.decompressobj(wbits=31)
        while not inflate.eof:
            pending = pending or stream.read(BLOCK)
            if not pending:
                raise FormatError("its gzip stream is cut short")
            try:
                yield inflate.decompress(pending, BLOCK)
            except zlib.error:
                raise FormatError("its gzip stream is damaged") from None
            pending = inflate.unconsumed_tail
        pending = inflate.unused_data or stream.read(BLOCK)
        if len(pending) < len(GZIP_MAGIC):
            pending += stream.read(BLOCK)
        if pending and not pending.startswith(GZIP_MAGIC):
            raise FormatError("there is more after its gzip stream")


def measured(path: Path) -> Received:
    """Return size and SHA-256 of a local file.

    Raises:
        SourceFailed: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    for block in _blocks(path):
        digest.update(block)
        size += len(block)
    return Received(size, digest.hexdigest())


def _matches(spec: ArchiveSpec, path: Path) -> bool:
    if not spec.pinned:
        return True
    try:
        check_archive(spec, path, measured(path))
    except SourceFailed:
        return False
    return True


def _member(stream: BinaryIO, zipped: ZipSpec, spec: ArchiveSpec, part: PartialFile) -> Received:
    """Read an archive out of an open ZIP file into `part`, and check it."""
    received = take_out(stream, zipped.member(spec), part, network_limit(spec))
    check_archive(spec, part.path, received)
    return received


def _check_zip(zipped: ZipSpec, path: Path, received: Received) -> None:
    """Accept a downloaded ZIP file if it is the published one.

    Raises:
        SourceFailed: it is not; the message says what was expected and found.
    """
    try:
        check_archive(zipped.itself, path, received)
    except SourceFailed as failure:
        size = f" of {zipped.bytes:,} bytes" if zipped.bytes else ""
        raise SourceFailed(
            f"expected the ZIP file with SHA-256 {zipped.sha256[:12]}…{size}; {failure}",
            refused=failure.refused,
            retryable=failure.retryable,
        ) from failure


def _out_of(path: Path, zipped: ZipSpec, spec: ArchiveSpec, part: PartialFile) -> Received:
    """Read an archive out of the user's ZIP file. Its own digest decides, so that of the whole is not needed."""
    with _reading(path):
        stream = open_regular(path)
    with stream:
        try:
            return _member(stream, zipped, spec, part)
        except SourceFailed as failure:
            raise SourceFailed(f"{path.name}: {failure}", refused=failure.refused) from failure


def _copy(path: Path, spec: ArchiveSpec, part: PartialFile) -> Received:
    """Copy a local file into `part`, and check the copy."""
    limit = max(network_limit(spec), spec.payload_bytes or 0)
    with _reading(path):
        size = path.stat().st_size
    if size > limit:
        raise too_large(limit, size)
    part.clear()
    received = part.fill(_blocks(path), limit, size)
    check_archive(spec, part.path, received)
    return received


def _blocks(path: Path) -> Iterator[bytes]:
    with _reading(path), open_regular(path) as stream:
        while block := stream.read(BLOCK):
            yield block


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Report errors while reading a source as failures of the source, not of the store."""
    try:
        yield
    except OSError as error:
        raise SourceFailed(f"{path.name} cannot be read ({error.strerror})") from error


def file_names(spec: ArchiveSpec) -> list[str]:
    """Return the names that an archive may have in a folder.

    These are the declared name, that of the decompressed file, and both in the older form `train-images.idx3-ubyte`.
    """
    names = [spec.file, spec.file.removesuffix(".gz")]
    names += [re.sub(r"-(?=idx\d-)", ".", name) for name in names]
    return list(dict.fromkeys(names))


def _hint(path: Path, received: Received) -> str:
    with path.open("rb") as stream:
        start = stream.read(512).lstrip(b"\xef\xbb\xbf \r\n\t")
    if start.startswith(b"<"):
        return "a web page; does the address lead elsewhere, or to a log-in?"
    if received.encoding not in ("", "identity"):
        return f"the server encoded it: Content-Encoding {received.encoding[:20]}"
    return ""
