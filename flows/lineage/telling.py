"""A lineage as lines for people: what was made from what, indented."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flows.lineage.asked import lost_archives, runs_without_archives
from flows.lineage.graph import Graph, Kind, Node
from flows.lineage.tracing import Lineage
from flows.terminal.text import clock, percent, size
from storage.registry import NO_RUN
from storage.words import brief, counted

_COLUMN = 20
"""Where the second column begins."""
_MOST = 20
"""How many of a kind are listed; JSON has all."""
_FIRST = ("optimizer", "schedule", "learning_rate", "epochs", "batch_size", "hidden", "conv", "activation")
"""The training parameters that are shown; JSON has all."""

Line = tuple[int, str, str]
"""How deep it is indented, what it is about, and a text."""


def lines_of(lineage: Lineage) -> Iterator[str]:
    """Yield the lines about a lineage."""
    if lineage.about == "model":
        rows = _of_version(lineage)
    elif len(lineage.subjects) == 1:
        rows = _of_archive(lineage, lineage.subjects[0])
    else:
        rows = _of_archives(lineage)
    for depth, label, text in rows:
        start = f"{'  ' * depth}{label}"
        # Two spaces separate columns, also after a long label.
        yield (f"{start:<{_COLUMN - 2}}  {text}" if text else start).rstrip()


def _of_version(lineage: Lineage) -> Iterator[Line]:
    graph, version = lineage.graph, lineage.subjects[0]
    facts = version.facts
    yield 0, f"v{facts['version']} of {version.dataset}, {_standing(version)}", ""
    yield 1, "weights", str(facts["weights_digest"])
    yield 1, "accuracy", f"{percent(facts['test_accuracy'])} on test, {percent(facts['train_accuracy'])} on training"
    yield 0, "made from", ""
    told: set[str] = set()
    for node in graph.before(version, "model"):
        yield from _made_from(graph, node, 1, told)
    for node in graph.before(version, "evaluation"):
        yield from _made_from(graph, node, 1, told)
    for kind in ("validation", "audit", "quarantine"):
        for node in graph.of(kind):
            yield from _made_from(graph, node, 1, told)
    yield 0, "what became of it", ""
    yield from _consequences(lineage, version)


def _standing(version: Node) -> str:
    terms: Sequence[Mapping[str, Any]] = version.facts["terms"]
    if version.facts["champion"]:
        since = f" since {clock(terms[-1]['from'])} UTC" if terms else ""
        return f"the champion{since}"
    return "was champion before" if terms else "was never champion"


def _made_from(graph: Graph, node: Node, depth: int, told: set[str]) -> Iterator[Line]:
    """Yield a thing and what it was made from, each in full once."""
    if node.id in told:
        return
    told.add(node.id)
    yield depth, _label(node), _text(graph, node)
    if node.kind == "model":
        yield from _training(graph, node, depth + 1)
    inputs = graph.before(node, *_SHOWN_BEFORE.get(node.kind, ()))
    for before in inputs[:_MOST]:
        yield from _made_from(graph, before, depth + 1, told)
    if len(inputs) > _MOST:
        yield depth + 1, "…", f"and {len(inputs) - _MOST:,} more, which --json lists"


_SHOWN_BEFORE: Mapping[Kind, tuple[Kind, ...]] = {
    "model": ("normalization", "split", "quarantine"),
    "evaluation": ("split", "quarantine"),
    "normalization": ("split", "quarantine"),
    "quarantine": ("split", "audit"),
    "split": ("archive",),
}


def _label(node: Node) -> str:
    if node.kind == "split":
        return f"{node.facts.get('name') or ''} split".strip()
    return str(node.facts["role"]) if node.kind == "archive" else node.kind


def _text(graph: Graph, node: Node) -> str:
    """Return what a thing is; what the ledger says of it, if it is no longer in the store."""
    if node.kind == "archive":
        return _archive(node, graph)
    words = _TEXTS[node.kind](node.facts) if node.state == "kept" and node.kind in _TEXTS else None
    return f"{words or node.facts.get('summary') or node.facts.get('key')}{_state(node)}"


def _state(node: Node) -> str:
    return {"kept": "", "removed": " (removed by `idxflow gc`)", "damaged": " (damaged; `idxflow verify` says more)"}[
        node.state
    ]


def _archive(node: Node, graph: Graph) -> str:
    facts = node.facts
    if facts.get("several"):
        return f"{counted(facts['several'], 'archive')}, no longer known{_state(node)}"
    words = [str(facts["file"])] if "file" in facts else []
    words += [f"sha256 {facts['sha256'][:12]}…"]
    words += [f"from {facts['source']}"] if "source" in facts else []
    run = next(iter(graph.before(node, "run")), None)
    words += [f"first used {clock(_when(run))} UTC"] if run else []
    return f"{', '.join(words)}{_state(node)}"


def _when(run: Node) -> str:
    return str(run.facts.get("started") or run.facts.get("time") or "")


def _split(facts: Mapping[str, Any]) -> str:
    aside = facts.get("set_aside") or 0
    without = f", without {aside:,} that were set aside" if aside else ""
    return f"{counted(facts['rows'], 'row')}{without}, digest {facts['digest'][:12]}…"


def _quarantine(facts: Mapping[str, Any]) -> str:
    aside = sum(facts["set_aside"].values())
    reasons: dict[str, int] = {}
    for by_check in facts["reasons"].values():
        for check, rows in by_check.items():
            reasons[check] = reasons.get(check, 0) + rows
    why = f" ({', '.join(f'{check} {rows:,}' for check, rows in sorted(reasons.items()))})" if reasons else ""
    return f"{counted(aside, 'row')} set aside{why}, {facts['released']:,} released by people"


def _audit(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['flagged_rows']:,} of {facts['rows']:,} labels likely wrong, {facts['equal_rows']:,} test images also "
        f"in training"
    )


def _validation(facts: Mapping[str, Any]) -> str:
    return f"{counted(facts['checks'], 'check')}, {counted(facts['warnings'], 'warning')}, {facts['failed']:,} failed"


def _normalization(facts: Mapping[str, Any]) -> str:
    return f"{counted(facts['rows'], 'row')}, {facts.get('held_out_rows') or 0:,} more held out"


def _model(facts: Mapping[str, Any]) -> str:
    own = f", made by {facts['own']['name']}" if facts.get("own") else ""
    return (
        f"{facts['parameters']:,} weights{own}, epoch {facts['chosen_epoch']:,} of {facts['epochs_run']:,}, fitted to "
        f"{counted(facts['fitted_rows'], 'row')}"
    )


def _evaluation(facts: Mapping[str, Any]) -> str:
    return f"{facts['correct']:,} of {facts['rows']:,} test images right, {percent(facts['accuracy'])}"


_TEXTS = {
    "split": _split,
    "quarantine": _quarantine,
    "audit": _audit,
    "validation": _validation,
    "normalization": _normalization,
    "model": _model,
    "evaluation": _evaluation,
}


def _training(graph: Graph, model: Node, depth: int) -> Iterator[Line]:
    """Yield how a model was trained: run, parameters, code and libraries."""
    for run in graph.before(model, "run"):
        facts, config = run.facts, run.facts.get("config") or {}
        yield depth, "run", f"{facts['run']}, {clock(_when(run))} UTC, by {facts.get('asked_by') or 'unknown'}"
        chosen = [f"{name} {brief(config[name])}" for name in _FIRST if config.get(name) not in (None, [])]
        words = [f"profile {facts.get('profile') or 'unknown'}", f"seed {config.get('seed', 'unknown')}"]
        yield depth, "parameters", ", ".join([*words, *chosen])
        if facts.get("as_of"):
            yield depth, "data as of", str(facts["as_of"])
    for study in graph.before(model, "study"):
        trial = study.facts.get("trial")
        yield depth, "study", f"{study.facts['key']}, trial {trial}{_state(study)}"
    made_from = model.facts.get("made_from") or {}
    if code := made_from.get("code"):
        yield depth, "code", f"{counted(len(code), 'module')}, whose digests --json lists"
    if libraries := made_from.get("libraries"):
        yield depth, "libraries", ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))


def _consequences(lineage: Lineage, version: Node) -> Iterator[Line]:
    graph, number = lineage.graph, version.facts["version"]
    decisions = [node.facts for node in graph.after(version, "decision")]
    yield from ((1, "decision", _decision(facts)) for facts in decisions if facts["version"] == number)
    yield from ((1, "champion", _term(term)) for term in version.facts["terms"])
    for node in graph.after(version, "report"):
        yield 1, "report", f"{node.facts['where']}{_state(node)}"
    for node in graph.after(version, "drift"):
        yield 1, "drift", f"{clock(node.facts['time'])}  {node.facts['sentence']}"
    if version.state == "removed":
        yield 1, "removed", f"`idxflow gc` has removed the files of v{number}; the ledger keeps what is above"
    if against := [f"v{facts['version']} {facts['outcome']}" for facts in decisions if facts["version"] != number]:
        yield 1, "compared", f"with {counted(len(against), 'candidate')}: {_listed(against)}"
    yield from _also(version)


def _also(version: Node) -> Iterator[Line]:
    if answered := version.facts["answered"]:
        yield 1, "answered", f"{counted(answered, 'image')} in the log of predictions"
    if others := version.facts["same_weights"]:
        yield 1, "same weights", _listed([f"v{other}" for other in others])


def _decision(facts: Mapping[str, Any]) -> str:
    who = facts["asked_by"] or "unknown"
    by = who if facts["run"] == NO_RUN else f"run {facts['run']}"
    return f"{clock(facts['time'])}  {facts['sentence']} ({by})"


def _term(term: Mapping[str, Any]) -> str:
    until = f"to {clock(term['to'])} UTC, then v{term['next']}" if term["to"] else "UTC until now"
    return f"{clock(term['from'])} {until}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST:,} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


def _of_archive(lineage: Lineage, archive: Node) -> Iterator[Line]:
    graph, facts = lineage.graph, archive.facts
    yield 0, f"{facts.get('file') or 'archive'}, {facts['role']} of {archive.dataset}{_state(archive)}", ""
    yield 1, "sha256", f"{facts.get('sha256') or 'not known'}{'…' if archive.state != 'kept' else ''}"
    if "payload" in facts and facts["payload"] != facts.get("sha256"):
        yield 1, "decompressed", f"sha256 {facts['payload']}"
    if "bytes" in facts:
        rows = f", {counted(facts['rows'], 'row')}" if "rows" in facts else ""
        yield 1, "size", f"{size(facts['bytes'])}{rows}"
    if "source" in facts:
        yield 1, "from", str(facts["source"])
    for run in graph.before(archive, "run"):
        by = run.facts.get("asked_by") or "unknown"
        yield 1, "first used", f"{clock(_when(run))} UTC by run {run.facts['run']} ({by})"
    yield 0, "made from it", ""
    yield from _descendants(lineage, [archive])
    yield from _unknown(lineage)


def _of_archives(lineage: Lineage) -> Iterator[Line]:
    """Yield the lines about several archives, or none."""
    name, digest = lineage.file
    if not lineage.subjects:
        yield 0, f"{name}, sha256 {digest}", ""
        yield 1, "no run in this store has used it", ""
        yield from _unknown(lineage)
        return
    yield 0, counted(len(lineage.subjects), "archive"), ""
    for archive in lineage.subjects[:_MOST]:
        yield 1, str(archive.facts["role"]), f"{archive.dataset}: {_archive(archive, lineage.graph)}"
        yield from ((depth + 1, label, text) for depth, label, text in _verdict(lineage.graph, [archive]))
    if len(lineage.subjects) > _MOST:
        yield 1, "…", f"and {len(lineage.subjects) - _MOST:,} more, which --json lists"
    yield from _unknown(lineage)


def _unknown(lineage: Lineage) -> Iterator[Line]:
    lost = sum(runs_without_archives(known) for known in lineage.known)
    if lost:
        yield 0, "not known", lost_archives(lost)


def _descendants(lineage: Lineage, archives: Sequence[Node]) -> Iterator[Line]:
    graph = lineage.graph
    yield from _verdict(graph, archives)
    splits = [split for archive in archives for split in graph.after(archive, "split")]
    for split in splits[-_MOST:]:
        yield 1, _label(split), _text(graph, split)
        for version in _versions(graph, split, trained=split.facts.get("name") != "test"):
            facts = version.facts
            yield 2, f"v{facts['version']}", f"{percent(facts['test_accuracy'])} on test, run {facts['run']}"
            for term in facts["terms"]:
                yield 3, "champion", _term(term)
    if len(splits) > _MOST:
        yield 1, "…", f"and {len(splits) - _MOST:,} earlier splits, which --json lists"


def _verdict(graph: Graph, archives: Sequence[Node]) -> Iterator[Line]:
    """Yield which versions were trained or tested on archives, and which of these is in use."""
    splits = [split for archive in archives for split in graph.after(archive, "split")]
    for name, word in (("train", "trained on it"), ("test", "tested on it")):
        of = [split for split in splits if _name(split, graph) == name]
        versions = _unique(version for split in of for version in _versions(graph, split, trained=name == "train"))
        if not of:
            continue
        yield 1, word, _numbers(versions) or "no version"
        yield 1, "were champion", _numbers([v for v in versions if v.facts["terms"]]) or "none of them"
        yield 1, "in use now", _numbers([v for v in versions if v.facts["champion"]]) or "none of them"
    if not splits:
        yield 1, "nothing", "no run has decoded it"


def _name(split: Node, graph: Graph) -> str:
    """Return the name of a split, from its archives' role if its files are removed."""
    archives = graph.before(split, "archive")
    return str(split.facts.get("name") or (archives[0].facts["role"].partition("-")[0] if archives else ""))


def _numbers(versions: Sequence[Node]) -> str:
    return _listed([f"v{version.facts['version']}" for version in versions])


def _unique(nodes: Iterator[Node]) -> list[Node]:
    found = {node.id: node for node in nodes}
    return sorted(found.values(), key=lambda node: (node.dataset, node.facts["version"]))


def _versions(graph: Graph, split: Node, trained: bool) -> list[Node]:
    """Return the versions that were trained, or tested, on a split."""
    kind: Kind = "model" if trained else "evaluation"
    starts = [split, *graph.after(split, "quarantine")]
    made = [node for start in starts for node in graph.after(start, kind)]
    return _unique(version for node in made for version in graph.after(node, "version"))
