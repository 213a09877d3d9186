"""Show a running flow on the command line: a line per step, a bar for long work, and how it ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from flows.settings import LOGGERS
from flows.terminal.bars import Bars
from flows.terminal.layout import laid_out
from flows.terminal.screen import is_screen, moving, styled
from flows.terminal.streams import ReaderGone
from flows.terminal.text import printable
from storage.errors import OutputFailed, PrefectFailed
from storage.outcomes import Outcome
from storage.records import Step
from storage.runtime import timings
from storage.words import counted
from tasks.ui import progress

WIDE = 120
"""Columns that a step needs for one line; in a narrower terminal it takes two."""


class Console:
    """Prints steps to standard output, or to standard error when that is kept for JSON."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._terminal = Terminal(stderr=as_json, highlight=False)
        # The console that draws the bar must also print the lines above it: it removes the bar first.
        self._moving = self._terminal if is_screen(self._terminal) else Terminal(stderr=True)
        self._bars = Bars(self._moving)
        self._stack = ExitStack()
        self._lost: OutputFailed | None = None
        self._ending: Outcome | None = None

    def __enter__(self) -> Self:
        handler = _StepHandler(self._say_step, self._say_wait, self._say_warning, self._keep_ending)
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.setLevel(logging.INFO)
            logger.addHandler(handler)
            self._stack.callback(logger.removeHandler, handler)
        self._stack.enter_context(progress.listening(self.advance))
        self._stack.enter_context(self._bars)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def watch(self, call: Callable[[], Outcome]) -> Outcome:
        """Run `call`, which returns the outcome of a flow, and print how it ended.

        If the server died during the run, the outcome is the one that the run itself logged.

        Raises:
            PrefectFailed: Prefect could not run the flow to its end.
            OutputFailed: a line could not be printed. The run itself finished.
        """
        try:
            outcome = call()
        except PrefectFailed as error:
            # Prefect: untold-ending.
            if self._ending is None:
                raise
            outcome = self._ending
            self._say_warning(
                "the run finished, but the Prefect server could not be reached; its UI may still show the run as "
                f"running: {error}"
            )
        self._bars.stop()
        self._say_end(outcome)
        self.check_printed(f"the run itself finished: {outcome.sentence}")
        return outcome

    def check_printed(self, what: str) -> None:
        """Check that all lines could be printed.

        Args:
            what: was done, whether or not it could be printed.

        Raises:
            OutputFailed: a line was lost.
        """
        if self._lost:
            raise OutputFailed(f"{self._lost}; {what}") from self._lost

    def _print(self, what: RenderableType, whole: bool = True) -> None:
        """Print something. A closed or full output must not end a run."""
        try:
            self._terminal.print(what, soft_wrap=whole)
        except ReaderGone:
            return
        except OutputFailed as error:
            self._lost = error

    def say(self, line: str, style: str = "") -> None:
        """Print a line."""
        self._print(styled(line, self._terminal, style))

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Print a table, in one layout for all its rows (`layout.laid_out`)."""
        self._bars.stop()
        for line in laid_out(rows, self._terminal.width if is_screen(self._terminal) else None):
            self.say(line)

    def _say_step(self, step: Step) -> None:
        how = Text("reused", style="dim") if step.reused else Text(printable(step.reason), style="cyan")
        summary = printable(step.summary)
        if not is_screen(self._terminal) or self._terminal.width >= WIDE:
            self._print(Text.assemble(f"{step.name:<21} {summary:<66} {step.seconds:7.2f} s  ", how))
            return
        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_row(Text(f"{step.name:<21}"), Text(f"{step.seconds:7.2f} s"), how)
        self._print(row, whole=False)
        self._print(Padding(Text(summary, style="dim"), (0, 0, 0, 4), expand=False), whole=False)

    def _keep_ending(self, outcome: Outcome) -> None:
        self._ending = outcome

    def _say_wait(self, message: str) -> None:
        self.say(message, "dim")

    def _say_warning(self, message: str) -> None:
        self.say(message, "yellow")

    def _say_end(self, outcome: Outcome) -> None:
        if outcome.error:
            errors = Terminal(stderr=True, highlight=False, soft_wrap=True)
            errors.print(styled(f"idxflow: {outcome.error.sentence}", errors, "red"))
        else:
            self.say(outcome.sentence, "bold green")
        if outcome.test_accuracy is not None and outcome.train_accuracy is not None:
            # That of several data sets is in their table, as that in JSON without the start of Prefect.
            seconds = "" if self._as_json else f", {timings.age():.1f} s in all"
            self.say(
                f"accuracy {outcome.train_accuracy:.2%} on all training rows, "
                f"{outcome.test_accuracy:.2%} on test, "
                f"{counted(outcome.epochs or 0, 'epoch')}{seconds}"
            )
        for finding in outcome.findings[:1]:
            self.say(f"{finding.sentence} Try: {finding.remedy}", "yellow")
        if outcome.report:
            about = f" of v{outcome.version}" if outcome.state == "unchanged" else ""
            self.say(f"report{about} {outcome.report}")

    @contextmanager
    def waiting(self, what: str) -> Iterator[Callable[[str], None]]:
        """Show a spinner with a text while the block runs; yield a function that changes the text."""
        if self._bars.disable:
            yield lambda _: None
            return
        # A spinner and a bar at the same time would overwrite each other.
        self._bars.stop()
        with moving(self._moving, what) as change:
            yield change
        self._bars.start()

    def advance(self, step: progress.Progress) -> None:
        """Show the progress of a piece of work, as a bar until it is done."""
        self._bars.follow(step)


class _StepHandler(logging.Handler):
    """Picks from the log the steps, what the run waits for, the warnings, and how it ended."""

    def __init__(
        self,
        on_step: Callable[[Step], None],
        on_wait: Callable[[str], None],
        on_warning: Callable[[str], None],
        on_ending: Callable[[Outcome], None],
    ) -> None:
        super().__init__(logging.INFO)
        self._on_step, self._on_wait, self._on_warning, self._on_ending = on_step, on_wait, on_warning, on_ending

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on a step, what the run waits for, a warning, or the end; other lines are for the Prefect UI."""
        step, ending = getattr(record, "step", None), getattr(record, "ending", None)
        if isinstance(step, Step):
            self._on_step(step)
        elif isinstance(ending, Outcome):
            self._on_ending(ending)
        elif getattr(record, "waiting", False):
            self._on_wait(record.getMessage())
        elif record.levelno >= logging.WARNING:
            trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
            for line in (record.getMessage(), *trace.splitlines()):
                self._on_warning(line)
