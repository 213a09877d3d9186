"""Every error idxflow raises on purpose: the exit code it ends with, and what a report says of a run that it ended.

    IdxflowError
    ├── ConfigError
    ├── DataRefused
    │   ├── FormatError
    │   ├── DigestMismatch
    │   └── ValidationFailed
    ├── SourceUnavailable
    ├── ModelRefused
    ├── StoreError
    │   └── DamagedEntry
    ├── TrainingFailed
    ├── ExportFailed
    ├── PrefectFailed
    ├── OutputFailed
    └── CutOff               never raised: how a record names a run that was stopped

Each message is one sentence: what was expected, what was found, where, what to do.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from storage.records import CUT_OFF, Failure, Step, Validation


class IdxflowError(Exception):
    """Base of all errors raised on purpose."""

    exit_code: ClassVar[int] = 1
    """What `idxflow` ends with."""
    meaning: ClassVar[str] = "any other error"
    """Of the exit code, in the help."""
    headline: ClassVar[str] = "an unexpected error"
    """Of the report of a run that it ended."""
    advice: ClassVar[str] = "Look at the log of the run for the details."
    """What that report says to do."""
    refuses: ClassVar[str] = ""
    """`data` or `model`, where the run has refused one; else it failed."""

    @property
    def failure(self) -> Failure:
        """The error as the ledger and `--json` have it."""
        # A file that could not be opened for lack of a descriptor is not damaged.
        cause = self.__cause__ if getattr(self.__cause__, "errno", None) in (errno.EMFILE, errno.ENFILE) else None
        return Failure(type(self).__name__, (cause and shortage(cause)) or str(self), self.exit_code)


class ConfigError(IdxflowError):
    """A manifest, a parameter or the command line is wrong; nothing was started."""

    exit_code = 2
    meaning = "wrong usage or configuration"
    headline = "the configuration cannot be used"
    advice = "Correct the value named above, in the manifest or on the command line, and start the run again."


class DataRefused(IdxflowError):
    """The data is not what was declared; training never starts."""

    exit_code = 3
    meaning = "data refused"
    headline = "the data is not what was declared"
    advice = "Correct the data, or what the manifest declares about it."
    refuses = "data"


class FormatError(DataRefused):
    """A file is not a complete, undamaged gzip or IDX file of the declared shape."""

    headline = "an archive is damaged or has another format"
    advice = "Replace the archive at its source, or correct what the manifest declares about it."


class DigestMismatch(DataRefused):
    """A file is complete, but its SHA-256 is not the published one."""

    headline = "an archive is not the published one"
    advice = "Fetch the archive again from a source you trust; pin new digests only if the publisher changed the file."


class ValidationFailed(DataRefused):
    """A critical expectation about a split does not hold. Carries the verdict, for the report, where there is one."""

    headline = "the data failed its checks"
    advice = "Look at the failed checks and correct the data."

    def __init__(self, sentence: str, validation: Validation | None = None, step: Step | None = None) -> None:
        super().__init__(sentence)
        self.validation = validation
        self.step = step


class SourceUnavailable(IdxflowError):
    """No source could be read."""

    exit_code = 4
    meaning = "no source available"
    headline = "no source could be read"
    advice = "Check the network, or give a folder that holds the archives with --source."


class ModelRefused(IdxflowError):
    """The trained model is below a floor of its data set; the champion stays."""

    exit_code = 5
    meaning = "model below a floor"
    headline = "the model is below a floor"
    advice = (
        "Look at the training curves and the worst classes below; change the training parameters, or lower the "
        "[floors] of the manifest if they are too strict."
    )
    refuses = "model"


class StoreError(IdxflowError):
    """The store cannot be read or written."""

    headline = "the store cannot be used"
    advice = "Do what the message above says, or choose another store with --store."


class DamagedEntry(StoreError):
    """A file of the store is missing or is not what its entry says it is."""

    headline = "a file of the store is damaged"
    advice = "Start the run again: it replaces damaged results. If damage comes back, check the disk."


class TrainingFailed(IdxflowError):
    """Training diverged, or cannot start from this data and configuration."""

    headline = "training did not succeed"
    advice = "Do what the message above says."


class ExportFailed(IdxflowError):
    """An exported model does not give the model's own predictions; nothing was written."""


class PrefectFailed(IdxflowError):
    """Prefect itself could not run the flow: its server cannot be reached, or does not fit this client."""


class OutputFailed(IdxflowError):
    """What was to be printed could not be written; what the command did apart from that stays done."""


class CutOff(IdxflowError):
    """The run was stopped before its end: the kind of its failure is a state of `CUT_OFF`."""

    headline = "the run was cut off"
    advice = "Start the run again. That it was cut off says nothing about the data or the model."


EXIT_CODES: Mapping[int, str] = {
    0: "success",
    **{
        kind.exit_code: kind.meaning
        for kind in (IdxflowError, ConfigError, DataRefused, SourceUnavailable, ModelRefused)
    },
    128 + signal.SIGINT: "interrupted (SIGINT)",
    128 + signal.SIGTERM: "terminated (SIGTERM, SIGHUP)",
}
"""What each exit code means, in short; docs/commands.md says more."""


def error_class(kind: str) -> type[IdxflowError]:
    """Return the class of a failure that a record names (`Failure.kind`); the base for an error nobody expected."""
    if kind.lower() in CUT_OFF:
        return CutOff
    known = globals().get(kind)
    return known if isinstance(known, type) and issubclass(known, IdxflowError) else IdxflowError


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
