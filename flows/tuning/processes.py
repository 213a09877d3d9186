"""Processes of this machine that carry out trials, one after the other each: TensorFlow is imported once in each.

    python -m flows.tuning.processes < candidates > answers

They are new programs, not forks, because this process may have threads and libraries that do not survive one. A message
is its length in 8 bytes and a pickle: a `Candidate` in, `Progress` while it works, and in the end its `Done[Trial]` or
the error. A process ends with its standard input, and on Linux with the process that started it.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from flows.service.deaths import by_signal, counter, in_kernel_log, kills_for_memory
from flows.service.processes import end_with_parent
from flows.settings import LOGGERS, ROOT, relax_garbage_collection
from storage.errors import TrainingFailed
from storage.records import Done, Trial
from storage.runtime import progress
from storage.runtime.progress import Progress

if TYPE_CHECKING:
    from tasks.tune import Candidate

_LENGTH = 8

_log = logging.getLogger(__name__)


class TrialProcess:
    """A process that carries out trials. Start it in a thread that lives as long as it should."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C is for this process, which ends the others.
            start_new_session=True,
            preexec_fn=end_with_parent(),
        )
        self._counter = counter(self._process.pid)
        self._kills = kills_for_memory(self._counter)

    def carry_out(self, candidate: Candidate) -> Done[Trial]:
        """Carry out a trial, and tell its progress here.

        Raises:
            Exception: what the trial raises.
            TrainingFailed: the process has died.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None, "a pipe"  # noqa: S101
        assert stdout is not None, "a pipe"  # noqa: S101
        try:
            send(stdin, candidate)
            for message in received(stdout):
                match message:
                    case Progress():
                        progress.advance(replace(message, name=f"trial {candidate.number} {message.name}"))
                    case logging.LogRecord():
                        logging.getLogger(message.name).handle(message)
                    case Exception():
                        raise message
                    case _:
                        return message  # type: ignore[no-any-return]
        except BrokenPipeError:
            pass
        raise TrainingFailed(
            f"expected the process of trial {candidate.number} to finish; it {self._epitaph()}; run the same command "
            "again to go on, with a lower --at-once if memory is short"
        )

    def end(self) -> None:
        """End it: what it is training goes on at its checkpoint when the same trial is carried out again."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                # What is in its buffer has nobody to read it.
                try:
                    stream.close()
                except OSError:
                    _log.debug("a process of trials had ended before")

    def _epitaph(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"ended with exit code {code}"
        memory = kills_for_memory(self._counter) > self._kills or in_kernel_log(self._process.pid)
        return by_signal(-code, memory)


def send(stream: IO[bytes], message: Any) -> None:
    """Write a message."""
    data = pickle.dumps(message)
    stream.write(len(data).to_bytes(_LENGTH, "big") + data)
    stream.flush()


def received(stream: IO[bytes]) -> Iterator[Any]:
    """Yield messages until the stream ends."""
    while len(length := stream.read(_LENGTH)) == _LENGTH:
        yield pickle.loads(stream.read(int.from_bytes(length, "big")))


class _Sender(logging.Handler):
    """Sends warnings to the process that shows them."""

    def __init__(self, answers: IO[bytes]) -> None:
        super().__init__(logging.WARNING)
        self._answers = answers

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        send(self._answers, logging.makeLogRecord({"name": record.name, "levelno": record.levelno, "msg": text}))


def main() -> None:
    """Carry out candidates until standard input ends."""
    # Nothing that a library prints may come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    relax_garbage_collection()
    for name in LOGGERS:
        logging.getLogger(name).addHandler(_Sender(answers))
    from storage.runtime import arithmetic

    # As every process that trains.
    arithmetic.leave_to_the_processor()
    from tasks.tune import tried

    with progress.listening(lambda step: send(answers, step)):
        for candidate in received(sys.stdin.buffer):
            try:
                answer: Any = tried(candidate)
            except Exception as error:
                answer = error
            send(answers, answer)


if __name__ == "__main__":
    main()
