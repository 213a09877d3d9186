"""Objects in object storage: S3 and servers that speak its protocol, Google Cloud Storage, Azure Blob Storage.

`create` needs the server to refuse a second object of one key (`If-None-Match: *`); nothing else is conditional.

An answer can be lost after the server has done the work, and a repeated `create` then meets its own object. So each
object carries a random nonce in its metadata, and `create` reads back what is there. On a server that drops
metadata the bytes decide: writers of equal bytes then all hear that they wrote them. Every number of a decision is won
with bytes that name the run, so there it makes no difference.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

import obstore
import obstore.store
from obstore.exceptions import BaseError

from storage.errors import StoreError
from storage.files import WAITING, open_regular
from storage.objects.address import Address, server_of
from storage.objects.failures import TRANSIENT, Cause, Failure, read, refusal
from storage.objects.protocol import Found, Listing, always
from storage.runtime import cancellation, interruptible, timings

_T = TypeVar("_T")

# Letters only: Azure takes nothing else in the name of metadata.
_NONCE = "idxflownonce"
_NOW, _PROBE = ".now", ".probe"
"""Folders of objects that exist for a moment."""
_CONNECT = timedelta(seconds=10)
_SILENCE = timedelta(seconds=30)
# Counted from the beginning of a request, also while the body is still being sent: 4 parts of 8 MiB in this time need
# an uplink of 2 Mbit/s.
_SILENCE_OF_MANY = timedelta(seconds=120)
# Of a whole request; longer downloads go on where it ended.
_REQUEST = timedelta(hours=1)
_PART = 8 << 20
_PARTS = 9_000
"""S3 allows 10,000."""
_AT_ONCE = 4
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_SAID_AFTER = 3
"""Tries after the first that fail before people hear of it: less than a second."""
_PIECE = 1 << 20
_PAGE = 1000
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".gz": "application/gzip",
    ".zip": "application/zip",
}
_log = logging.getLogger(__name__)
# The threads of the library do not survive a fork, and what a child does with them would damage the parent's.
_user: int | None = None


class _Use(Enum):
    """What a client is for."""

    ONE = auto()
    """Operations that are one request."""
    MANY = auto()
    """Operations that can be many."""
    EACH = auto()
    """Removing one object by a request of its own, not by that for several."""


@dataclass(frozen=True)
class Patience:
    """How often, and for how long, a request is made again."""

    tries: int = 8
    seconds: float = 120
    """No try begins later than this after the first one has failed."""
    pause: float = 0.1
    """Seconds before the second try; each further pause is twice as long, up to 5 s, and somewhat random."""

    def waits(self) -> Iterator[float]:
        """Yield the pauses between the tries, each when the one before it has failed."""
        end = time.monotonic() + self.seconds
        for number in range(self.tries - 1):
            wait = min(self.pause * 2**number, 5) * random.uniform(0.5, 1)
            if time.monotonic() + wait > end:
                return
            yield wait


class Cloud:
    """The objects below an address. Threads can share it; it sends nothing until it is used."""

    def __init__(self, address: Address, patience: Patience | None = None) -> None:
        self.location = address
        self.patience = patience or Patience()
        self.requests: Counter[str] = Counter()
        """Requests by kind (get, put, create, upload, head, list, delete), and `bytes in`, `bytes out`.

        An upload in parts counts as one."""
        self._counting = threading.Lock()
        self._opening = threading.Lock()
        self._answered = False
        self._clients: dict[_Use, Any] = {}

    @property
    def address(self) -> str:
        return str(self.location)

    def where(self, key: str) -> str:
        return self.location.where(key)

    def get(self, key: str, most: int | None = None) -> bytes:
        if most is not None:
            return self.range(key, 0, most)
        return self._read(key)[0]

    def range(self, key: str, start: int, stop: int) -> bytes:
        # A range without bytes is none in HTTP; one byte shows whether the object exists.
        end = max(stop, start + 1)

        def part(store: Any) -> bytes:
            try:
                return bytes(obstore.get_range(store, key, start=start, end=end))
            except BaseError as error:
                if read(error).cause is Cause.BEYOND:
                    return b""
                raise

        data = self._tried("get", key, part)
        self._count("bytes in", len(data))
        return data[: max(stop - start, 0)]

    def create(self, key: str, data: bytes) -> bool:
        nonce, waits = secrets.token_hex(16), self.patience.waits()
        while True:
            if self._created(key, data, nonce):
                return True
            # Refused for what is there: the own object of an earlier try, or another's. Or for a conflict of two, of
            # which none may have won (409), and the library does not tell one from the other.
            with suppress(FileNotFoundError):
                kept, its = self._read(key)
                return kept == data and its in (nonce, "")
            if (wait := next(waits, None)) is None:
                raise refusal(Failure(Cause.EXISTS), self.location, "create", self.where(key))
            cancellation.sleep(wait)

    def _created(self, key: str, data: bytes, nonce: str) -> bool:
        def put(store: Any) -> bool:
            attributes = _attributes(key, nonce)
            try:
                obstore.put(store, key, data, mode="create", use_multipart=False, attributes=attributes)
            except BaseError as error:
                if read(error).cause is Cause.EXISTS:
                    return False
                raise
            return True

        self._count("bytes out", len(data))
        return self._tried("create", key, put)

    def put(self, key: str, data: bytes) -> None:
        attributes = _attributes(key, secrets.token_hex(16))
        self._count("bytes out", len(data))
        self._tried("put", key, lambda store: obstore.put(store, key, data, use_multipart=False, attributes=attributes))

    def upload(self, key: str, file: Path) -> None:
        attributes = _attributes(key, secrets.token_hex(16))
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            part = max(_PART, -(-size // _PARTS))

            def send(store: Any) -> None:
                stream.seek(0)
                obstore.put(
                    store,
                    key,
                    stream,
                    attributes=attributes,
                    use_multipart=size > part,
                    chunk_size=part,
                    max_concurrency=_AT_ONCE,
                )

            self._count("bytes out", size)
            self._tried("upload", key, send)

    def download(self, key: str, file: Path) -> None:
        with file.open("xb") as stream:
            try:
                download = _Download(key, stream)
                while not self._tried("get", key, download.advance):
                    if download.begun > self.patience.tries:
                        raise refusal(Failure(Cause.EXISTS), self.location, "read", self.where(key))
            except BaseException:
                file.unlink()
                raise
        self._count("bytes in", download.size)

    def list(self, folder: str) -> Listing:
        found = self._tried("list", folder, lambda store: obstore.list_with_delimiter(store, folder or None))
        self._count_pages(len(found["objects"]) + len(found["common_prefixes"]))
        objects = (_found(meta) for meta in found["objects"])
        names = (path.rpartition("/")[2] for path in found["common_prefixes"])
        return Listing(
            tuple(sorted((found for found in objects if _is_below(found.key, folder)), key=lambda found: found.name)),
            tuple(sorted(name for name in names if not name.startswith("."))),
        )

    def walk(self, folder: str) -> Iterator[Found]:
        objects = self._everything(folder)
        folders = {parent for found in objects for parent in _folders(found.key)}
        # An empty object `m/`, by which the web pages of clouds keep a folder, comes here as `m`.
        real = (found for found in objects if found.size or found.key not in folders)
        # Not every kind of bucket lists in order.
        yield from sorted((found for found in real if _is_below(found.key, folder)), key=lambda found: found.key)

    def _everything(self, folder: str) -> Sequence[Found]:
        def everything(store: Any) -> list[Found]:
            pages = obstore.list(store, folder or None, chunk_size=_PAGE)
            return [_found(meta) for page in pages for meta in page]

        objects = self._tried("list", folder, everything)
        self._count_pages(len(objects))
        return objects

    def delete(self, keys: Iterable[str], check: Callable[[], None] = always) -> None:
        rest = iter(keys)
        while batch := [*islice(rest, _PAGE)]:
            # Of some stores one missing object ends it all, and some servers do not know the request for several.
            if not self._deleted_together(batch, check):
                for key in batch:
                    with suppress(FileNotFoundError):
                        self._tried("delete", key, partial(_delete, key, check), _Use.EACH)

    def _deleted_together(self, keys: Sequence[str], check: Callable[[], None]) -> bool:
        try:
            self._tried("delete", keys[0], partial(_delete, keys, check))
        except (FileNotFoundError, StoreError):
            return False
        return True

    def hidden(self) -> tuple[Found, ...]:
        return tuple(found for folder in (_NOW, _PROBE) for found in self._everything(folder))

    def now(self) -> float:
        # A new object has the time of the store.
        while True:
            key = f"{_NOW}/{secrets.token_hex(8)}"
            self.put(key, b"")
            # If this process was paused meanwhile, others may have taken the object for one that was left.
            with suppress(FileNotFoundError):
                try:
                    return self._head(key).timestamp()
                finally:
                    self.delete([key])

    def age(self, key: str) -> float | None:
        # The new object is written first, and shows also whether there is a bucket: the answer to `head` has no body
        # that tells a missing object from a missing bucket.
        now = self.now()
        try:
            return max(now - self._head(key).timestamp(), 0)
        except FileNotFoundError:
            return None

    def probe(self) -> None:
        folder = f"{_PROBE}/{secrets.token_hex(8)}"
        key = f"{folder}/object"
        try:
            first, second = self.create(key, b"1"), self.create(key, b"2")
            kept = self.get(key)
            if (first, second, kept) != (True, False, b"1"):
                raise StoreError(
                    f"expected object storage that creates an object only if there is none at {self.address}; found a "
                    "server that ignores If-None-Match and replaced one; update the server, or choose another store "
                    "with --store"
                )
            listed = [found.key for found in self.list(folder).objects]
        except BaseException:
            # A failure to remove it would hide why.
            with suppress(FileNotFoundError, StoreError):
                self.delete([key])
            raise
        self.delete([key])
        left = [found.key for found in self.list(folder).objects]
        if listed != [key] or left:
            raise StoreError(
                f"expected object storage that lists each object from its creation to its removal at {self.address}; "
                f"found {len(listed)} of 1 after the creation and {len(left)} of 0 after the removal; choose another "
                "store with --store"
            )

    def _read(self, key: str) -> tuple[bytes, str]:
        """Return an object and its nonce, which is empty if the server has none."""

        def whole(store: Any) -> tuple[bytes, str]:
            found = obstore.get(store, key)
            return bytes(found.bytes()), found.attributes.get(_NONCE, "")

        data, nonce = self._tried("get", key, whole)
        self._count("bytes in", len(data))
        return data, nonce

    def _head(self, key: str) -> datetime:
        """Return when an object was written."""
        return self._tried("head", key, lambda store: obstore.head(store, key))["last_modified"]

    def _tried(self, kind: str, key: str, call: Callable[[Any], _T], use: _Use | None = None) -> _T:
        """Return what `call` returns for a client, called again while failures may be over a moment later.

        Raises:
            FileNotFoundError: there is no such object.
            StoreError: any other failure.
            Cancelled: the run is being stopped.
        """
        waits = enumerate(self.patience.waits())
        while True:
            cancellation.check()
            self._count(kind)
            client = self._client(use or _USES.get(kind, _Use.ONE))
            try:
                with timings.span("waiting for object storage"):
                    result = interruptible.called(partial(call, client))
            except (BaseError, FileNotFoundError) as error:
                failure = read(error)
            else:
                self._answered = True
                return result
            number, wait = next(waits, (0, None)) if self._may_pass(failure) else (0, None)
            if wait is None:
                # Outside of `except`: the library's own text is not for people, not even in a traceback.
                raise self._error(failure, kind, key)
            if number == _SAID_AFTER:
                found = failure.cause.value
                _log.warning("%s: found %s; trying again", self.location.where(), found, extra=WAITING)
            cancellation.sleep(wait)

    def _may_pass(self, failure: Failure) -> bool:
        # Where an instance has given credentials once, it fails to do so only for a moment.
        return failure.cause in TRANSIENT or (failure.cause is Cause.NO_CREDENTIALS and self._answered)

    def _error(self, failure: Failure, kind: str, key: str) -> StoreError | FileNotFoundError:
        if failure.cause is Cause.MISSING:
            if kind in ("get", "head", "delete"):
                return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.where(key))
            failure = replace(failure, cause=Cause.NO_BUCKET)
        return refusal(failure, self.location, _WORDS[kind], self.where(key))

    def _count(self, kind: str, number: int = 1) -> None:
        with self._counting:
            self.requests[kind] += number
        timings.count(f"{timings.OBJECT_STORAGE}{kind}", number)

    def _count_pages(self, found: int) -> None:
        self._count("list", max(found - 1, 0) // _PAGE)

    def _client(self, use: _Use) -> Any:
        global _user
        if _user not in (None, os.getpid()):
            raise StoreError(
                f"expected to use {self.location.where()} in a process that was started, not forked; the process that "
                "it was forked from has used object storage; start it as a program of its own"
            )
        with self._opening:
            _user = os.getpid()
            if use not in self._clients:
                self._clients[use] = self._opened(use)
            return self._clients[use]

    def _opened(self, use: _Use) -> Any:
        at, of_many = self.location, use is _Use.MANY
        settings: dict[str, Any] = {
            "prefix": at.prefix or None,
            "client_options": {
                "allow_http": server_of(at).startswith("http://"),
                "connect_timeout": _CONNECT,
                "read_timeout": _SILENCE_OF_MANY if of_many else _SILENCE,
                "timeout": _REQUEST,
                "user_agent": "idxflow",
            },
            # One of many requests that make an operation is made again below this class; what is one request, above.
            "retry_config": {
                "max_retries": 3 if of_many else 0,
                "retry_timeout": timedelta(seconds=self.patience.seconds),
            },
        }
        if at.endpoint:
            # The second one, because AWS_ENDPOINT_URL_S3 would win over the first.
            settings |= {"endpoint": at.endpoint, "aws_endpoint_url_s3": at.endpoint}
        if at.region:
            settings["region"] = at.region
        if use is _Use.EACH and at.scheme == "s3":
            settings["disable_bulk_delete"] = True
        _check_keys(at)
        try:
            return _STORES[at.scheme](at.bucket, **settings)
        except (BaseError, ValueError) as error:
            failure = read(error)
        # All that is read so far is the environment.
        if failure.cause is not Cause.NO_CREDENTIALS:
            failure = Failure(Cause.SETTINGS)
        raise refusal(failure, at, "open", at.where())


def _check_keys(at: Address) -> None:
    """Check that the environment has both keys of S3 or none: with one, the library says nothing that helps.

    Raises:
        StoreError: it has one.
    """
    given = [name for name in _KEYS if os.environ.get(name)]
    if at.scheme == "s3" and len(given) == 1:
        (other,) = {*_KEYS} - {*given}
        raise StoreError(
            f"expected {' and '.join(_KEYS)} in the environment, or neither; found only {given[0]}; set {other}, too, "
            f"or remove {given[0]} where the instance has a role"
        )


class _Download:
    """An object on its way into a file; a connection that breaks off does not begin it anew."""

    def __init__(self, key: str, stream: BinaryIO) -> None:
        self.key = key
        self.stream = stream
        self.size = 0
        """Bytes that are in the file."""
        self.begun = 0
        """How often it had to begin anew, because the object was replaced."""
        self.version: str | None = None

    def advance(self, store: Any) -> bool:
        """Fetch the rest, or as much of it as comes; return whether the object is complete.

        Raises:
            BaseError: not one byte came.
        """
        if not self.version:
            self._begin_anew()
        before = self.size
        try:
            complete = self._fetch(store)
        except BaseError as error:
            if read(error).cause in (Cause.CHANGED, Cause.BEYOND) and before:
                self._begin_anew()
                return False
            if read(error).cause not in TRANSIENT or self.size == before:
                raise
            return False
        if not complete and self.size == before:
            self._begin_anew()
        return complete

    def _fetch(self, store: Any) -> bool:
        rest: obstore.GetOptions = {"range": {"offset": self.size}, "if_match": self.version}
        found = obstore.get(store, self.key, options=rest if self.size else None)
        self.version = found.meta["e_tag"]
        for piece in found.stream(min_chunk_size=_PIECE):
            self.stream.write(piece)
            self.size += len(piece)
        return self.size == found.meta["size"]

    def _begin_anew(self) -> None:
        self.stream.seek(0)
        self.stream.truncate()
        self.begun += 1
        self.size, self.version = 0, None


_STORES: dict[str, Callable[..., Any]] = {
    "s3": obstore.store.S3Store,
    "gs": obstore.store.GCSStore,
    "az": obstore.store.AzureStore,
}
_USES = {"upload": _Use.MANY, "list": _Use.MANY}
_WORDS = {
    "get": "read",
    "head": "read",
    "put": "write",
    "create": "write",
    "upload": "write",
    "list": "list",
    "delete": "remove",
}


def _delete(keys: str | Sequence[str], check: Callable[[], None], store: Any) -> None:
    check()
    obstore.delete(store, keys)


def _attributes(key: str, nonce: str) -> dict[str, str]:
    ending = PurePosixPath(key).suffix.lower()
    return {"Content-Type": _TYPES.get(ending, "application/octet-stream"), _NONCE: nonce}


def _found(meta: Any) -> Found:
    stamp = (meta["size"], meta["e_tag"] or "", meta["last_modified"].isoformat())
    return Found(meta["path"], meta["size"], stamp, meta["last_modified"].timestamp())


def _folders(key: str) -> Iterator[str]:
    while key := key.rpartition("/")[0]:
        yield key


def _is_below(key: str, folder: str) -> bool:
    """Return whether listings of a folder have a key: no part of it below the folder begins with a dot."""
    start = f"{folder}/" if folder else ""
    below = key.removeprefix(start)
    return key.startswith(start) and below != "" and not any(part.startswith(".") for part in below.split("/"))
