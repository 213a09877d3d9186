"""Lines that Rich prints to a terminal: wrapped, coloured, or with a spinner while something is waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console as Terminal
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from flows.terminal.layout import fitted
from flows.terminal.text import printable


@contextmanager
def moving(terminal: Terminal, what: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner with the text `what` while the block runs; yield a function that changes the text.

    A pipe or a file gets no spinner. Anything else that the block prints must go through `terminal`.
    """
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=terminal, transient=True, disable=not is_screen(terminal)) as line:
        task = line.add_task(what, total=None)
        yield lambda words: line.update(task, description=words)


def is_screen(terminal: Terminal) -> bool:
    """Return whether this is a real terminal: FORCE_COLOR makes a pipe look like one to Rich."""
    return terminal.is_terminal and terminal.file.isatty()


def styled(line: str, terminal: Terminal, style: str = "") -> Text:
    """Return a line wrapped to fit a terminal, or unchanged for a pipe or a file."""
    line = printable(line)
    return Text(fitted(line, terminal.width) if is_screen(terminal) else line, style=style)
