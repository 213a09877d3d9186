"""The scratch store in which a run is made again, with the archives of the run."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.reproducing.recorded import Kept, Recorded
from flows.terminal.text import is_utf8, printable
from storage import copying, released
from storage.datasets import catalog
from storage.datasets.catalog import ROLES
from storage.errors import ConfigError, DamagedEntry, StoreError
from storage.files import check_local, kind_of
from storage.runtime import cancellation, progress
from storage.runtime.progress import Progress
from storage.store import Store

_PREFIX = "idxflow-reproduce-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def checked_folder(keep: Path, store: Store) -> Path:
    """Return the absolute path of the folder to keep the scratch store in, which must be new or empty.

    Raises:
        ConfigError: it is not, it is in the store, or its path is not UTF-8.
    """
    check_local("--keep", keep)
    folder = keep.expanduser().absolute()
    shown = printable(str(folder))
    if not is_utf8(str(folder)):
        # Arrow and SQLite take no other paths.
        raise ConfigError(f"expected --keep to be a path in UTF-8; found {shown!r}; choose another folder")
    if folder.resolve().is_relative_to(store.root.resolve()):
        raise ConfigError(f"expected --keep outside the store {store.address}; found {shown}; choose another folder")
    if (folder.is_dir() and not any(folder.iterdir())) or not (folder.exists() or folder.is_symlink()):
        return folder
    found = "not empty" if folder.is_dir() else kind_of(folder)
    raise ConfigError(f"expected --keep to be a new or an empty folder; {shown} is {found}; choose another")


@contextmanager
def opened(keep: Path | None) -> Iterator[Store]:
    """Make the scratch store in `keep`, or in a temporary folder that is gone after the block, however that ends.

    Raises:
        StoreError: it cannot be written.
    """
    if keep:
        with _writable(keep) as store:
            yield store
        return
    try:
        temporary = TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
    except OSError as error:
        raise _unwritable(error) from error
    with temporary as folder, _writable(Path(folder)) as store:
        yield store


@contextmanager
def _writable(folder: Path) -> Iterator[Store]:
    """Yield a store in a folder; if it cannot be written, name what helps, which is not another `--store`."""
    store = Store(folder)
    try:
        store.prepare()
        yield store
    except (OSError, StoreError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or not _is_about(folder, cause):
            raise
        raise _unwritable(cause, folder) from error


def _is_about(folder: Path, error: OSError) -> bool:
    if error.filename is None:
        # Python does not say which file could not be written to; nothing is written elsewhere.
        return error.errno in _FULL
    path = Path(str(error.filename))
    return path.is_relative_to(folder) or (path != Path("/") and folder.is_relative_to(path))


def _unwritable(error: OSError, folder: Path | None = None) -> StoreError:
    place = error.filename or folder
    where = f" at {place}" if place else ""
    return StoreError(
        f"expected a scratch store that can be written; found {error.strerror}{where}; correct that or free space "
        "there, or name an empty folder elsewhere with --keep"
    )


def bring_archives(run: Recorded, scratch: Store) -> None:
    """Copy the archives of a run into the scratch store, each checked against its recorded SHA-256.

    Raises:
        StoreError: an archive was removed from the store or is damaged, or a store cannot be read or written.
    """
    kept = [run.steps[name] for name in (f"fetch {role}" for role in ROLES) if name in run.steps]
    for done, each in enumerate(kept):
        cancellation.check()
        progress.advance(Progress("copy archives", done, len(kept), "parts"))
        _bring(run, scratch, each)
    progress.advance(Progress("copy archives", len(kept), len(kept), "parts"))


def _bring(run: Recorded, scratch: Store, kept: Kept) -> None:
    source = run.data.store
    try:
        copying.bring(source, scratch, run.data.name, "fetch", kept.step.key)
    except DamagedEntry as error:
        is_there = source.has(run.data.name, "fetch", kept.step.key)
        found = str(error).split("; `")[0] if is_there else f"it was removed from the store ({kept.where})"
        raise StoreError(
            f"expected the {kept.step.subject} of run {run.id} ({kept.step.summary}); {found}; {_fetched_again(run)}"
        ) from error


def _fetched_again(run: Recorded) -> str:
    """Return how the archives of a run get into the store again."""
    name, manifest = run.data.name, run.record.facts.manifest if run.record.facts else ""
    of_catalog = name in catalog.names() and not manifest
    words = f"validate {name}" if of_catalog else f"validate --dataset-file {manifest or 'FILE'}"
    words += f" --as-of {run.record.as_of}" if run.record.as_of else ""
    command = run.data.store.command(words)
    if of_catalog:
        return f"fetch it again: `{command}`"
    return f"if its source still has that file, fetch it again, with --source FOLDER if it is elsewhere: `{command}`"


def release_as_then(run: Recorded, scratch: Store) -> bool:
    """Release the rows in the scratch store that were released when the run set rows aside.

    Return whether they are known; otherwise those are released that are released today.

    Raises:
        StoreError: they cannot be read or written.
    """
    if "quarantine" not in run.steps:
        return True
    parameters = run.parameters("quarantine")
    rows = released.read(run.data.store, run.data.name) if parameters is None else parameters.get("released", ())
    if rows:
        released.release(scratch, run.data.name, dict.fromkeys(rows, f"as in run {run.id}"))
    return parameters is not None
