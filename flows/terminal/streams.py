"""Guard the standard streams of a command: lines fit the terminal, and failed writes raise the same errors."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from flows.terminal import layout
from storage.errors import OutputFailed

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What moves the cursor, colours, or erases (ECMA-48, 5.4)."""


class ReaderGone(Exception):
    """The program that read standard output has exited, as `head` does."""


@contextmanager
def guarded_streams() -> Iterator[None]:
    r"""Make standard output raise `OutputFailed` or `ReaderGone` in the block, and standard error never fail.

    A character that the encoding of a stream lacks is written as `\uXXXX`, as JSON and TOML read it.

    After its first failure, a stream goes to /dev/null, so that flushing its buffer, as Python does at exit, does not
    fail again.
    """
    _open_missing()
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, _Guarded(before[0], "standard output"))
    sys.stderr = cast(TextIO, _Guarded(before[1]))
    try:
        yield
    finally:
        # An earlier failure has been reported.
        with suppress(OutputFailed, ReaderGone):
            sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


class _Guarded:
    """A text stream whose failed writes raise `OutputFailed` or `ReaderGone`; without a name, they raise nothing.

    Lines for a terminal are wrapped to fit it.
    """

    def __init__(self, stream: TextIO, name: str = "") -> None:
        self._stream, self._name = stream, name
        self._begins = True
        """Whether the next write begins a line."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        columns = layout.width(self._stream) if self._begins and len(text) > 1 else None
        # A bar ends by erasing itself: the cursor is at the start of a line although no newline was written.
        if visible := _CONTROL.sub("", text):
            self._begins = visible.endswith(("\n", "\r"))
        try:
            fitting = layout.fitted(text, columns) if columns else text
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
            raise OutputFailed(f"cannot write to {self._name}: {error.strerror}; free space, or redirect it") from error


def _escaped(text: str, encoding: str) -> str:
    """Escape the characters of `text` that `encoding` lacks; any useful encoding has those of ASCII."""
    return "".join(letter if _has(encoding, letter) else json.dumps(letter)[1:-1] for letter in text)


def _has(encoding: str, letter: str) -> bool:
    try:
        letter.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _open_missing() -> None:
    """Open /dev/null for each standard stream that is closed (`>&-`).

    Otherwise the next opened file, such as one of the store, would get its descriptor, and what libraries print.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            if getattr(sys, name) is None:
                setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


@contextmanager
def without_log_warnings() -> Iterator[None]:
    """Keep log warnings about unreadable data off the terminal, for commands that report it in a line."""
    logger, handler = logging.getLogger("tasks"), logging.NullHandler()
    logger.addHandler(handler)
    # What TensorFlow imports gives the root logger a handler that prints.
    before, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)
