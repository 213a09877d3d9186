"""Retrain several data sets: each run in a process of its own, so that what ends one does not end the others.

The processes are forks, each with its own session: signals are passed on to them by this one, and they end with it.
A run prints what it does to standard error, whose lines appear here with the name of its data set. Its standard output
brings messages, a line of JSON each: its progress, and in the end what `--json` prints.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from flows.interruption import Terminated
from flows.run import Request, not_started
from flows.service.deaths import by_signal, counter, in_kernel_log, kills_for_memory
from flows.service.fork import Fork, show_as
from flows.service.processes import end_with_parent
from storage.datasets.catalog import Dataset
from storage.errors import ConfigError
from storage.objects.address import is_address
from storage.objects.opening import opened
from storage.opening import open_store
from storage.records import CUT_OFF, Failure
from storage.store import store_address
from storage.studies import TUNED
from tasks.ui import progress
from tasks.ui.progress import Progress

NAME = "idxflow-run"
"""What `ps -o comm` shows of a run."""
PROGRESS = "progress"
"""The only key of a message about progress."""
_FOR_TERMINALS = ("FORCE_COLOR", "TTY_COMPATIBLE")
"""Variables that have Rich write colours into the pipe that lines come through."""
_LOOK_SECONDS = 0.1
_BLOCK = 1 << 16


class Screen(Protocol):
    """What shows the runs: `flows.terminal.console.Console`."""

    def say(self, line: str) -> None: ...
    def advance(self, step: Progress) -> None: ...


def by_name(requests: Iterable[Request]) -> dict[str, Request]:
    """Check all requests, before any of them is started; return them by the names of their data sets.

    Raises:
        ConfigError: one of them is wrong, or two are of the same data set.
        StoreError: the store cannot be used.
    """
    named: dict[str, Request] = {}
    for request in requests:
        name = resolved(request).name
        check_store(request)
        if name in named:
            first, second = (each.dataset_file or each.dataset for each in (named[name], request))
            raise ConfigError(
                f"expected each data set once; found {name} twice, as {first} and {second}; leave one of them out"
            )
        named[name] = request
    return named


def resolved(request: Request) -> Dataset:
    """Check a request in a way after which processes can be forked; return its data set.

    Raises:
        ConfigError: it is wrong.
        StoreError: it cannot be read what a study has found.
    """
    if request.profile == TUNED and is_address(store_address(request.store)):
        # Each run finds out itself what a study has found, see `check_store`.
        request = replace(request, profile="default")
    return request.resolve()[0]


def check_store(request: Request) -> None:
    """Check that the store of a request can be used, in a way after which processes can be forked.

    Raises:
        ConfigError, StoreError: it cannot.
    """
    address = store_address(request.store)
    if is_address(address):
        # No more: the library for object storage, once used, cannot be used in a fork. Each run finds out itself.
        opened(address)
    else:
        open_store(address)


class Several:
    """The runs of several data sets.

    Args:
        requests: by the names of their data sets, or of a backfill by their days, in the order in which they start.
        call: carries out a request, as `idxflow run NAME --json` does, in a process of its own; it need not return.
    """

    def __init__(self, requests: Mapping[str, Request], call: Callable[[Request], object], screen: Screen) -> None:
        self.outcomes: dict[str, dict[str, Any] | None] = dict.fromkeys(requests)
        """What `--json` prints of each run; None as long as it has not ended."""
        self._requests, self._call, self._screen = requests, call, screen
        self._running: dict[str, _Run] = {}
        self._since = time.perf_counter()
        self._indent = max(map(len, requests))

    def carry_out(self, at_once: int) -> None:
        """Carry out all runs, at most `at_once` at a time. If this is interrupted, so are the runs."""
        waiting = list(self._requests)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < at_once:
                    self._start(waiting.pop(0))
                self._attend()
        except BaseException as error:
            self._stop(_signal_of(error))
            raise

    @property
    def seconds(self) -> float:
        """Seconds since the start of the first."""
        return round(time.perf_counter() - self._since, 3)

    @property
    def ended(self) -> int:
        """How many have ended by themselves, well or not."""
        return sum(ended is not None and ended["state"] not in CUT_OFF for ended in self.outcomes.values())

    @property
    def error(self) -> dict[str, Any] | None:
        """Why the first run, in the order given, did not end well; None if all did."""
        return next((ended["error"] for ended in self.outcomes.values() if ended and ended["error"]), None)

    @property
    def exit_code(self) -> int:
        """0 if all ended well, otherwise the exit code of the first, in the order given, that did not."""
        return int(self.error["exit_code"]) if self.error else 0

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints (docs/reference/exit-codes.md)."""
        return {"runs": list(self.outcomes.values()), "seconds": self.seconds, "error": self.error}

    def _start(self, name: str) -> None:
        self._running[name] = _Run(partial(self._call, self._requests[name]))
        self._screen.advance(Progress(name, 0, None, ""))

    def _attend(self) -> None:
        """Show what the runs say, as soon as one does, and note which have ended."""
        streams = [stream for run in self._running.values() for stream in (run.lines, run.messages)]
        select.select(streams, [], [], _LOOK_SECONDS)
        for name, run in list(self._running.items()):
            # Asked before, so that all that it has said is read after.
            ended = run.process.poll() is not None
            self._show(name, run)
            if ended:
                self._note_end(name, run)

    def _show(self, name: str, run: _Run) -> None:
        for line in run.lines.read():
            self._screen.say(f"{name:{self._indent}}  {line}")
        for step in run.progress():
            self._screen.advance(replace(step, name=f"{name} {step.name}"))

    def _note_end(self, name: str, run: _Run) -> None:
        del self._running[name]
        run.close()
        for done in (name, *(f"{name} {step}" for step in run.steps)):
            self._screen.advance(Progress(done, 1, 1, ""))
        self.outcomes[name] = run.outcome or _cut_off(name, self._requests[name], run)

    def _stop(self, number: signal.Signals) -> None:
        """Pass a signal on to the runs, and wait for their end; if that is interrupted, kill them."""
        try:
            for run in self._running.values():
                run.send(number)
            while self._running:
                self._attend()
        finally:
            for name, run in list(self._running.items()):
                run.kill()
                self._note_end(name, run)


class _Run:
    """A run in a process of its own, and what it has said."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.failure: dict[str, Any] | None = None
        """Why it ended, if that is all that it said."""
        self.outcome: dict[str, Any] | None = None
        self.steps = set[str]()
        """Those of which it has told its progress."""
        self._since = time.perf_counter()
        self._counter = counter(os.getpid())
        self._kills = kills_for_memory(self._counter)
        lines, their_lines = os.pipe()
        messages, their_messages = os.pipe()
        self.lines, self.messages = _Lines(lines), _Lines(messages)
        speak, ends_with_parent = partial(_speak, their_messages, call), end_with_parent()
        calls = (ends_with_parent, speak) if ends_with_parent else (speak,)
        environment = {name: value for name, value in os.environ.items() if name not in _FOR_TERMINALS}
        try:
            self.process = Fork(calls, environment, Path.cwd(), their_lines, (their_messages,))
        finally:
            os.close(their_lines)
            os.close(their_messages)

    @property
    def seconds(self) -> float:
        return round(time.perf_counter() - self._since, 3)

    def progress(self) -> Iterator[Progress]:
        """Yield the progress that it has told since the last call, and keep how it ended."""
        for line in self.messages.read():
            message = _message(line)
            if PROGRESS in message:
                step = Progress(**message[PROGRESS])
                self.steps.add(step.name)
                yield step
            elif "state" in message:
                self.outcome = message
            elif "error" in message:
                self.failure = message["error"]

    def epitaph(self) -> str:
        """Return how the process ended, if it reported no outcome."""
        code = self.process.returncode or 0
        if code >= 0:
            return f"ended with exit code {code}"
        memory = kills_for_memory(self._counter) > self._kills or in_kernel_log(self.process.pid)
        return by_signal(-code, memory)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.process.poll() is None:
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Kill its whole session."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Close what it was read from."""
        self.lines.close()
        self.messages.close()


class _Lines:
    """The lines that arrive through a pipe, read without waiting."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor, self._rest = descriptor, b""

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> list[str]:
        """Return the lines that are complete."""
        with suppress(BlockingIOError):
            while block := os.read(self._descriptor, _BLOCK):
                self._rest += block
        *lines, self._rest = self._rest.split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def close(self) -> None:
        os.close(self._descriptor)


def _speak(messages: int, call: Callable[[], object]) -> None:
    """Make `call` in a new process, with messages as its standard output, and its progress among them."""
    # Until the command has its own handler, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    show_as(NAME)
    os.dup2(messages, 1)
    os.close(messages)
    with progress.listening(_tell):
        call()


def _tell(step: Progress) -> None:
    # One call, shorter than what a pipe takes at once, so that messages of several threads do not mix (pipe(7)).
    with suppress(BrokenPipeError):
        os.write(1, f"{json.dumps({PROGRESS: asdict(step)})}\n".encode())


def _message(line: str) -> dict[str, Any]:
    """Return a message; an empty one for a line that a library has printed."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _cut_off(name: str, request: Request, run: _Run) -> dict[str, Any]:
    """Return the outcome of a run that did not come to one: it was stopped, or its process died."""
    if run.failure:
        failure = Failure(**run.failure)
    else:
        again = request.command("run")
        sentence = f"its process {run.process.pid} {run.epitaph()}; run it again to resume: {again}"
        failure = Failure("Crashed", sentence, 1)
    kind = failure.kind.lower()
    outcome = not_started(request, kind if kind in CUT_OFF else "failed", failure.sentence)
    if name != request.as_of:
        # It is that of the data set; otherwise the day of a backfill.
        outcome = replace(outcome, dataset=name)
    return replace(outcome, seconds=run.seconds, error=failure).to_json()


def _signal_of(error: BaseException) -> signal.Signals:
    """Return the signal that ends the runs as `error` ends this process."""
    if isinstance(error, Terminated):
        return signal.Signals(error.args[0])
    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
