"""The graph of a lineage: things that were made, the runs that made them, and what was made from what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "archive",
    "split",
    "audit",
    "quarantine",
    "validation",
    "normalization",
    "model",
    "evaluation",
    "confirmation",
    "version",
    "decision",
    "drift",
    "report",
    "run",
    "study",
]
State = Literal["kept", "removed", "damaged"]
"""Whether its files are in the store; `removed` if they were there."""


@dataclass(frozen=True)
class Node:
    """A thing, or a run."""

    id: str
    """Unique in a store, such as `archive:digits/bd62…`."""
    kind: Kind
    dataset: str
    facts: Mapping[str, Any]
    """JSON values about it."""
    state: State = "kept"

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "dataset": self.dataset,
            "state": self.state,
            "facts": dict(self.facts),
        }


@dataclass(frozen=True)
class Edge:
    """A thing went into another one, or a run made a thing."""

    source: str
    target: str
    how: str
    """The step that did it, or what was done, such as `decode`, `made` or `registered`."""

    def to_json(self) -> dict[str, str]:
        return {"from": self.source, "to": self.target, "how": self.how}


class Graph:
    """Nodes and edges, each once, in the order in which they were added."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._edges: dict[tuple[str, str], Edge] = {}
        self._before: defaultdict[str, list[Node]] = defaultdict(list)
        self._after: defaultdict[str, list[Node]] = defaultdict(list)

    def add(self, node: Node) -> Node:
        """Add a node, unless the graph has it; return that of the graph."""
        return self.nodes.setdefault(node.id, node)

    def join(self, source: Node | None, target: Node | None, how: str) -> None:
        """Add an edge, unless the graph has it, or one of both is unknown."""
        if source and target and (source.id, target.id) not in self._edges:
            self._edges[source.id, target.id] = Edge(source.id, target.id, how)
            self._before[target.id].append(source)
            self._after[source.id].append(target)

    def before(self, node: Node, *kinds: Kind) -> list[Node]:
        """Return what went into a node, of these kinds, in the order in which it was added."""
        return [found for found in self._before[node.id] if found.kind in kinds]

    def after(self, node: Node, *kinds: Kind) -> list[Node]:
        """Return what a node went into, of these kinds, in the order in which it was added."""
        return [found for found in self._after[node.id] if found.kind in kinds]

    def of(self, *kinds: Kind) -> Iterator[Node]:
        """Yield the nodes of these kinds."""
        return (node for node in self.nodes.values() if node.kind in kinds)

    def to_json(self) -> dict[str, Any]:
        return {
            "nodes": [node.to_json() for node in self.nodes.values()],
            "edges": [edge.to_json() for edge in self._edges.values()],
        }
