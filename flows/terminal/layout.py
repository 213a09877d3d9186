"""Lay lines out for a terminal: shorten paths, make programs callable from here, and wrap to its width.

Lines for a pipe or a file stay unchanged.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

LEAST = 40
"""Columns below which nothing is wrapped."""
_COLUMN = re.compile(r" *\S+(?: \S+)* {2,}(?=\S)|.{0,20}→ ")
"""The part of a line before its second column, or up to an arrow."""
_CELL = re.compile(r"( *)(\S+(?: \S+)*)")
"""A column of a line, which ends at two or more spaces, and the spaces before it."""
_PROGRAMS = ("idxflow", "prefect")
_TO_COPY = (*_PROGRAMS, "curl")
_TO_TYPE = re.compile(rf"(?<![\w./~-])({'|'.join(_PROGRAMS)}) (?=(?:--)?[a-z])")
_COMMAND = re.compile(rf" +(?:export \S|(?:\S*/)?(?:{'|'.join(_TO_COPY)}) )")
"""The start of a line that is a command to copy."""
_LAST = re.compile(rf"(.*:) ((?:\S*/)?(?:{'|'.join(_TO_COPY)}) (?:(?!; |, or |`).)+)")
"""A line that ends with a command after a colon."""
_WHOLE = ("{", "[", "│", "╭", "╰")
"""First characters of lines of JSON and of boxes."""


class Stream(Protocol):
    """The methods of a text stream that are used here."""

    def isatty(self) -> bool: ...
    def fileno(self) -> int: ...


def width(stream: Stream) -> int | None:
    """Return the columns of a terminal; None if the stream is not a terminal, or too narrow."""
    try:
        if not stream.isatty():
            return None
        columns = int(os.environ.get("COLUMNS") or os.get_terminal_size(stream.fileno()).columns)
    except (OSError, ValueError):
        return None
    return columns if columns >= LEAST else None


def fitted(text: str, columns: int) -> str:
    """Return lines wrapped to `columns`; continuation lines are indented.

    Longer words, such as paths, and lines that are commands stay whole, so that they can be copied; a command that ends
    a line which is too long gets one of its own. JSON, the boxes of `--help` and lines with control characters stay
    unchanged.
    """
    return "\n".join(_fitted(line, columns) for line in text.split("\n"))


def _fitted(line: str, columns: int) -> str:
    if not line.isprintable() or line.startswith(_WHOLE):
        return line
    line = callable_from_here(shortened(line))
    if len(line) <= columns or _COMMAND.match(line):
        return line
    if last := _LAST.fullmatch(line):
        return f"{_fitted(last[1], columns)}\n    {last[2]}"
    column, leading = _COLUMN.match(line), len(line) - len(line.lstrip())
    indent = column.end() if column and column.end() <= columns // 2 else leading or 2
    lines = [line[:leading]]
    for gap, cell in _CELL.findall(line[leading:]):
        before = lines.pop() + gap
        if len(before) + len(cell) > columns >= indent + len(cell):
            # It fits only on a line of its own.
            lines.append(before.rstrip())
            before = " " * indent
        lines += textwrap.wrap(
            before + cell, columns, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        )
    return "\n".join(lines)


def laid_out(rows: Sequence[Sequence[str]], columns: int | None) -> list[str]:
    """Return the lines of a table: a line per row if all rows fit, otherwise a line per cell.

    Args:
        columns: width of the terminal; None: no terminal, a line per row.
    """
    lines = ["  ".join(cells).rstrip() for cells in rows]
    if columns is None or all(len(callable_from_here(shortened(line))) <= columns for line in lines):
        return lines
    return [cell.rstrip() if n == 0 else f"    {cell.strip()}" for cells in rows for n, cell in enumerate(cells)]


def shortened(text: str) -> str:
    """Write absolute paths relative to the working directory, or to the home folder (`~`)."""
    for folder, short in ((_here(), "./"), (os.path.expanduser("~"), "~/")):  # noqa: PTH111
        if folder not in ("", "/", "~"):
            text = re.sub(rf"(?<![\w./~-]){re.escape(folder)}/(?=[^\s/])([^\s/'`\";,)]*/)?", rf"{short}\1", text)
    return re.sub(r"(?<![\w./~-])\./(?=[^\s/]+/)", "", text)


def callable_from_here(text: str) -> str:
    """Write programs that are not on the PATH with their folder."""
    return _TO_TYPE.sub(lambda match: f"{_called(match[1])} ", text)


@cache
def _called(program: str) -> str:
    beside = Path(sys.executable).with_name(program)
    if shutil.which(program) or not beside.is_file():
        return program
    return shortened(str(beside))


def _here() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        # It was removed.
        return ""
