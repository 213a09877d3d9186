"""Files that a command writes where the user says: never over something else, never into the store."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from storage.errors import ConfigError
from storage.files import write_bytes
from storage.store import Store

BEGINNINGS = {
    ".png": (b"\x89png\r\n\x1a\n",),
    ".svg": (b"<svg", b"<?xml"),
    ".html": (b"<!doctype html", b"<html"),
}
"""What a file of each kind begins with, in small letters."""


def destination(option: str, path: Path, kinds: Sequence[str], store: Store, force: bool = False) -> Path:
    """Return the absolute path of a file that may be written.

    Args:
        option: that named it, for the sentence.
        path: as it was typed.
        kinds: the suffixes that are possible.
        store: where nothing may be written.
        force: a file of another kind may be written over.

    Raises:
        ConfigError: it is of another kind, in the store, no file, or there is a file of another kind.
    """
    file = path.expanduser().absolute()
    if file.suffix.lower() not in kinds:
        raise ConfigError(f"expected {option} to end in {' or '.join(kinds)}; found {printable(str(path))}")
    try:
        _check(option, file, store, force)
    except OSError as error:
        raise _unwritable(file, error) from error
    return file


def _check(option: str, file: Path, store: Store, force: bool) -> None:
    suffix, shown = file.suffix.lower(), printable(str(file))
    if not file.parent.is_dir():
        raise ConfigError(f"expected a folder to write {shown} into; there is none; make it, or choose another")
    if file.resolve().is_relative_to(store.root.resolve()):
        raise ConfigError(f"expected {option} outside of the store, which keeps what runs made; {shown} is in it")
    if file.exists() and not file.is_file():
        raise ConfigError(f"expected {option} to be a file; {shown} is something else; choose another name")
    if file.exists() and not force and not _begins_like(file, suffix):
        raise ConfigError(
            f"expected {option} to be a new file, or one that holds {suffix[1:].upper()}; {shown} holds something "
            "else; choose another name, or remove it"
        )


def write(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_bytes(path, data)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"expected a file that can be written at {printable(str(path))}; {error.strerror}; choose another"
    )


def say(line: str) -> None:
    """Print a line to standard output."""
    sys.stdout.write(printable(line) + "\n")


def remark(line: str) -> None:
    """Print a line that is no result to standard error."""
    sys.stderr.write(f"idxflow: {printable(line)}\n")


def printable(text: str) -> str:
    """Keep out of a terminal what would act on it: control characters, lone surrogates, marks of direction."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _begins_like(path: Path, suffix: str) -> bool:
    try:
        with path.open("rb") as stream:
            beginning = stream.read(256).lstrip().lower()
    except OSError:
        return False
    return beginning.startswith(BEGINNINGS[suffix])
