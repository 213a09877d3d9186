"""Find the model or the archives that a person names: by data set and version, by a file, or by a digest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import datasets
from flows.dataset_in_store import DatasetInStore
from flows.lineage import things, tracing
from flows.lineage.known import ArchiveOf, Known
from flows.lineage.tracing import Lineage
from storage.datasets import catalog
from storage.datasets.catalog import ROLES, shown
from storage.errors import ConfigError, FormatError
from storage.files import alike, check_regular, kind_of, sha256_of
from storage.opening import open_store
from storage.store import Store
from storage.words import counted, meant, versions_to_give

LEAST_DIGITS = 8
_DIGEST = re.compile(rf"[0-9a-fA-F]{{{LEAST_DIGITS},64}}")
_DESCRIBED = "model.json"
"""What an export says of its model (`tasks.serving.export`)."""
_LARGEST = 1 << 20
_SHOWN = 5
"""How many of the names that something could have meant a message lists."""


@dataclass(frozen=True)
class _Match:
    """What a digest names in a data set: a model, or an archive."""

    known: Known
    digest: str
    version: int | None = None
    archive: ArchiveOf | None = None

    @property
    def words(self) -> str:
        """What it is, for people."""
        if self.archive:
            return f"{self.archive.role} of {self.known.dataset} {self.digest[:16]}"
        return f"v{self.version} of {self.known.dataset} {self.digest[:16]}"


def lineage_of(what: str, part: str | None, store: str | None) -> Lineage:
    """Return the lineage of what a person names.

    Args:
        what: a data set of the store, the path of a file or of an exported model, or a digest.
        part: of a data set: a version, an archive's role or file name, or a digest; None: the champion.
        store: folder or address of the store; None: the default.

    Raises:
        ConfigError: there is no such thing, or it could be several.
        StoreError: the store or the file cannot be read.
    """
    opened = open_store(store)
    names = opened.datasets(("registry", "ledger"))
    if what in names or part is not None or what in catalog.names():
        datasets.check_known(opened, what, names)
        return in_dataset(Known(DatasetInStore(opened, what)), part or "champion")
    datasets.in_store(opened, None)
    known = [Known(DatasetInStore(opened, name)) for name in names]
    path = Path(what).expanduser()
    if "\0" not in what and (path.exists() or "/" in what):
        return _of_path(known, path)
    if _DIGEST.fullmatch(what):
        return _of_digest(known, what.lower(), opened)
    raise ConfigError(
        f"expected a data set of the store {opened.address}{_choices(names)}, a file, or {LEAST_DIGITS} or more digits "
        f"of a SHA-256; found {shown(what)}{meant(what, names)}; give one of these, a file as ./FILE"
    )


def _choices(names: Sequence[str]) -> str:
    return f" ({', '.join(sorted(names))})" if names else ""


def in_dataset(known: Known, part: str) -> Lineage:
    """Return the lineage of a version or of archives of a data set.

    Raises:
        ConfigError: there is no such thing, or it could be several.
        StoreError: the store cannot be read.
    """
    numbers = known.registry.numbers()
    digits = part.removeprefix("v")
    if part == "champion" or (digits.isascii() and digits.isdigit() and len(digits) < 10 and int(digits) in numbers):
        return tracing.of_version(known, known.data.version(part))
    archives = _of_role(known, part) if part in ROLES else _of_name(known, part)
    if archives:
        return tracing.of_archives([(known, archives)])
    if _DIGEST.fullmatch(part):
        return _of_digest([known], part.lower(), known.store)
    raise _unknown(known, part, numbers)


def _unknown(known: Known, part: str, numbers: Sequence[int]) -> ConfigError:
    files = {archive.file for run in known.runs for archive in known.used(run)} - {""}
    names = ("champion", *(f"v{number}" for number in numbers), *ROLES, *files)
    remedy = versions_to_give(numbers) if numbers else f"it has no version yet: {known.data.run_command}"
    return ConfigError(
        f"expected a version of {known.dataset}, the role or the file name of an archive, or {LEAST_DIGITS} or more "
        f"digits of a SHA-256; found {shown(part)}{meant(part, names, alike=0.75)}; {remedy}, or a role such as "
        f"{ROLES[0]}"
    )


def _of_role(known: Known, role: str) -> tuple[ArchiveOf, ...]:
    """Return the archives of a role that the newest run has which has some."""
    return next((found for run in reversed(known.runs) if (found := known.archives(run, role))), ())


def _of_name(known: Known, name: str) -> list[ArchiveOf]:
    """Return all archives with a file name, the newest first."""
    found = {
        things.archive_id(known, archive): archive
        for run in reversed(known.runs)
        for archive in known.used(run)
        if archive.file == name
    }
    return [*found.values()]


def _of_digest(known: Sequence[Known], digest: str, store: Store) -> Lineage:
    matches = [match for one in known for match in (*_models(one, digest), *_archives(one, (digest,)))]
    by_digest = {match.digest: match for match in matches}
    if len(by_digest) > 1:
        found = ", ".join(match.words for match in [*by_digest.values()][:_SHOWN])
        more = ", …" if len(by_digest) > _SHOWN else ""
        raise ConfigError(
            f"expected the beginning of a single digest; {digest} begins {len(by_digest)}: {found}{more}; type more of "
            "it"
        )
    if not matches:
        where = f"of {known[0].dataset} " if len(known) == 1 else ""
        raise ConfigError(
            f"expected the digest of a model or of an archive {where}in the store {store.address}; found {digest}, "
            f"which is none{_unsure(known)}; `{store.command('runs list DATASET')}` lists runs, or give a file"
        )
    return _of_matches(matches)


def _of_matches(matches: Sequence[_Match]) -> Lineage:
    """Return the lineage of what has one digest: a model, or an archive, perhaps in several data sets."""
    models = [match for match in matches if match.version is not None]
    if models:
        # Of several versions with the same weights, the newest.
        newest = models[-1]
        return tracing.of_version(newest.known, newest.known.registry.version(newest.version or 0))
    by_dataset: dict[Known, list[ArchiveOf]] = {}
    for match in matches:
        if match.archive:
            by_dataset.setdefault(match.known, []).append(match.archive)
    return tracing.of_archives([*by_dataset.items()])


def _models(known: Known, digest: str) -> Iterator[_Match]:
    for number, weights in known.registry.weights().items():
        if weights.startswith(digest):
            yield _Match(known, weights, version=number)


def _archives(known: Known, digests: tuple[str, ...]) -> Iterator[_Match]:
    found = {
        things.archive_id(known, archive): archive
        for run in known.runs
        for archive in known.used(run)
        if archive.has(digests)
    }
    return (_Match(known, archive.sha256, archive=archive) for archive in found.values())


def _unsure(known: Iterable[Known]) -> str:
    lost = sum(runs_without_archives(one) for one in known)
    return f" ({lost_archives(lost)})" if lost else ""


def runs_without_archives(known: Known) -> int:
    """Return of how many runs it is not known which archives they used: `gc` has removed the lists of these."""
    return sum(any(archive.several for archive in known.used(run)) for run in known.runs)


def lost_archives(runs: int) -> str:
    """Return a clause for people about runs whose archives are not known."""
    return f"the archives of {counted(runs, 'run')} are not known, because `idxflow gc` has removed their lists"


def _of_path(known: Sequence[Known], path: Path) -> Lineage:
    """Return the lineage of an exported model, or of the archives in the store that a file is."""
    described = path / _DESCRIBED if path.is_dir() else path.parent / _DESCRIBED
    if path.is_dir():
        return _of_export(known, path, _export(described))
    digests = _digests(path)
    export = _export(described)
    if digests[0] in (export.get("files") or {}).values():
        return _of_export(known, path, export)
    matches = [match for one in known for match in _archives(one, digests)]
    found = _of_matches(matches) if matches else tracing.of_archives([(one, ()) for one in known])
    return Lineage("archive", found.subjects, found.graph, found.runs, tuple(known), (str(path), digests[0]))


def _digests(path: Path) -> tuple[str, ...]:
    """Return the SHA-256 of a file, and of what it holds if it is a gzip file."""
    try:
        check_regular(path)
        own = sha256_of(path)
    except OSError as error:
        problem = kind_of(path) if path.exists() else f"nothing{alike(path)}"
        raise ConfigError(
            f"expected a file to look for in the store; found {problem} at {path} ({error.strerror}); give the path of "
            "an archive or of an exported model"
        ) from error
    # It takes a moment to import.
    from tasks.sources.origins import DEFAULT_LIMIT, payload_sha256

    with suppress(FormatError):
        return own, payload_sha256(path, DEFAULT_LIMIT)
    return (own,)


def _export(path: Path) -> dict[str, Any]:
    """Return the description of an exported model; empty if idxflow did not write one there."""
    with suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= _LARGEST:
            check_regular(path)
            values = json.loads(path.read_bytes())
            if isinstance(values, dict) and isinstance(values.get("files"), dict):
                return values
    return {}


def _of_export(known: Sequence[Known], path: Path, export: dict[str, Any]) -> Lineage:
    digest = str(export.get("weights_digest") or "")
    if not _DIGEST.fullmatch(digest):
        raise ConfigError(
            f"expected an archive, or a folder that `idxflow export` has written, with {_DESCRIBED}; found a folder "
            f"without it at {path}; give a file, or an export"
        )
    matches = [match for one in known for match in _models(one, digest)]
    if not matches:
        raise ConfigError(
            f"expected a model of the store; found the weights {digest[:16]} in {path}, which no version of it has; "
            "name the store that it was exported from, with --store or IDXFLOW_STORE"
        )
    return _of_matches(matches)
