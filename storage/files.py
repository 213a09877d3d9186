"""Durable files: written to a temporary file in the same folder, flushed to disk, then renamed or linked into place.

Each JSON file of the store is sealed: its field `sha256` is the digest of the canonical text of the other fields.
This detects a flipped bit or a manual edit even in small files whose digest is recorded nowhere else.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import Any

from storage.errors import ConfigError
from storage.runtime import cancellation
from storage.words import meant

MAX_JSON_BYTES = 16 << 20
"""The largest JSON file that is read. The largest in practice, a run's record, has some ten kilobytes."""
WAITING = {"waiting": True}
"""`extra` of a log line that says what a run is waiting for: the command line shows such a line at once."""
_LOCK_POLL_SECONDS = 0.05
_BLOCK = 1 << 20
_SEAL = "sha256"
_KNOWN_MOST = 10_000
_known: set[bytes] = set()
"""The SHA-256 of texts that this process has found to be sealed.

The check takes several times as long as parsing, and many files are read more than once.
"""
# One slash, because `Path` collapses two.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def canonical(values: Any) -> bytes:
    """Return the canonical JSON text of `values`: sorted keys, no spaces, UTF-8."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class NotRegular(OSError):
    """Raised if a path is not a regular file; `strerror` says what it is."""


def digest_of(values: Any) -> str:
    """Return the SHA-256 of JSON values in their canonical form, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(values)).hexdigest()


def kind_of(path: Path) -> str:
    """Return the kind of file at `path`, following links, such as `a FIFO (named pipe)`."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"a broken link ({error.strerror})" if path.is_symlink() else "nothing"
    return next((words for is_kind, words in _KINDS if is_kind(mode)), "something else")


def alike(path: Path) -> str:
    """Suggest names in the same folder that a missing `path` may have meant, as `storage.words.meant` does."""
    try:
        beside = [] if path.exists() else [entry.name for entry in path.parent.iterdir()]
    except OSError:
        beside = []
    return meant(path.name, (name for name in beside if name.isprintable()))


_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO (named pipe)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_local(what: str, path: str | Path, instead: str = "") -> None:
    """Check that an output location is a local path.

    A URL such as s3://bucket/x is also a valid path: of a folder `s3:` in the current folder.

    Args:
        what: the location, for the message.
        instead: what else can be given.

    Raises:
        ConfigError: it is a URL.
    """
    if match := _ADDRESS.match(str(path)):
        # Leave out the rest, which may contain a password.
        raise ConfigError(
            f"expected {what} to be a path of this machine; found an address, {match[1]}://…; "
            f"give a path instead, such as that of a mounted folder{instead}"
        )


def check_regular(path: Path) -> None:
    """Check that `path` is a regular file, or a link to one, without opening it.

    Opening a FIFO waits for a writer, perhaps forever; a device may never end.

    Raises:
        FileNotFoundError: it does not exist.
        IsADirectoryError: it is a folder.
        NotRegular: it is neither a regular file nor a folder.
        OSError: it cannot be examined.
    """
    _check_mode(path, path.stat().st_mode)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; refuse anything else, even if it replaces the file just before the open.

    Raises:
        OSError: as for `check_regular`, or it cannot be opened.
    """
    check_regular(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_mode(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise NotRegular(errno.EINVAL, f"{kind_of(path)}, not a regular file", str(path))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 lower-case hexadecimal digits."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def copy_file(source: Path, target: Path) -> str:
    """Copy a file durably to a path where none is yet; return the SHA-256 of what was written.

    Raises:
        Cancelled: the run is being stopped.
        OSError: it cannot be read or written.
    """
    digest = hashlib.sha256()
    with open_regular(source) as stream, target.open("xb") as copy:
        while block := stream.read(_BLOCK):
            cancellation.check()
            digest.update(block)
            copy.write(block)
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Flush a file's data, or a folder's names, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, each flushed into its parent."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush(path.parent)


def listed(folder: Path, suffix: str = "") -> list[Path]:
    """Return the paths in a folder that are not hidden, sorted by name; none if the folder does not exist.

    Raises:
        OSError: the folder cannot be read. `Path.glob` would treat it as empty, and needed entries would be removed.
    """
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return []
    return sorted(path for path in paths if not path.name.startswith(".") and path.name.endswith(suffix))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace `path` atomically with `values`, sealed; a reader sees either the old text or the new text."""
    write_bytes(path, sealed(values))


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` with `data`, atomically and durably."""
    temporary = _write_beside(path, data)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def put_json_if_absent(path: Path, values: Mapping[str, Any]) -> bool:
    """Write `values`, sealed, to `path` only if it does not exist; return whether this call wrote it."""
    return create_bytes(path, sealed(values))


def create_bytes(path: Path, data: bytes) -> bool:
    """Write `data` durably to `path` only if it does not exist; return whether this call wrote it."""
    temporary = _write_beside(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)
    return True


def sealed(values: Mapping[str, Any]) -> bytes:
    """Return the JSON text of `values` with its own digest added: the only text that `read_json` accepts."""
    digest = hashlib.sha256(canonical(values)).hexdigest()
    return (json.dumps({**values, _SEAL: digest}, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Return a sealed JSON object without its digest.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large, not a JSON object, or not byte for byte what was sealed.
    """
    with open_regular(path) as stream:
        return unsealed(stream.read(MAX_JSON_BYTES + 1))


def unsealed(data: bytes) -> dict[str, Any]:
    """Return the JSON object that was sealed as `data`.

    Raises:
        ValueError: it is too large, not a JSON object, or not byte for byte what was sealed.
    """
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"expected at most {MAX_JSON_BYTES:,} bytes; it is longer")
    try:
        return _unsealed(data)
    except RecursionError as error:
        raise ValueError("expected a JSON object; it is nested too deeply") from error


def _unsealed(data: bytes) -> dict[str, Any]:
    values = json.loads(data)
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object; found {type(values).__name__}")
    values.pop(_SEAL, None)
    digest = hashlib.sha256(data).digest()
    if digest not in _known:
        if sealed(values) != data:
            raise ValueError("its contents do not have the SHA-256 written in it")
        if len(_known) >= _KNOWN_MOST:
            _known.clear()
        _known.add(digest)
    return values


def _write_beside(path: Path, data: bytes) -> Path:
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


@contextmanager
def locked(
    path: Path, on_wait: Callable[[], None] | None = None, shared: bool = False, passing: bool = False
) -> Iterator[None]:
    """Hold the lock `path` while the block runs; the kernel releases it when the process ends.

    Args:
        path: the lock file; created empty if missing.
        on_wait: called once if the lock is still held by others; it may raise to stop waiting.
        shared: others may hold it shared at the same time.
        passing: remove the file at the end; a process waiting for it creates another.

    Raises:
        Cancelled: the waiting run is being stopped.
    """
    make_folder(path.parent)
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    descriptor = _open_locked(path, mode, on_wait)
    try:
        yield
    finally:
        with suppress(OSError):
            # Remove it while it is locked: a process that has opened it will see that it was removed, and reopen.
            if passing and _is_named(path, descriptor):
                path.unlink()
        with suppress(OSError):
            os.close(descriptor)


def _open_locked(path: Path, mode: int, on_wait: Callable[[], None] | None) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _wait_for(descriptor, mode, on_wait)
            if _is_named(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # The file was removed after it was opened; others lock the file that has this name now.
        os.close(descriptor)


def _wait_for(descriptor: int, mode: int, on_wait: Callable[[], None] | None) -> None:
    # Polling, not a blocking flock, so that Python can deliver Ctrl-C and timeouts between attempts.
    for tries in count():
        if _try_lock(descriptor, mode):
            return
        # Not on the first attempt: a process that only tests whether the lock is free holds it for a moment.
        if tries == 1 and on_wait:
            on_wait()
        cancellation.sleep(_LOCK_POLL_SECONDS)


def _is_named(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
