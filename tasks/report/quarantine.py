"""The quarantine: how many rows were set aside and why, and pictures of the first ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from storage.formats.quarantined import archive_rows
from storage.records import SPLITS, Quarantine, RunRecord
from tasks.report import past_runs
from tasks.report.evidence import Evidence, readable
from tasks.report.phrases import class_name, counted


def quarantine(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    """Return the counts by split and reason, and the first rows; None if nothing was to be set aside."""
    record = run.quarantine
    if not record:
        return None
    shown = [
        {
            "split": row.split,
            "row": row.row,
            "label": row.label,
            "name": class_name(run, row.label),
            "reasons": list(row.reasons),
            "digest": row.digest,
        }
        for row, _ in evidence.set_aside
    ]
    return {
        "sentence": _sentence(record, len(shown)),
        "checks": list(record.checks),
        "max_share": record.max_share,
        "splits": [
            {
                "split": split,
                "set_aside": record.set_aside[split],
                "reasons": {check: record.reasons[split][check] for check in record.checks},
            }
            for split in SPLITS
        ],
        "released": record.released,
        "shown": shown,
    }


def numbered_as_archives(values: dict[str, Any], run: RunRecord) -> dict[str, Any]:
    """Return the content of a report with the numbers that rows have in the archives, not in what is left of them.

    If the quarantine is lost, these are unknown: then no row is named.
    """
    if past_runs.is_quarantine_lost(run):
        checks = values["checks"]
        without = checks and {**checks, "checks": [{**check, "rows": []} for check in checks["checks"]]}
        return {**values, "checks": without, "mistakes": None, "behaviour": None, "drift": None}
    splits = {split.name: split for split in (run.train, run.test) if split and split.set_aside}

    def renumbered(table: str, rows: list[int]) -> list[int]:
        found = readable(lambda split: archive_rows(split, rows), splits[table]) if table in splits else None
        return rows if found is None else found

    checks, mistakes, drift = values["checks"], values["mistakes"], values["drift"]
    if checks:
        rows = [{**check, "rows": renumbered(check["table"], check["rows"])} for check in checks["checks"]]
        checks = {**checks, "checks": rows}
    if mistakes:
        mistakes = {name: _numbered(part, lambda rows: renumbered("test", rows)) for name, part in mistakes.items()}
    behaviour = values["behaviour"]
    if behaviour:
        tests = behaviour["tests"]
        tests = [{**t, "examples": _numbered(t["examples"], lambda rows: renumbered("test", rows))} for t in tests]
        behaviour = {**behaviour, "tests": tests}
    if drift:
        drift = {**drift, "most": _numbered(drift["most"], lambda rows: renumbered("train", rows))}
    return {**values, "checks": checks, "mistakes": mistakes, "behaviour": behaviour, "drift": drift}


def _numbered(part: Any, renumbered: Callable[[list[int]], list[int]]) -> Any:
    """Return a part of the mistakes, or a list of them, with other numbers of rows."""
    if isinstance(part, dict) and "shown" in part:
        return {**part, "shown": _numbered(part["shown"], renumbered)}
    if not isinstance(part, list):
        return part
    numbers = renumbered([one["row"] for one in part])
    return [{**one, "row": row} for one, row in zip(part, numbers, strict=True)]


def _sentence(record: Quarantine, shown: int) -> str:
    total = sum(record.set_aside.values())
    limit = f"at most {100 * record.max_share:.4g}% of a split"
    released = f" {counted(record.released, 'row was', 'rows were')} released by a person." if record.released else ""
    if not total:
        return f"No row was bad, so none was set aside ({limit} may be).{released}"
    splits = " and ".join(f"{record.set_aside[name]:,} of {name}" for name in SPLITS if record.set_aside[name])
    first = f" The first {shown} are shown." if shown < total else ""
    return (
        f"{counted(total, 'row was', 'rows were')} set aside ({splits}; {limit} may be). No model is trained or tested "
        f"on them; the archives are as they were.{released}{first}"
    )
