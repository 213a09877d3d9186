"""What a command writes where the user says: files, never over something else or into the store; standard streams."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from flows.commands import terminal
from storage.errors import ConfigError, OutputFailed
from storage.files import check_local, kind_of, open_regular, write_bytes
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
    check_local(option, path)
    file = path.expanduser().absolute()
    if file.suffix.lower() not in kinds:
        raise ConfigError(
            f"expected {option} to end in {' or '.join(kinds)}; found {printable(str(path))}; choose such a name"
        )
    try:
        _check(option, file, store, force)
    except OSError as error:
        raise _unwritable(file, error) from error
    return file


def _check(option: str, file: Path, store: Store, force: bool) -> None:
    suffix, shown = file.suffix.lower(), printable(str(file))
    if not file.parent.is_dir():
        raise ConfigError(
            f"expected a folder to write {shown} into; found {kind_of(file.parent)}; make it, or choose another"
        )
    if file.resolve().is_relative_to(store.root.resolve()):
        raise ConfigError(
            f"expected {option} outside of the store, which keeps what runs made; found {shown}; choose another place"
        )
    if file.exists() and not file.is_file():
        raise ConfigError(f"expected {option} to be a file; {shown} is {kind_of(file)}; choose another name")
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


def say_table(rows: Iterable[Sequence[str]]) -> None:
    """Print a table to standard output, in one layout for all its rows (`terminal.laid_out`)."""
    for line in terminal.laid_out([*rows], terminal.width(sys.stdout)):
        say(line)


def say_json(value: Any) -> int:
    """Print one JSON value to standard output; returns the exit code 0."""
    say_utf8(f"{json.dumps(value, ensure_ascii=False)}\n")
    return 0


def say_utf8(text: str) -> None:
    """Print a text of a format that is UTF-8 in any locale: JSON (RFC 8259, 8.1) or TOML (1.0.0, "Spec")."""
    stream: Any = sys.stdout
    if (stream.encoding or "utf-8").lower() not in ("utf-8", "utf8"):
        stream.flush()
        stream.reconfigure(encoding="utf-8")
    stream.write(text)


def remark(line: str) -> None:
    """Print a line that is no result to standard error."""
    sys.stderr.write(f"idxflow: {printable(line)}\n")


def printable(text: str) -> str:
    """Keep out of a terminal what would act on it: control characters, lone surrogates, marks of direction."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _begins_like(path: Path, suffix: str) -> bool:
    try:
        with open_regular(path) as stream:
            beginning = stream.read(256).lstrip().lower()
    except OSError:
        return False
    return beginning.startswith(BEGINNINGS[suffix])


class ReaderGone(Exception):
    """Whoever read standard output has ended, as `head` does; nobody is left to tell."""


@contextmanager
def guarded_streams() -> Iterator[None]:
    r"""While the block runs, standard output raises `OutputFailed` or `ReaderGone`, and standard error never fails.

    A letter that the encoding of a stream does not have is written as `\uXXXX`, as JSON and TOML read it.

    After its first failure a stream leads to nowhere: neither what is still in its buffer nor Python, which flushes
    it at exit, meets the failure again.
    """
    _open_missing()
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, _Guarded(before[0], "standard output"))
    sys.stderr = cast(TextIO, _Guarded(before[1]))
    try:
        yield
    finally:
        # Where something else failed, that is what was said.
        with suppress(OutputFailed, ReaderGone):
            sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


class _Guarded:
    """A text stream that answers a failed write with `OutputFailed` or `ReaderGone`; or, without a name, not at all.

    What goes to a terminal is made to fit it.
    """

    def __init__(self, stream: TextIO, name: str = "") -> None:
        self._stream, self._name = stream, name
        self._begins = True
        """Whether what is written next begins a line."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        columns = terminal.width(self._stream) if self._begins and len(text) > 1 else None
        self._begins = text.endswith("\n")
        try:
            fitting = terminal.fitted(text, columns) if columns else text
            try:
                self._stream.write(fitting)
            except UnicodeEncodeError:
                self._stream.write(_escaped(fitting, self._stream.encoding))
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        # Not as a BrokenPipeError: Rich ends the process with code 1 on that.
        if self._name and isinstance(error, BrokenPipeError):
            raise ReaderGone from error
        if self._name:
            raise OutputFailed(
                f"expected to write to {self._name}; {error.strerror}; free space there, or redirect it elsewhere"
            ) from error


def _escaped(text: str, encoding: str) -> str:
    """Return `text` in letters of `encoding` only; all that have any use have those of ASCII."""
    return "".join(letter if _has(encoding, letter) else json.dumps(letter)[1:-1] for letter in text)


def _has(encoding: str, letter: str) -> bool:
    try:
        letter.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _open_missing() -> None:
    """Lead to nowhere which of the three standard streams are closed (`>&-`).

    Else the next file that is opened, such as one of the store, gets the number, and what libraries print to it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            if getattr(sys, name) is None:
                setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
