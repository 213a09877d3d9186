"""What the command line shows while a flow runs: a line per step, a bar for long work, the end in words."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from flows.settings import LOGGERS
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

    def __enter__(self) -> Self:
        handler = _StepHandler(self._say_step, self._say_warning)
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
        """Run `call`, which returns the outcome of a flow, and print how it ended."""
        if "PREFECT_API_URL" not in os.environ:
            self._terminal.print("starting Prefect for this run (the first time takes longest)", style="dim")
        outcome = call()
        self._bars.stop()
        self._say_end(outcome)
        return outcome

    def _say_step(self, step: Step) -> None:
        how = "reused" if step.reused else step.reason
        line = Text(f"{step.name:<21} {step.summary:<66} {step.seconds:7.2f} s  ")
        line.append(how, style="dim" if step.reused else "cyan")
        self._terminal.print(line)

    def _say_warning(self, message: str) -> None:
        self._terminal.print(Text(message, style="yellow"))

    def _say_end(self, outcome: dict[str, Any]) -> None:
        if outcome["error"]:
            Terminal(stderr=True, highlight=False, soft_wrap=True).print(
                Text(f"idxflow: {outcome['error']['sentence']}", style="red")
            )
        else:
            self._terminal.print(Text(outcome["sentence"], style="bold green"))
        if outcome["test_accuracy"] is not None:
            self._terminal.print(
                f"accuracy {outcome['train_accuracy']:.2%} on training, {outcome['test_accuracy']:.2%} on test, "
                f"{outcome['epochs']} epochs, {outcome['seconds']:.1f} s"
            )
        if outcome["report"]:
            self._terminal.print(f"report {outcome['report']}")

    def _advance(self, step: progress.Progress) -> None:
        if step.name not in self._tasks:
            self._tasks[step.name] = self._bars.add_task(step.name, total=step.total, note="")
        finished = step.total is not None and step.done >= step.total
        self._bars.update(self._tasks[step.name], completed=step.done, note=step.note, visible=not finished)


class _StepHandler(logging.Handler):
    """Takes the steps out of the log, and the warnings."""

    def __init__(self, on_step: Callable[[Step], None], on_warning: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._on_step, self._on_warning = on_step, on_warning

    def emit(self, record: logging.LogRecord) -> None:
        """Show a step or a warning; other lines are for the Prefect UI."""
        step = getattr(record, "step", None)
        if isinstance(step, Step):
            self._on_step(step)
        elif record.levelno >= logging.WARNING and not getattr(record, "ending", False):
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
            self._on_warning(text)
