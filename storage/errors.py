"""Every error idxflow raises on purpose, and the exit code each one means.

    IdxflowError                 1  anything else that stopped the run
    ├── ConfigError              2  wrong usage: manifest, parameter, command line
    ├── DataRefused              3  the data is not what was declared
    │   ├── FormatError             not gzip, not IDX, cut, damaged or of another shape
    │   ├── DigestMismatch          complete, but not the published bytes
    │   └── ValidationFailed        well-formed, but breaks the contract of the data set
    ├── SourceUnavailable        4  nothing could be read from any source
    ├── ModelRefused             5  the model is below a floor
    ├── StoreError               1  the store cannot be read or written
    │   └── DamagedEntry            a file of the store is not what its entry says
    ├── TrainingFailed           1  training diverged or cannot start
    ├── ExportFailed             1  an exported model does not give the model's own predictions
    ├── PrefectFailed            1  Prefect itself could not run the flow
    └── OutputFailed             1  standard output takes nothing more

Each message is one sentence: what was expected, what was found, where, what to do.
"""

from __future__ import annotations

import errno
from pathlib import Path

from storage.records import Step, Validation


class IdxflowError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what `idxflow` ends with."""

    exit_code = 1


class ConfigError(IdxflowError):
    """A manifest, a parameter or the command line is wrong; nothing was started."""

    exit_code = 2


class DataRefused(IdxflowError):
    """The data is not what was declared; training never starts."""

    exit_code = 3


class FormatError(DataRefused):
    """A file is not a complete, undamaged gzip or IDX file of the declared shape."""


class DigestMismatch(DataRefused):
    """A file is complete, but its SHA-256 is not the published one."""


class ValidationFailed(DataRefused):
    """A critical expectation about a split does not hold. Carries the verdict, for the report, where there is one."""

    def __init__(self, sentence: str, validation: Validation | None = None, step: Step | None = None) -> None:
        super().__init__(sentence)
        self.validation = validation
        self.step = step


class SourceUnavailable(IdxflowError):
    """No source could be read."""

    exit_code = 4


class ModelRefused(IdxflowError):
    """The trained model is below a floor of its data set; the champion stays."""

    exit_code = 5


class StoreError(IdxflowError):
    """The store cannot be read or written."""


class DamagedEntry(StoreError):
    """A file of the store is missing or is not what its entry says it is."""


class TrainingFailed(IdxflowError):
    """Training diverged, or cannot start from this data and configuration."""


class ExportFailed(IdxflowError):
    """An exported model does not give the model's own predictions; nothing was written."""


class PrefectFailed(IdxflowError):
    """Prefect itself could not run the flow: its server cannot be reached, or does not fit this client."""


class OutputFailed(IdxflowError):
    """What was to be printed could not be written; what the command did apart from that stays done."""


def made_again(file: Path) -> str:
    """Return what to do about a file of a store entry that its own description does not give away as damaged.

    As long as the entry is there, a run uses it again.
    """
    return f"remove {file.parent}, then run again"


def unreadable(path: Path, error: OSError) -> StoreError:
    """Return what to raise about a file of the store that may be whole, but cannot be read now: nothing replaces it."""
    return StoreError(f"expected to read {path}; {error.strerror}; check the disk and the permissions, then run again")


def shortage(error: BaseException) -> str | None:
    """Return in words what the system has refused a process, if that is what `error` is about."""
    text = str(error)
    more = "raise the limit of the address space (ulimit -v), or take a machine with more memory, then run again"
    if isinstance(error, ImportError) and ("failed to map" in text or "annot allocate memory" in text):
        return f"expected memory to load a library; {text}; {more}"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return f"expected memory to go on; the system gave no more; {more}"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"expected to open one more file; {text}; raise the limit of open files (ulimit -n), then run again"
    threads = isinstance(error, RuntimeError) and "can't start new thread" in text
    if threads or isinstance(error, BlockingIOError):
        return (
            f"expected to start a thread or a process; {text}; raise the limit of processes (ulimit -u, TasksMax of a "
            "systemd unit, pids of a container) or of the address space (ulimit -v), then run again"
        )
    return None
