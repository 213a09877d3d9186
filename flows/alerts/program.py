"""Alerts to a command: it gets the event as JSON on standard input, and what a script needs in its environment."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from flows.alerts.event import Event
from flows.alerts.receiver import NotDelivered
from storage.errors import ConfigError

SECONDS = 30.0
"""How long the command may take for one event; then it and what it started are killed."""


@dataclass(frozen=True)
class Program:
    """A command that is called for each event, without a shell."""

    words: tuple[str, ...]
    """The program's path, and its arguments."""
    kind: ClassVar[str] = "command"

    @property
    def shown(self) -> str:
        return shlex.join(self.words)

    def send(self, event: Event, seconds: float) -> str:
        limit = min(seconds, SECONDS)
        text = json.dumps(event.to_json(), ensure_ascii=False).encode()
        try:
            process = subprocess.Popen(
                self.words,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | _variables(event),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise NotDelivered(f"cannot start {self.words[0]}: {error.strerror}") from None
        try:
            process.communicate(text, timeout=limit)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise NotDelivered(f"{self.words[0]} has not ended within {limit:.2g} s, and was killed") from None
        if process.returncode:
            raise NotDelivered(f"{self.words[0]} ended with {_code(process.returncode)}")
        return ""

    def to_json(self) -> Mapping[str, Any]:
        return asdict(self)


def program(text: str) -> Program:
    """Return the receiver with what was typed, words as a shell would split them.

    Raises:
        ConfigError: there is no such program.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"expected --run to be a command; {error}; correct the quotes") from None
    path = shutil.which(words[0]) if words else None
    if not path:
        raise ConfigError(
            f"expected --run to begin with a program that can be run; found {(words or [''])[0][:80]!r}; give its path"
        )
    return Program((str(Path(path).absolute()), *words[1:]))


def _variables(event: Event) -> dict[str, str]:
    return {
        "IDXFLOW_ALERT_EVENT": event.kind,
        "IDXFLOW_ALERT_DATASET": event.dataset,
        "IDXFLOW_ALERT_ID": event.id,
        "IDXFLOW_ALERT_TITLE": event.title,
        "IDXFLOW_ALERT_TEXT": event.text,
    }


def _code(code: int) -> str:
    return f"the exit code {code}" if code > 0 else f"the signal {signal.Signals(-code).name}"
