"""A bar for each piece of long work, on a terminal; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from flows.terminal.screen import is_screen
from tasks.ui import progress


class Bars(Progress):
    """The bars of the work that is in progress."""

    def __init__(self, terminal: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), _HowFar())
        super().__init__(*columns, console=terminal, transient=True, disable=not is_screen(terminal))
        self._ids: dict[str, TaskID] = {}

    def follow(self, step: progress.Progress) -> None:
        """Show the progress of one piece of work; its bar disappears when it is finished."""
        if step.name not in self._ids:
            self._ids[step.name] = self.add_task(step.name, total=step.total, note="")
        finished = step.total is not None and step.done >= step.total
        self.update(self._ids[step.name], completed=step.done, note=step.note, visible=not finished)


@contextmanager
def shown() -> Iterator[None]:
    """Show all progress on standard error, if that is a terminal, while the block runs."""
    with Bars(Console(stderr=True)) as bars, progress.listening(bars.follow):
        yield


class _HowFar(ProgressColumn):
    """The percentage done and the time left; without a known total, the elapsed time."""

    def render(self, task: Task) -> Text:
        """Return them as text."""
        if task.total is None:
            return Text(f"{task.elapsed or 0:.0f} s")
        remaining = f" {task.time_remaining:.0f} s left" if task.time_remaining else ""
        return Text(f"{task.percentage:3.0f}% {task.fields['note']}{remaining}")
