"""The errors that idxflow raises on purpose, with their exit codes and the advice that a report gives about them.

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
    ├── SharingFailed
    ├── WorkersFailed
    ├── PrefectFailed
    ├── OutputFailed
    └── CutOff               never raised: represents runs that were cut off

Each message is one sentence: what was expected, what was found, where, what to do.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from storage.records import CUT_OFF, Failure, Step, Validation
from storage.runtime.ranged import Ranged


class IdxflowError(Exception):
    """Base of all errors raised on purpose."""

    exit_code: ClassVar[int] = 1
    """Exit code of `idxflow`."""
    meaning: ClassVar[str] = "any other error"
    """Meaning of the exit code, for the help."""
    headline: ClassVar[str] = "an unexpected error"
    """Headline of the report of a run that ended with it."""
    advice: ClassVar[str] = "See the run's log for details."
    """The advice in that report."""
    refuses: ClassVar[str] = ""
    """`data` or `model` if the run refused it; empty if the run failed."""

    @property
    def failure(self) -> Failure:
        """The error as shown in the ledger and by `--json`."""
        # A file that could not be opened because file descriptors ran out is not damaged.
        cause = self.__cause__ if getattr(self.__cause__, "errno", None) in (errno.EMFILE, errno.ENFILE) else None
        return Failure(type(self).__name__, (cause and shortage(cause)) or str(self), self.exit_code)


class ConfigError(IdxflowError):
    """A manifest, a parameter or the command line is wrong; nothing was started."""

    exit_code = 2
    meaning = "wrong usage or configuration"
    headline = "the configuration cannot be used"
    advice = "Correct the value named above, in the manifest or on the command line, and start the run again."


class DataRefused(IdxflowError):
    """The data differs from its declaration; training never starts."""

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
    """A critical expectation about a split does not hold. Carries the verdict for the report, if any."""

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
    """The trained model is below a floor of its data set, or fails a test of its behaviour; the champion stays."""

    exit_code = 5
    meaning = "model refused"
    headline = "the model is below a floor"
    advice = (
        "Look at the training curves and the worst classes below; change the training parameters, or relax "
        "[floors] and [behaviour] of the manifest if they are too strict."
    )
    refuses = "model"


class StoreError(IdxflowError):
    """The store cannot be read or written."""

    headline = "the store cannot be used"
    advice = "Do what the message above says, or choose another store with --store."


class DamagedEntry(StoreError):
    """A file of the store is missing or differs from its description."""

    headline = "a file of the store is damaged"
    advice = "Start the run again: it replaces damaged results. If damage recurs, check the disk."

    def __init__(self, sentence: str = "", removed: bool = False) -> None:
        super().__init__(sentence)
        self.removed = removed
        """Whether its entry was removed from the store, so that the same work makes it again."""


class TrainingFailed(IdxflowError):
    """Training diverged, or cannot start from this data and configuration."""

    headline = "training did not succeed"
    advice = "Do what the message above says."


class WorkersFailed(IdxflowError):
    """The workers cannot be reached, have all ended, or run other code than the run. What they published stays."""

    headline = "the workers could not be used"
    advice = "Do what the message above says; the next run reuses the parts that are done."


class ExportFailed(IdxflowError):
    """An exported model does not reproduce the model's own predictions; nothing was written."""


class SharingFailed(IdxflowError):
    """What runs or events are sent to cannot be reached, or refuses them; what was sent stays."""


class PrefectFailed(IdxflowError):
    """Prefect itself could not run the flow: its server is unreachable or incompatible with this client."""


class OutputFailed(IdxflowError):
    """The output could not be printed; everything else that the command did remains."""


class CutOff(IdxflowError):
    """The run was stopped before it finished: the kind of its failure is a state of `CUT_OFF`."""

    headline = "the run was cut off"
    advice = "Start the run again. The interruption says nothing about the data or the model."


DRIFTED = 6
"""Exit code of `idxflow drift` if images differ by more than the limits. That is an answer, not an error."""

NOT_REPRODUCED = 7
"""Exit code of `idxflow reproduce` if a digest is not what the run has recorded. That is an answer, too."""

EXIT_CODES: Mapping[int, str] = {
    0: "success",
    **{
        kind.exit_code: kind.meaning
        for kind in (IdxflowError, ConfigError, DataRefused, SourceUnavailable, ModelRefused)
    },
    DRIFTED: "images drifted",
    NOT_REPRODUCED: "not reproduced",
    128 + signal.SIGINT: "interrupted (SIGINT)",
    128 + signal.SIGTERM: "terminated (SIGTERM, SIGHUP)",
}
"""Short meaning of each exit code; docs/reference/exit-codes.md has the details."""


def error_class(kind: str) -> type[IdxflowError]:
    """Return the class that a record names (`Failure.kind`); the base class for an unexpected error."""
    if kind.lower() in CUT_OFF:
        return CutOff
    value = globals().get(kind)
    return value if isinstance(value, type) and issubclass(value, IdxflowError) else IdxflowError


_publications: dict[Path, str] = {}


def published_by(file: Path, description: str) -> None:
    """Note the address of the description that publishes the entry of a file, which is only a copy in a cache."""
    _publications[file] = description


def made_again(file: Path | Ranged | str) -> str:
    """Return the remedy for a damaged file of a store entry whose size and SHA-256 match its description.

    As long as such an entry exists, runs reuse it.
    """
    if not isinstance(file, Path):
        # Its folder is that of an attempt, beside which is what publishes it.
        return f"remove {str(file).rsplit('/', 2)[0]}/entry.json, then run again"
    return f"remove {_publications.get(file, file.parent)}, then run again"


def unreadable(path: Path | str, error: OSError) -> StoreError:
    """Return the error for a file of the store that cannot be read now but may be intact, so it is not replaced."""
    return StoreError(f"expected to read {path}; {error.strerror}; check the disk and the permissions, then run again")


def shortage(error: BaseException) -> str | None:
    """Return a message about the system resource that ran out, if that caused `error`."""
    text = str(error)
    more = "raise the limit of the address space (ulimit -v), or take a machine with more memory, then run again"
    if isinstance(error, ImportError) and ("failed to map" in text or "annot allocate memory" in text):
        return f"expected memory to load a library; {text}; {more}"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return f"expected memory to continue; the system has none left; {more}"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"expected to open another file; {text}; raise the limit of open files (ulimit -n), then run again"
    threads = isinstance(error, RuntimeError) and "can't start new thread" in text
    if threads or isinstance(error, BlockingIOError):
        return (
            f"expected to start a thread or a process; {text}; raise the limit of processes (ulimit -u, TasksMax of a "
            "systemd unit, pids of a container) or of the address space (ulimit -v), then run again"
        )
    return None
