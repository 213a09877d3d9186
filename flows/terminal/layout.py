"""Lines as a terminal shows them: short paths, programs as they can be called from here, wrapped to its width.

In a pipe or a file, every line is left as it is.
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
"""What stands before the second column of a line, or after an arrow."""
_CELL = re.compile(r"( *)(\S+(?: \S+)*)")
"""A column of a line, which two spaces or more end, and the spaces before it."""
_PROGRAMS = ("idxflow", "prefect")
_TO_TYPE = re.compile(rf"(?<![\w./~-])({'|'.join(_PROGRAMS)}) (?=(?:--)?[a-z])")
_COMMAND = re.compile(rf" +(?:export \S|(?:\S*/)?(?:{'|'.join(_PROGRAMS)}) )")
"""How a line begins that is a command, to be copied."""
_WHOLE = ("{", "[", "│", "╭", "╰")
"""What lines of JSON and of boxes begin with."""


class Stream(Protocol):
    """As much of a text stream as is asked."""

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

    A longer word, such as a path, stays whole, so that it can be copied, and so does a line that is a command.
    JSON, the boxes of `--help` and lines with control characters are left as they are.
    """
    return "\n".join(_fitted(line, columns) for line in text.split("\n"))


def _fitted(line: str, columns: int) -> str:
    if not line.isprintable() or line.startswith(_WHOLE):
        return line
    line = callable_from_here(shortened(line))
    if len(line) <= columns or _COMMAND.match(line):
        return line
    column, leading = _COLUMN.match(line), len(line) - len(line.lstrip())
    indent = column.end() if column and column.end() <= columns // 2 else leading or 2
    lines = [line[:leading]]
    for gap, cell in _CELL.findall(line[leading:]):
        before = lines.pop() + gap
        if len(before) + len(cell) > columns >= indent + len(cell):
            # It does not fit here, but it does on a line of its own.
            lines.append(before.rstrip())
            before = " " * indent
        lines += textwrap.wrap(
            before + cell, columns, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        )
    return "\n".join(lines)


def laid_out(rows: Sequence[Sequence[str]], columns: int | None) -> list[str]:
    """Return the lines of a table: a line per row if all rows fit, otherwise a line per cell.

    Args:
        columns: of the terminal; None if there is none: a line per row.
    """
    lines = ["  ".join(cells).rstrip() for cells in rows]
    if columns is None or all(len(callable_from_here(shortened(line))) <= columns for line in lines):
        return lines
    return [cell.rstrip() if n == 0 else f"    {cell.strip()}" for cells in rows for n, cell in enumerate(cells)]


def shortened(text: str) -> str:
    """Write absolute paths from the working directory, or from the home (`~`)."""
    for folder, short in ((_here(), "./"), (os.path.expanduser("~"), "~/")):  # noqa: PTH111
        if folder not in ("", "/", "~"):
            text = re.sub(rf"(?<![\w./~-]){re.escape(folder)}/(?=[^\s/])([^\s/'`\";,)]*/)?", rf"{short}\1", text)
    return re.sub(r"(?<![\w./~-])\./(?=[^\s/]+/)", "", text)


def callable_from_here(text: str) -> str:
    """Write programs that are not on the PATH with the folder that they are in."""
    return _TO_TYPE.sub(lambda found: f"{_called(found[1])} ", text)


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
