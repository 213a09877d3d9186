"""A lineage as OpenLineage events: runs and their steps as jobs, archives, splits and models as datasets.

Each run has START and COMPLETE, FAIL or ABORT, and so has each of its steps, with the run as its parent. The same run
always gives the same events, so exporting it again changes nothing (https://openlineage.io/docs/spec/object-model).

The ledger has how long each step took and in which order they were, but not when each began. Events are timed as if
archives were fetched side by side, and splits decoded so, and all else one after the other.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any

from flows.lineage import things, tracing
from flows.lineage.graph import Graph
from flows.lineage.known import Known, Run
from flows.lineage.named import Names, listed, producer, valid
from flows.lineage.tracing import Lineage, Nodes
from storage.errors import ConfigError
from storage.records import CUT_OFF, Step
from storage.registry import NO_RUN, PastDecision

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent
    from openlineage.client.facet_v2 import RunFacet

_SIDE_BY_SIDE = ("fetch", "decode")
_ABORTED = ("superseded", *(state for state in CUT_OFF if state != "crashed"))


def check_installed() -> None:
    """Check that the library of OpenLineage is installed.

    Raises:
        ConfigError: it is not.
    """
    with suppress(ModuleNotFoundError):
        if importlib.util.find_spec("openlineage.client"):
            return
    raise ConfigError(
        "expected the package openlineage-python for --openlineage; found none; install the extra `lineage` "
        f"(`{sys.executable} -m pip install 'idxflow[lineage]'`), or leave the option out"
    )


def events_of(lineage: Lineage) -> list[RunEvent]:
    """Return the events of the runs of a lineage, and of the decisions that people made about it."""
    from openlineage.client.facet_v2 import set_producer

    set_producer(producer())
    found: list[RunEvent] = []
    for known, run in lineage.runs:
        found += _of_run(known, run)
    decisions = {node.id for node in lineage.graph.of("decision")}
    for known in lineage.known:
        for turn in known.decisions:
            if turn.run == NO_RUN and things.decision_id(known, turn) in decisions:
                found += _of_decision(known, known.registry.whole(turn))
    return found


@dataclass(frozen=True)
class _Work:
    """A run, or one of its steps: when it was, and what went in and came out."""

    run: str
    step: str
    begins: datetime
    ends: datetime
    state: str = "COMPLETE"
    facets: Mapping[str, RunFacet] = field(default_factory=dict)
    inputs: Sequence[InputDataset] = ()
    outputs: Sequence[OutputDataset] = ()

    def begun(self, names: Names) -> RunEvent:
        return self._event(names, "START", self.begins)

    def ended(self, names: Names) -> RunEvent:
        return self._event(names, self.state, self.ends)

    def _event(self, names: Names, state: str, time: datetime) -> RunEvent:
        from openlineage.client import event_v2
        from openlineage.client.facet_v2 import job_type_job

        kind = job_type_job.JobTypeJobFacet("BATCH", "IDXFLOW", "STEP" if self.step else "RUN")
        return event_v2.RunEvent(
            eventType=event_v2.RunState[state],
            eventTime=time.isoformat(timespec="milliseconds"),
            run=event_v2.Run(names.run_id(self.run, self.step), {**self.facets}),
            job=event_v2.Job(names.namespace, names.job(self.step), {"jobType": kind}),
            inputs=[*self.inputs],
            outputs=[*self.outputs] if state == "COMPLETE" else [],
            producer=producer(),
        )


def _of_run(known: Known, run: Run) -> Iterator[RunEvent]:
    names, made = Names(known), tracing.add_run(known, Graph(), run)
    ends = _time(run.values.get("time"))
    begins = min(_time(run.values.get("started") or run.values.get("time")), ends)
    inputs = [names.input(node) for name, nodes in made.items() if name.startswith("fetch ") for node in nodes]
    outputs = [names.output(node) for node in made.get("train", ())]
    whole = _Work(run.id, "", begins, ends, _state(run), _about_run(run), inputs, outputs)
    yield whole.begun(names)
    for step, first, last in _timed(run.steps, begins, ends):
        facets = {"parent": _parent(names, run), **_about_step(known, step)}
        name = step.name.replace(" ", ".")
        part = _Work(run.id, name, first, last, "COMPLETE", facets, *_exchanged(known, run, step, made))
        yield part.begun(names)
        yield part.ended(names)
    yield whole.ended(names)


def _of_decision(known: Known, turn: PastDecision) -> Iterator[RunEvent]:
    """Yield the events of a decision that a person made."""
    names, time = Names(known), turn.time.astimezone(UTC)
    told = {"outcome": turn.outcome, "reason": valid(turn.reason), "askedBy": valid(turn.asked_by or "unknown")}
    word = "rollback" if turn.outcome == "rolled back" else "promote"
    outputs = [names.champion(turn.after)] if turn.after is not None else []
    work = _Work(turn.record, word, time, time, facets={"idxflow_decision": _custom(told)}, outputs=outputs)
    yield work.begun(names)
    yield work.ended(names)


def _timed(steps: Sequence[Step], begins: datetime, ends: datetime) -> Iterator[tuple[Step, datetime, datetime]]:
    """Yield each step with when it can have begun and ended, never after the run."""
    now = begins
    for name, group in groupby(steps, key=lambda step: step.step):
        last = now
        for step in group:
            first = now if name in _SIDE_BY_SIDE else last
            end = min(first + timedelta(seconds=step.seconds), ends)
            yield step, first, end
            last = max(last, end)
        now = last


def _exchanged(known: Known, run: Run, step: Step, made: Nodes) -> tuple[list[InputDataset], list[OutputDataset]]:
    """Return what went into a step, and what came out."""
    names, nodes = Names(known), made.get(step.name, [])
    if step.step == "fetch":
        return [names.origin(node) for node in nodes], [names.output(node) for node in nodes]
    if step.step in ("decide", "publish"):
        inputs = [names.input(node) for name in ("train", "evaluate") for node in made.get(name, ())]
        return inputs, _concluded(known, run, step)
    # The champion's own model is not one that the run has made.
    before = tracing.inputs_of(step, {**made, "train": []} if step.of else made)
    record = known.described("validate", step.key).record if step.step == "validate" else None
    return [names.input(node, record) for node in before], [names.output(node) for node in nodes]


def _concluded(known: Known, run: Run, step: Step) -> list[OutputDataset]:
    """Return what deciding or publishing has made: a champion, or a report."""
    names = Names(known)
    if step.step == "publish":
        report = things.of_report(known, run)
        return [names.output(report)] if report else []
    decision = run.values.get("decision") or {}
    before, after = decision.get("previous"), decision.get("champion")
    return [names.champion(after)] if type(after) is int and after != before else []


def _state(run: Run) -> str:
    if run.values.get("state") in _ABORTED:
        return "ABORT"
    return "FAIL" if run.values.get("error") else "COMPLETE"


def _parent(names: Names, run: Run) -> RunFacet:
    from openlineage.client.facet_v2 import parent_run

    return parent_run.ParentRunFacet(parent_run.Run(names.run_id(run.id)), parent_run.Job(names.namespace, names.job()))


def _about_run(run: Run) -> dict[str, RunFacet]:
    from openlineage.client.facet_v2 import error_message_run, execution_parameters_run, nominal_time_run

    values = run.values
    told = ("state", "sentence", "version", "champion", "asked_by", "profile", "study", "test_accuracy")
    known = {_camel(name): values[name] for name in told if values.get(name) is not None}
    facets: dict[str, RunFacet] = {
        "idxflow_run": _custom({"run": run.id, **known}),
        "executionParameters": execution_parameters_run.ExecutionParametersRunFacet(
            [*listed(values.get("config") or {})]
        ),
    }
    if error := values.get("error"):
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(valid(str(error.get("sentence"))), "Python")
    with suppress(ValueError):
        day = date.fromisoformat(str(values.get("as_of")))
        first, last = (f"{moment}T00:00:00+00:00" for moment in (day, day + timedelta(days=1)))
        facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(first, last)
    return facets


def _about_step(known: Known, step: Step) -> dict[str, RunFacet]:
    told = {"reused": step.reused, "reason": valid(step.reason), "summary": valid(step.summary), "key": step.key}
    made_from = known.described(step.step, step.key).made_from if step.step in things.STEPS else {}
    used = {name: made_from[name] for name in ("code", "libraries", "parameters") if made_from.get(name)}
    return {"idxflow_step": _custom({**told, "seconds": step.seconds, **used})}


def _custom(values: Mapping[str, Any]) -> RunFacet:
    """Return a facet of our own: what the specification allows besides the facets that it names."""
    from openlineage.client.facet_v2 import RunFacet

    return RunFacet().with_additional_properties(**values)  # type: ignore[return-value]


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _time(text: Any) -> datetime:
    """Return a time of the ledger, UTC; the beginning of 1970 if it is none."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
