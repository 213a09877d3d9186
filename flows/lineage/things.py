"""The nodes of a lineage, from what is known of results, runs, versions and decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flows.lineage.graph import Graph, Kind, Node
from flows.lineage.known import ArchiveOf, Known, Run, terms
from storage.records import Step
from storage.registry import PastDecision, Version

_OF_STEPS: Mapping[str, tuple[Kind, tuple[str, ...]]] = {
    "decode": ("split", ("name", "rows", "image_shape", "classes", "digest", "set_aside", "parts", "sources")),
    "audit": ("audit", ("rows", "suspect_rows", "flagged_rows", "test_rows", "equal_rows", "near_rows", "digest")),
    "quarantine": ("quarantine", ("set_aside", "reasons", "released", "checks", "max_share", "left")),
    "validate": ("validation", ("passed", "class_counts", "digest")),
    "normalize": ("normalization", ("rows", "held_out_rows", "mean_of_means", "std", "digest")),
    "train": (
        "model",
        (
            *("weights_digest", "parameters", "fitted_rows", "validation_rows", "epochs_run", "chosen_epoch"),
            *("train_accuracy", "train_loss", "device", "own"),
        ),
    ),
    "evaluate": (
        "evaluation",
        (
            *("weights_digest", "split_digest", "rows", "correct", "accuracy", "accuracy_low", "accuracy_high"),
            "loss",
        ),
    ),
    "confirm": ("confirmation", ("rows", "difference")),
}
"""The kind of node that a step makes, and which fields of its record are facts."""
STEPS = tuple(_OF_STEPS)


def of_step(known: Known, step: Step) -> Node:
    """Return the node of what a step has made."""
    kind, names = _OF_STEPS[step.step]
    found = known.described(step.step, step.key)
    facts: dict[str, Any] = {"key": step.key, "summary": step.summary}
    facts |= {name: found.record[name] for name in names if name in found.record}
    if kind == "validation" and found.record:
        facts |= _checks(found.record.get("checks") or ())
    if found.made_from:
        facts["made_from"] = dict(found.made_from)
    return Node(step_id(known, step), kind, known.dataset, facts, found.state)


def step_id(known: Known, step: Step) -> str:
    """Return the id of the node of what a step has made."""
    return f"{_OF_STEPS[step.step][0]}:{known.dataset}/{step.key}"


def _checks(checks: Any) -> dict[str, int]:
    failed = [check for check in checks if not check.get("passed")]
    warnings = sum(check.get("severity") == "warning" for check in failed)
    return {"checks": len(checks), "warnings": warnings, "failed": len(failed) - warnings}


def of_archive(known: Known, archive: ArchiveOf) -> Node:
    """Return the node of an archive, or of all in a list that was removed."""
    facts = {name: value for name, value in asdict(archive).items() if name != "state" and value not in ("", None, 0)}
    return Node(archive_id(known, archive), "archive", known.dataset, facts, archive.state)


def archive_id(known: Known, archive: ArchiveOf) -> str:
    """Return the id of the node of an archive."""
    return f"archive:{known.dataset}/{archive.role}/{archive.sha256 or archive.key}"


def of_run(known: Known, run: Run) -> Node:
    """Return the node of a run."""
    names = ("started", "time", "state", "sentence", "asked_by", "profile", "config", "as_of", "study", "seconds")
    facts = {"run": run.id} | {name: run.values[name] for name in names if run.values.get(name) is not None}
    facts["environment"] = run.values.get("environment") or {}
    return Node(f"run:{known.dataset}/{run.id}", "run", known.dataset, facts)


def of_version(known: Known, version: Version, is_retired: bool) -> Node:
    """Return the node of a version.

    Args:
        is_retired: whether `gc` has removed its model (`Registry.retired_of`).
    """
    facts = {
        "version": version.number,
        "weights_digest": version.weights_digest,
        "test_accuracy": version.test_accuracy,
        "train_accuracy": version.train_accuracy,
        "test_digest": version.test_digest,
        "registered": version.time,
        "run": version.run,
        "champion": version.number == known.champion,
        "same_weights": known.alike(version),
        "answered": known.answered.get(version.number, 0),
        "terms": [
            {
                "from": turn.time.isoformat(timespec="milliseconds"),
                "to": then.time.isoformat(timespec="milliseconds") if then else None,
                "outcome": turn.outcome,
                "next": then.after if then else None,
            }
            for turn, then in terms(known, version.number)
        ],
    }
    name = f"version:{known.dataset}/{version.number}"
    return Node(name, "version", known.dataset, facts, "removed" if is_retired else "kept")


def of_decision(known: Known, turn: PastDecision) -> Node:
    """Return the node of a decision."""
    facts = {
        "time": turn.time.isoformat(timespec="milliseconds"),
        "outcome": turn.outcome,
        "version": turn.version,
        "before": turn.before,
        "after": turn.after if turn.took_effect else turn.before,
        "run": turn.run,
        "asked_by": turn.asked_by or (known.run(turn.run) or _NOBODY).values.get("asked_by"),
        "sentence": turn.sentence,
    }
    return Node(decision_id(known, turn), "decision", known.dataset, facts)


def decision_id(known: Known, turn: PastDecision) -> str:
    """Return the id of the node of a decision."""
    return f"decision:{known.dataset}/{turn.record}"


def of_report(known: Known, run: Run) -> Node | None:
    """Return the node of a run's report; None if it has none of its own."""
    if str(run.values.get("report") or "").rpartition("/")[2] != run.id:
        return None
    state = known.described("publish", run.id).state
    facts = {"run": run.id, "where": known.store.where_entry(known.dataset, "publish", run.id)}
    return Node(f"report:{known.dataset}/{run.id}", "report", known.dataset, facts, state)


def of_study(known: Known, run: Run) -> Node | None:
    """Return the node of the study whose result a run trained with; None if it used no study."""
    key = run.values.get("study")
    if not key:
        return None
    record = known.ledger.find("studies", str(key)) or {}
    winner = record.get("winner") or {}
    facts = {"key": key, "time": record.get("time"), "trial": winner.get("trial")}
    return Node(f"study:{known.dataset}/{key}", "study", known.dataset, facts, known.described("tune", str(key)).state)


def add_fetched(known: Known, graph: Graph, archive: ArchiveOf) -> Node:
    """Add an archive, and the run that used it first."""
    if found := graph.nodes.get(archive_id(known, archive)):
        return found
    node = graph.add(of_archive(known, archive))
    if archive.sha256 and (run := known.first_uses.get((archive.role, archive.sha256))):
        graph.join(graph.add(of_run(known, run)), node, "fetch")
    return node


def add_made(known: Known, graph: Graph, node: Node, step: str, key: str) -> None:
    """Add which run has made a thing."""
    if not graph.before(node, "run") and (maker := known.maker(step, key)):
        graph.join(graph.add(of_run(known, maker)), node, "made")


_NOBODY = Run({}, ())
