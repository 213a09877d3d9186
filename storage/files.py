"""Durable files: written beside their place, flushed to disk, then given their name."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_LOCK_POLL_SECONDS = 0.05


def canonical(values: Any) -> bytes:
    """Return the one JSON text of `values`: sorted keys, no spaces, UTF-8."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 lower-case hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have the kernel write a file's data, or a folder's names, to the disk."""
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


def write_json(path: Path, values: Any) -> None:
    """Replace `path` by `values` in one step; a reader sees the old text or the new one, never a part."""
    write_bytes(path, _text(values))


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step, durably."""
    temporary = _write_beside(path, data)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def create_json(path: Path, values: Any) -> bool:
    """Write `values` to `path` only if nothing is there; return whether this call wrote it."""
    temporary = _write_beside(path, _text(values))
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)
    return True


def _text(values: Any) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


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
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock `path` while the block runs; the kernel releases it when the process ends.

    `on_wait` is called once if another process or thread holds the lock.
    """
    make_folder(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _try_lock(descriptor):
            if on_wait:
                on_wait()
            # Polling, not a blocking flock: Python delivers Ctrl-C and time-outs between two tries.
            while not _try_lock(descriptor):
                time.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        with suppress(OSError):
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
