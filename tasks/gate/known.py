"""Find what the rules look at in the ledger, where an earlier decision has recorded it: a run with nothing new reads no
answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from storage.datasets.catalog import Dataset
from storage.datasets.manifest import COLUMN
from storage.files import digest_of
from storage.records import Archive, Behaviour, Paired, SliceScore, Split, from_json, to_json
from storage.registry import Registry, Version
from tasks.gate import criteria, slices
from tasks.gate.evidence import gather
from tasks.gate.judging import Candidate, Evidence, Incumbent
from tasks.slicing import label_columns


def evidence(
    registry: Registry, dataset: Dataset, candidate: Candidate, champion: Incumbent | None, registered: Version | None
) -> Evidence:
    """Do what `gather` does, but do not read what is known: an unchanged run reads no answers.

    Args:
        registered: the candidate's version, if it has one.
    """
    if champion is None or champion.score is None:
        return gather(dataset, candidate, champion)
    score = candidate.evaluation
    if score.entry.key == champion.score.entry.key:
        itself = criteria.compared((score.correct, 0, 0, score.rows - score.correct), 0, dataset.gate.alpha)
        return Evidence(itself, _sliced_before(registry, dataset, champion.version))
    known = _compared_before(registry, dataset, registered, champion) if registered else None
    return known or gather(dataset, candidate, champion)


def _compared_before(registry: Registry, dataset: Dataset, version: Version, champion: Incumbent) -> Evidence | None:
    """Return what was found of a version and the champion from the last decision that rests on their comparison."""
    same = {
        "version": version.number,
        "previous": champion.version.number,
        "test_digest": version.test_digest,
    }
    for record in _records(registry, same):
        # An earlier version of idxflow may have recorded less.
        with suppress(TypeError):
            paired = from_json(Paired, record.get("paired") or {})
            if paired.confidence != 1 - 2 * dataset.gate.alpha or not _is_sliced_alike(dataset, record):
                return None
            return Evidence(paired, _slices_of(record) if dataset.slices.by else None)
    return None


def _sliced_before(registry: Registry, dataset: Dataset, version: Version) -> tuple[SliceScore, ...] | None:
    """Return the scores of the champion on the slices, compared with itself, from the last decision about it.

    None if there are no slices, or if the manifest has changed them since: the champion is not judged again.
    """
    about = _records(registry, {"version": version.number, "test_digest": version.test_digest})
    record = next(about, {}) if dataset.slices.by else {}
    if not dataset.slices.by or not _is_sliced_alike(dataset, record):
        return None
    return slices.of_champion(_slices_of(record))


def _slices_of(record: Mapping[str, Any]) -> tuple[SliceScore, ...]:
    return tuple(from_json(SliceScore, score) for score in record["slices"])


def _records(registry: Registry, same: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the records of the decisions with these values, newest first."""
    for decision in reversed(registry.decisions()):
        if same.items() <= decision.items():
            yield registry.ledger.record("decisions", decision["name"])


def _is_sliced_alike(dataset: Dataset, record: Mapping[str, Any]) -> bool:
    """Tell whether a recorded decision had the same `[slices]`; older records have none."""
    return (record.get("slicing") or {}) == slicing(dataset)


def asked(dataset: Dataset, behaviour: Behaviour | None) -> str:
    """Return the digest of what `[slices]` and `[behaviour]` ask for; empty if neither asks for anything."""
    settings = [slicing(dataset), behaviour.asked if behaviour else ""]
    return digest_of(settings) if any(settings) else ""


def slicing(dataset: Dataset) -> dict[str, Any]:
    """Return `[slices]` as a decision records it, sorted as in the ledger; empty if there are none."""
    settings: dict[str, Any] = to_json(dataset.slices) if dataset.slices.by else {}
    if settings:
        settings["floors"] = dict(sorted(settings["floors"].items()))
    return dict(sorted(settings.items()))


def check_slices(registry: Registry, dataset: Dataset, labels: Archive, test: Split) -> None:
    """Check before a training that the label files have the columns that `[slices]` names.

    A run with nothing new opens none of them: a decision has shown that they are there.

    Args:
        labels: all archives of the labels of the test split.
        test: the test split.

    Raises:
        ConfigError: a column is missing.
    """
    columns = [int(found[1]) for by in dataset.slices.by if (found := COLUMN.fullmatch(by))]
    if columns and not _is_sliced_alike(dataset, next(_records(registry, {"test_digest": test.digest}), {})):
        for column in columns:
            label_columns.check(dataset, labels, column)
