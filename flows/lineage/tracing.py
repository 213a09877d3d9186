"""Trace a version back to its archives and forward to what became of it, and an archive forward to versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flows.lineage import things
from flows.lineage.graph import Graph, Node
from flows.lineage.known import ArchiveOf, Known, Run
from storage.datasets.catalog import ROLES
from storage.drifts import Drifts
from storage.records import SPLITS, Step
from storage.registry import Version

Nodes = dict[str, list[Node]]
"""What a run made, by the name of its step: `decode train`; the archives of a role: `fetch train-images`."""


@dataclass(frozen=True)
class Lineage:
    """An answer: what was asked about, what that was made from, and what was made from it."""

    about: Literal["model", "archive"]
    subjects: tuple[Node, ...]
    """The version, or one or more archives."""
    graph: Graph
    runs: tuple[tuple[Known, Run], ...]
    """The runs that made something of it, oldest first: what is exported."""
    known: tuple[Known, ...]
    """What is known of the data sets that it is in, or could be in."""
    file: tuple[str, str] = ("", "")
    """The file that was asked about, and its SHA-256; empty if something else was."""

    def to_json(self) -> dict[str, Any]:
        name, sha256 = self.file
        return {
            "about": self.about,
            "file": {"path": name, "sha256": sha256} if name else None,
            "subjects": [node.id for node in self.subjects],
            **self.graph.to_json(),
        }


def of_version(known: Known, version: Version) -> Lineage:
    """Return the lineage of a version: all that its model was made from, and what became of it.

    Raises:
        DamagedEntry: a record of the ledger or the registry cannot be read.
        StoreError: the store cannot be read.
    """
    graph = Graph()
    subject = graph.add(things.of_version(known, version, known.registry.retired(version)))
    run = _trained(known, version)
    if run:
        made = add_run(known, graph, run)
        for name in ("train", "evaluate"):
            for node in made.get(name, ()):
                graph.join(node, subject, "registered")
    else:
        # Its process ended before the ledger had the run.
        for name, key in (("train", version.model), ("evaluate", version.evaluation)):
            node = graph.add(things.of_step(known, Step(name, key, "", 0.0, True, "")))
            graph.join(node, subject, "registered")
    _add_consequences(known, graph, subject, version)
    makers = [known.maker("train", version.model), run]
    runs = [one for one in known.runs if one in makers]
    return Lineage("model", (subject,), graph, tuple((known, one) for one in runs), (known,))


def of_archives(known: Sequence[tuple[Known, Sequence[ArchiveOf]]]) -> Lineage:
    """Return the lineage of archives: where each came from, and what was made from it.

    Args:
        known: the archives by the data set that they are in.

    Raises:
        DamagedEntry: a record of the ledger or the registry cannot be read.
        StoreError: the store cannot be read.
    """
    graph, subjects, runs = Graph(), list[Node](), list[tuple[Known, Run]]()
    for of, archives in known:
        wanted = {things.archive_id(of, archive) for archive in archives}
        subjects += [things.add_fetched(of, graph, archive) for archive in archives]
        runs += [(of, run) for run in _add_users(of, graph, wanted)]
    return Lineage("archive", tuple(subjects), graph, tuple(runs), tuple(of for of, _ in known))


def add_run(known: Known, graph: Graph, run: Run) -> Nodes:
    """Add all that a run made or used, and what was made from what."""
    made: Nodes = {}
    for role in ROLES:
        made[f"fetch {role}"] = [things.add_fetched(known, graph, one) for one in known.archives(run, role)]
    for step in run.steps:
        if step.step in things.STEPS and step.key and not step.of:
            # Thousands of runs may have the same.
            node = graph.nodes.get(things.step_id(known, step)) or graph.add(things.of_step(known, step))
            made[step.name] = [node]
            things.add_made(known, graph, node, step.step, step.key)
            for before in inputs_of(step, made):
                graph.join(before, node, step.step)
    if study := things.of_study(known, run):
        for node in made.get("train", ()):
            graph.join(graph.add(study), node, "parameters")
    return made


def inputs_of(step: Step, made: Nodes) -> list[Node]:
    """Return what a step of a run was made from, of what the run has made before."""
    if step.step == "decode":
        names = [f"fetch {step.subject}-images", f"fetch {step.subject}-labels"]
    else:
        names = _INPUTS[step.step]
    splits = made.get("quarantine") if step.step not in ("audit", "quarantine") else None
    found: list[Node] = []
    for name in names:
        # What is left of both splits is in the quarantine.
        found += splits if splits and name.startswith("decode ") else made.get(name, [])
    return [*{node.id: node for node in found}.values()]


_BOTH = [f"decode {name}" for name in SPLITS]
_INPUTS = {
    "audit": _BOTH,
    "quarantine": [*_BOTH, "audit"],
    "validate": _BOTH,
    "normalize": ["decode train"],
    "train": ["decode train", "normalize"],
    "evaluate": ["train", "decode test"],
    "confirm": ["train", "evaluate"],
}


def _trained(known: Known, version: Version) -> Run | None:
    """Return the run that registered a version, or else the first that has its model."""
    run = known.run(version.run)
    if run and run.key("train") == version.model:
        return run
    return next((other for other in known.runs if other.key("train") == version.model), None)


def _add_consequences(known: Known, graph: Graph, subject: Node, version: Version) -> None:
    """Add what became of a version: decisions about it and against it, reports and findings of drift."""
    for turn in known.registry.about(version.number):
        graph.join(subject, graph.add(things.of_decision(known, turn)), turn.outcome)
    for turn in known.decisions:
        if turn.before == version.number and turn.version not in (None, version.number) and not turn.by_hand:
            graph.join(subject, graph.add(things.of_decision(known, known.registry.whole(turn))), "compared")
    for run in known.runs:
        if run.version == version.number and (report := things.of_report(known, run)):
            graph.join(subject, graph.add(report), "reported")
    drifts = Drifts(known.store, known.dataset)
    for number in drifts.numbers():
        values = drifts.values(number)
        if values["champion"] == version.number:
            node = Node(f"drift:{known.dataset}/{number}", "drift", known.dataset, values)
            graph.join(subject, graph.add(node), "looked at")


def _add_users(known: Known, graph: Graph, wanted: set[str]) -> list[Run]:
    """Add what runs made from some archives; return these runs."""
    users = [run for run in known.runs if wanted & {things.archive_id(known, archive) for archive in known.used(run)}]
    for run in users:
        add_run(known, graph, run)
    _add_versions(known, graph, {run.key("train") for run in users} - {""})
    return users


def _add_versions(known: Known, graph: Graph, models: Iterable[str]) -> None:
    """Add the versions of models, and the decisions that made them champion."""
    versions = [known.registry.version(number) for number in known.registry.made_of({*models})]
    retired = {version.number for version in known.registry.retired_of(versions)}
    changes = [turn for turn in known.decisions if turn.changed]
    for version in versions:
        node = graph.add(things.of_version(known, version, version.number in retired))
        for step, key in (("model", version.model), ("evaluation", version.evaluation)):
            graph.join(graph.nodes.get(f"{step}:{known.dataset}/{key}"), node, "registered")
        for turn in changes:
            if turn.version == version.number:
                whole = known.registry.whole(turn)
                graph.join(node, graph.add(things.of_decision(known, whole)), turn.outcome)
