"""Lines, tables and JSON on standard output, remarks on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from flows.terminal import layout
from flows.terminal.text import printable


def print_line(line: str) -> None:
    """Print a line to standard output."""
    sys.stdout.write(printable(line) + "\n")


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print a table to standard output, in one layout for all its rows (`layout.laid_out`)."""
    for line in layout.laid_out([*rows], layout.width(sys.stdout)):
        print_line(line)


def print_json(value: Any) -> int:
    """Print one JSON value to standard output; return the exit code 0."""
    print_utf8(f"{json.dumps(value, ensure_ascii=False)}\n")
    return 0


def print_utf8(text: str) -> None:
    """Print text in a format that is UTF-8 in any locale: JSON (RFC 8259, 8.1) or TOML (1.0.0, "Spec")."""
    stream: Any = sys.stdout
    if (stream.encoding or "utf-8").lower() not in ("utf-8", "utf8"):
        stream.flush()
        stream.reconfigure(encoding="utf-8")
    # A path that is not UTF-8 has parts that only an escape can show.
    stream.write(text.encode(errors="backslashreplace").decode())


def remark(line: str) -> None:
    """Print a line that is not a result to standard error."""
    sys.stderr.write(f"idxflow: {printable(line)}\n")


def remark_older(what: str, shown: int, total: int) -> None:
    """Print to standard error how many older entries a list omits, and how to see them."""
    if shown < total:
        remark(f"{total - shown:,} older {what} are not shown; --limit {total} shows all {total:,}")
