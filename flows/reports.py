"""The report of a run: as published, or rebuilt from what is left if it was removed or damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.dataset_in_store import DatasetInStore
from flows.terminal.output import remark
from storage.errors import DamagedEntry
from storage.records import Report

if TYPE_CHECKING:
    from tasks.report.document import Document


@dataclass(frozen=True)
class RunReport:
    """The report of a run, either published and undamaged or rebuilt."""

    run: str
    published: Report | None
    rebuilt: Document | None

    def html(self) -> bytes:
        if self.rebuilt:
            return self.rebuilt.html().encode()
        return self._published.html.read_bytes()

    def json(self) -> str:
        return self.rebuilt.json() if self.rebuilt else self._published.json.read_text(encoding="utf-8")

    @property
    def _published(self) -> Report:
        if self.published is None:
            raise ValueError("expected a report that was published or rebuilt")
        return self.published


def run_with_report(data: DatasetInStore, record: dict[str, Any]) -> dict[str, Any]:
    """Return the run whose report covers the run `record`: if it changed nothing, the run that made its version.

    Raises:
        ConfigError: the ledger does not have that run.
    """
    named = original_of(record)
    if named is None:
        return record
    original = data.run(named)
    version = f"v{record['version']}, " if record.get("version") else ""
    remark(f"run {record.get('run')} changed nothing; this is the report of {version}run {named}")
    return original


def original_of(record: Mapping[str, Any]) -> str | None:
    """Return the run whose report covers the run `record`, which changed nothing; None if it has its own."""
    named = Path(str(record.get("report") or "")).name
    return None if record.get("state") != "unchanged" or named in ("", record.get("run")) else named


def report_of(data: DatasetInStore, record: dict[str, Any], needed: Sequence[str] = ()) -> RunReport:
    """Return the report of the run `record`: as published if undamaged, otherwise rebuilt; a remark names the sources.

    Args:
        needed: the names of the files that will be read: in object storage, only these are fetched and checked.

    Raises:
        StoreError: the store cannot be read.
    """
    from tasks.report.document import build
    from tasks.report.past_runs import missing, run_record

    run = str(record["run"])
    is_there = data.store.has(data.name, "publish", run)
    try:
        published = data.store.get(data.name, "publish", run, Report)
        for name in needed:
            published.entry.path(name)
        return RunReport(run, published, None)
    except DamagedEntry:
        problem = "is damaged" if is_there else "was removed"
    if not record.get("report"):
        problem = "was never published"
    values = run_record(data.store, record)
    lost = missing(values)
    sources = f", without what was also removed: {', '.join(lost)}" if lost else " and the results in the store"
    remark(f"the report of run {run} {problem}; this one was rebuilt from the ledger{sources}")
    return RunReport(run, None, build(data.registry, values))
