"""The complete report of a run: its content as plain values (see `docs/report.md`), and its three formats.

`build` needs only the registry of a store and the record of a run, which `past_runs.find` rebuilds from the ledger. It
imports neither TensorFlow nor Keras, so the report of any run can be rebuilt at any time.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.records import RunRecord
from storage.registry import Registry
from tasks.report import rendering, sanitize
from tasks.report.audit import audit
from tasks.report.behaviour import behaviour
from tasks.report.changes import changes
from tasks.report.checks import checks
from tasks.report.data import data
from tasks.report.decision import decision
from tasks.report.drift import drift, found
from tasks.report.evaluation import evaluation
from tasks.report.evidence import Evidence, gather
from tasks.report.images import pictures
from tasks.report.lineage import lineage
from tasks.report.mistakes import mistakes
from tasks.report.quarantine import numbered_as_archives, quarantine
from tasks.report.rendering import Pictures
from tasks.report.timing import timing
from tasks.report.training import training
from tasks.report.trend import trend
from tasks.report.verdict import verdict

SCHEMA = 2
"""Schema version of `report.json`; incremented when a field changes its meaning or is removed."""
_REACHED = ("data", "checks", "training", "test", "decision")


@dataclass(frozen=True)
class Document:
    """A report: its content and its pictures."""

    values: dict[str, Any]
    """The content, JSON values only; see `docs/report.md`."""
    pictures: Pictures

    def html(self) -> str:
        """Return the page: one file that loads nothing, below `rendering.MAX_HTML_BYTES`."""
        return rendering.html(self.values, self.pictures)

    def json(self) -> str:
        """Return the content as the text of `report.json`."""
        return json.dumps(self.values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def markdown(self, place: str = "") -> str:
        """Return a short Markdown form, below `rendering.MAX_MARKDOWN_BYTES`; `place` says where the HTML is."""
        return rendering.markdown(self.values, self.pictures, place)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the scores per class as rows of strings and counts, worst recall first; empty without a test."""
        return rendering.metrics(self.values)


def build(registry: Registry, record: RunRecord, folders: Mapping[str, str] | None = None) -> Document:
    """Build the report of a run from its record and from the entries, registry and ledger of its store.

    Damaged or missing evidence is left out, with a warning in the log. The same record and store give the same
    document, as long as nothing is removed from the store.

    Args:
        record: of the run, as the flow has it, or from `past_runs.find(registry, run)`.
        folders: names for folders of the machine that texts may mention, besides the store and the home folder.
    """
    values, evidence = _values(registry, record, folders or {})
    return Document(numbered_as_archives(values, record), pictures(record, values, evidence))


def values_of(registry: Registry, record: RunRecord) -> dict[str, Any]:
    """Return the content of the report of a run without its pictures, and without the drift; see `build`."""
    values, _ = _values(registry, record, {}, with_drift=False)
    return numbered_as_archives(values, record)


def _values(
    registry: Registry, record: RunRecord, folders: Mapping[str, str], with_drift: bool = True
) -> tuple[dict[str, Any], Evidence]:
    home = os.path.expanduser("~")  # noqa: PTH111
    roots = {registry.store.address: "store", str(registry.store.root): "store", **folders, home: "~"}
    gathered = gather(registry, record)
    # That takes a second.
    seen = found(record, gathered) if with_drift else None
    evidence = _shareable(dataclasses.replace(gathered, drift=seen), roots)
    return content(sanitize.shareable(_by_folder(record), roots), evidence), evidence


def content(run: RunRecord, evidence: Evidence) -> dict[str, Any]:
    """Return the content of the report of `run`; pass every text of it through `sanitize` first."""
    sections = {
        "changes": changes(run, evidence),
        "data": data(run, evidence),
        "audit": audit(run, evidence),
        "quarantine": quarantine(run, evidence),
        "checks": checks(run, evidence),
        "drift": drift(run, evidence),
        "training": training(run, evidence),
        "test": evaluation(run, evidence),
        "mistakes": mistakes(run, evidence),
        "behaviour": behaviour(run),
        "decision": decision(run, evidence),
        "trend": trend(run, evidence),
        "timing": timing(run),
        "lineage": lineage(run, evidence),
    }
    identity = {
        "id": run.id,
        "dataset": run.dataset,
        "title": run.facts.title if run.facts else run.dataset,
        "started": run.started,
        "asked_by": run.asked_by,
        "profile": run.profile,
        "study": run.study or None,
    }
    missing = [name for name in _REACHED if sections[name] is None]
    return {
        "schema": SCHEMA,
        "run": identity,
        "verdict": {**verdict(run, evidence), "not_reached": missing},
        **sections,
    }


def _by_folder(run: RunRecord) -> RunRecord:
    """Return `run` with the folder, not the path, as an archive's source: the report names the file separately."""
    archives = (
        dataclasses.replace(archive, source=str(Path(archive.source).parent))
        if archive.source.startswith("/")
        else archive
        for archive in run.archives
    )
    return dataclasses.replace(run, archives=tuple(archives))


def _shareable(evidence: Evidence, roots: Mapping[str, str]) -> Evidence:
    """Return `evidence` with every displayed text made safe to show to anyone."""
    return dataclasses.replace(
        evidence,
        champion=sanitize.shareable(evidence.champion, roots) if evidence.champion else None,
        origins={
            sanitize.presentable(name): sanitize.shareable(origin, roots) for name, origin in evidence.origins.items()
        },
        by_hand=tuple(sanitize.shareable_values(evidence.by_hand, roots)),
    )
