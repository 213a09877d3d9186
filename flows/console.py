"""What the command line shows while a flow runs: a line per step, a bar for long work, the end in words."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from flows.output import ReaderGone
from flows.settings import LOGGERS
from storage.errors import OutputFailed, PrefectFailed
from storage.records import Step
from tasks import progress


class Console:
    """Prints steps to standard output, or to standard error when that is kept for JSON."""

    def __init__(self, as_json: bool) -> None:
        self._terminal = Terminal(stderr=as_json, highlight=False, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Terminal(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, TaskID] = {}
        self._stack = ExitStack()
        self._lost: OutputFailed | None = None
        self._ending: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        handler = _StepHandler(self._say_step, self._say_wait, self._say_warning, self._keep_ending)
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.setLevel(logging.INFO)
            logger.addHandler(handler)
            self._stack.callback(logger.removeHandler, handler)
        self._stack.enter_context(progress.listening(self._advance))
        self._stack.enter_context(self._bars)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def watch(self, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run `call`, which returns the outcome of a flow, and print how it ended.

        A run that Prefect lost sight of, its server having died, has ended as it says itself.

        Raises:
            PrefectFailed: Prefect could not run the flow to its end.
            OutputFailed: a line could not be printed. The run itself went on to its end.
        """
        try:
            outcome = call()
        except PrefectFailed as error:
            # Prefect: untold-ending.
            if self._ending is None:
                raise
            outcome = self._ending
            self._say_warning(f"this run is over, but Prefect could not be told and may show it as running: {error}")
        self._bars.stop()
        self._say_end(outcome)
        if self._lost:
            raise OutputFailed(f"{self._lost}; the run itself is over: {outcome['sentence']}") from self._lost
        return outcome

    def _print(self, line: Text | str) -> None:
        """Print a line. That nobody reads it, or that there is no room for it, is no reason to end a run."""
        try:
            self._terminal.print(line)
        except ReaderGone:
            return
        except OutputFailed as error:
            self._lost = error

    def _say_step(self, step: Step) -> None:
        how = "reused" if step.reused else step.reason
        line = Text(f"{step.name:<21} {step.summary:<66} {step.seconds:7.2f} s  ")
        line.append(how, style="dim" if step.reused else "cyan")
        self._print(line)

    def _keep_ending(self, outcome: dict[str, Any]) -> None:
        self._ending = outcome

    def _say_wait(self, message: str) -> None:
        self._print(Text(message, style="dim"))

    def _say_warning(self, message: str) -> None:
        self._print(Text(message, style="yellow"))

    def _say_end(self, outcome: dict[str, Any]) -> None:
        if outcome["error"]:
            Terminal(stderr=True, highlight=False, soft_wrap=True).print(
                Text(f"idxflow: {outcome['error']['sentence']}", style="red")
            )
        else:
            self._print(Text(outcome["sentence"], style="bold green"))
        if outcome["test_accuracy"] is not None:
            self._print(
                f"accuracy {outcome['train_accuracy']:.2%} on all training rows, "
                f"{outcome['test_accuracy']:.2%} on test, {outcome['epochs']} epochs, {waited():.1f} s in all"
            )
        if outcome["report"]:
            about = f" of v{outcome['version']}" if outcome["state"] == "unchanged" else ""
            self._print(f"report{about} {outcome['report']}")

    def _advance(self, step: progress.Progress) -> None:
        if step.name not in self._tasks:
            self._tasks[step.name] = self._bars.add_task(step.name, total=step.total, note="")
        finished = step.total is not None and step.done >= step.total
        self._bars.update(self._tasks[step.name], completed=step.done, note=step.note, visible=not finished)


def waited() -> float:
    """Return the seconds since this process was started, imports and the start of a server included (proc(5))."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


class _StepHandler(logging.Handler):
    """Takes the steps out of the log, what the run waits for, the warnings, and how it ended."""

    def __init__(
        self,
        on_step: Callable[[Step], None],
        on_wait: Callable[[str], None],
        on_warning: Callable[[str], None],
        on_ending: Callable[[dict[str, Any]], None],
    ) -> None:
        super().__init__(logging.INFO)
        self._on_step, self._on_wait, self._on_warning, self._on_ending = on_step, on_wait, on_warning, on_ending

    def emit(self, record: logging.LogRecord) -> None:
        """Show a step, what the run waits for, or a warning; other lines are for the Prefect UI."""
        step, ending = getattr(record, "step", None), getattr(record, "ending", None)
        if isinstance(step, Step):
            self._on_step(step)
        elif ending:
            self._on_ending(ending)
        elif getattr(record, "waiting", False):
            self._on_wait(record.getMessage())
        elif record.levelno >= logging.WARNING:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
            self._on_warning(text)
