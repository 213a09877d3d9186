"""Compare what a run has recorded with what was made again, and say where they first differ, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from flows.reproducing.recorded import Kept, Recorded
from storage.differences import Difference, differences, flat
from storage.errors import IdxflowError
from storage.files import digest_of
from storage.outcomes import steps_of
from storage.records import (
    Archive,
    Audit,
    Behaviour,
    Confirmation,
    Environment,
    Evaluation,
    Normalization,
    Quarantine,
    Split,
    TrainedModel,
    Validation,
    from_json,
)
from storage.runtime import processor
from storage.words import brief
from storage.workers.fingerprint import named

COUNT = "correct"
"""The value that is a number of rows, not a digest."""
_RECORDS: Mapping[str, type[Any]] = {
    "fetch": Archive,
    "decode": Split,
    "audit": Audit,
    "quarantine": Quarantine,
    "validate": Validation,
    "normalize": Normalization,
    "train": TrainedModel,
    "evaluate": Evaluation,
    "confirm": Confirmation,
    "probe": Behaviour,
}
_FILES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "normalize": {"held-out rows": ("held_out.npz", "sides.npz")},
    "evaluate": {"answers": ("predictions.npz",)},
    "confirm": {"answers": ("probability.npz",)},
}
"""What is compared by the SHA-256 of a file of an entry, the first of these that it has."""
_EXACT = ("fetch", "decode", "quarantine")
"""Steps that compute nothing that a processor could round."""
_SCORES = ("rows", "correct", "loss", "confusion")


@dataclass(frozen=True)
class Result:
    """What a step has made, as far as it is compared: from `entry.json`, or of the decision."""

    values: Mapping[str, str]
    """Digests, and the number of right answers, by what they are of."""
    made_from: Mapping[str, Mapping[str, Any]] | None = None
    """As `Plan.made_from`; None if that is unknown."""
    device: str = ""
    """What a model was trained on; empty if that is unknown."""


@dataclass(frozen=True)
class Line:
    """One value that is compared."""

    step: str
    what: str
    recorded: str | None
    now: str | None
    """None if the step was not done, or has failed."""
    follows: Literal["no", "perhaps", "yes"] = "no"
    """Whether it differs because something before it does; perhaps, if its own code or libraries changed, too."""

    @property
    def same(self) -> bool | None:
        """None if one of the two is missing."""
        return None if self.recorded is None or self.now is None else self.recorded == self.now


@dataclass(frozen=True)
class Why:
    """Why the first step that differs does."""

    code: tuple[Difference, ...] = ()
    """Modules of the step that are not what they were."""
    libraries: tuple[Difference, ...] = ()
    parameters: tuple[Difference, ...] = ()
    environment: tuple[Difference, ...] = ()
    """Python, and packages that no key names."""
    processor: str = ""
    """How the processor differs, or what TensorFlow trains on; empty if it is the same or unknown."""
    is_processor_known: bool = False
    is_origin_known: bool = True
    """Whether it was recorded what code and libraries have made the result."""
    damage: str = ""
    """What is wrong with the recorded result itself."""
    where: str = ""
    """The path or address of the recorded result."""

    @property
    def sentence(self) -> str:
        """The reasons, as a clause."""
        reasons = [f"the code of {named([each.name for each in self.code])} changed"] if self.code else []
        reasons += map(_in_words, (*self.libraries, *self.parameters))
        reasons += [f"another processor ({self.processor})"] if self.processor else []
        if self.damage:
            reasons.append(f"the recorded result is damaged: {self.damage}")
        elif not reasons and self.environment:
            reasons.append(f"nothing that its key names, but {', '.join(map(_in_words, self.environment))}")
        if self.damage or (reasons and self.is_processor_known):
            return ", ".join(reasons)
        return "; ".join(filter(None, (", ".join(reasons) or self._nothing_found, self._not_recorded)))

    @property
    def _nothing_found(self) -> str:
        same = "code, libraries and processor" if self.is_processor_known else "code and libraries"
        where = f"a file was changed, or the computation is not deterministic: look at {self.where}"
        return f"{same} are the same, so {where}" if self.is_origin_known else where

    @property
    def _not_recorded(self) -> str:
        missing = [] if self.is_origin_known else ["its code and libraries"]
        missing += [] if self.is_processor_known else ["the processor, and another kind rounds differently"]
        return f"not recorded: {', '.join(missing)}" if missing else ""


@dataclass(frozen=True)
class Comparison:
    """All lines, in the order of the steps, and what they say."""

    lines: tuple[Line, ...]
    failed: tuple[str, str] | None = None
    """The step that ended with an error now, and the sentence of that, although the run has a result of it."""
    why: Why | None = None
    changed: tuple[Difference, ...] = field(default=(), compare=False)
    """Code and libraries that are not what they were, of all steps."""

    @property
    def first(self) -> str | None:
        """The first step that differs; None if all are the same."""
        return next((line.step for line in self.lines if line.same is False), self.failed[0] if self.failed else None)

    @property
    def reproduced(self) -> bool:
        """Whether all that can be compared is the same."""
        return self.first is None

    @property
    def sentence(self) -> str:
        """The answer."""
        if self.failed and self.failed[0] == self.first:
            return f"{self.first} differs first: it fails now: {self.failed[1]}"
        if self.first:
            return f"{self.first} differs first: {self.why.sentence if self.why else 'why is unknown'}"
        number = sum(line.same is True and line.what != COUNT for line in self.lines)
        missing = sum(line.same is None for line in self.lines)
        if missing:
            return f"reproduced: all {number} digests that can be compared are the same; {missing} cannot be compared"
        return f"reproduced: all {number} digests are the same"


def result_of(step: str, described: Mapping[str, Any]) -> Result:
    """Return what is compared of an entry.

    Args:
        step: the step in `tasks`, such as `decode`.
        described: its `entry.json`.
    """
    record, files = described["record"], described["files"]
    values: dict[str, str] = {}
    # What another version has recorded less is not compared.
    with suppress(KeyError):
        values.update(_of_record(step, record))
    for what, names in _FILES.get(step, {}).items():
        if name := next((each for each in names if each in files), None):
            values[what] = files[name]["sha256"]
    return Result(values, described["made_from"], record.get("device") or "")


def _of_record(step: str, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if step == "fetch":
        yield "SHA-256", record["sha256"]
    elif step == "decode":
        yield "content", record["digest"]
    elif step == "quarantine":
        left = {split["name"]: split["digest"] for split in record["left"]}
        yield "rows set aside", digest_of([record["set_aside"], record["reasons"], record["released"], left])
    elif step == "train":
        yield "weights", record["weights_digest"]
    elif step == "evaluate":
        yield COUNT, f"{record['correct']:,} of {record['rows']:,}"
        yield "scores", digest_of([record[name] for name in _SCORES])
    elif step == "probe":
        yield "answers", digest_of([record[name] for name in ("images", "tests", "named")])
    elif step in ("audit", "validate", "normalize"):
        yield {"audit": "tables", "validate": "verdict", "normalize": "statistics"}[step], record["digest"]


def recorded_results(run: Recorded) -> dict[str, Result]:
    """Return what a run has recorded, by the name of the step: of an entry that is gone, what the decision says."""
    results = {name: result_of(kept.step.step, kept.entry) for name, kept in run.steps.items() if kept.entry}
    decision = run.record.decision
    if decision:
        known = {"train": ("weights", decision.weights_digest)}
        if "quarantine" not in run.steps:
            digests = {"train": decision.train_digest, "test": decision.test_digest}
            known |= {f"decode {name}": ("content", digest) for name, digest in digests.items()}
        results |= {
            name: Result({what: digest})
            for name, (what, digest) in known.items()
            if digest and name in run.steps and name not in results
        }
    return results


def compared(
    run: Recorded,
    before: Mapping[str, Result],
    now: Mapping[str, Result],
    failed: tuple[str, str] | None,
    left_out: Collection[str] = (),
) -> Comparison:
    """Compare two results of each step, and find out why the first difference is one.

    Args:
        before: what the run has recorded, by the name of the step.
        now: what was made again.
        failed: the step that has ended with an error now, and its sentence.
        left_out: steps that are not compared.
    """
    order = [name for name in dict.fromkeys((*run.steps, *before)) if name not in left_out]
    lines: list[Line] = []
    for name in order:
        lines += _lines(name, before.get(name), now.get(name), [line.step for line in lines if line.same is False])
    comparison = Comparison(tuple(lines), failed, changed=tuple(_changed(before, now)))
    first = comparison.first
    if first is None or (failed and failed[0] == first):
        return comparison
    return Comparison(comparison.lines, failed, _why(run, first, before[first], now[first]), comparison.changed)


def _lines(name: str, before: Result | None, now: Result | None, different: Sequence[str]) -> Iterator[Line]:
    old, new = (each.values if each else {} for each in (before, now))
    for what in dict.fromkeys((*old, *new)) or ("result",):
        line = Line(name, what, old.get(what), new.get(what))
        is_later = line.same is False and any(step != name for step in different)
        yield replace(line, follows=_follows(before, now)) if is_later else line


def _follows(before: Result | None, now: Result | None) -> Literal["no", "perhaps", "yes"]:
    """Return whether a result differs because something before it does."""
    if not (before and now and before.made_from and now.made_from):
        return "perhaps"
    changes = {each.part for each in _differences(before, now)}
    if "inputs" not in changes:
        return "no"
    return "yes" if changes.isdisjoint(("code", "libraries")) else "perhaps"


def _changed(before: Mapping[str, Result], now: Mapping[str, Result]) -> Iterator[Difference]:
    seen = set[tuple[str, str]]()
    for name in before:
        for each in _differences(before[name], now.get(name)):
            if each.part in ("code", "libraries") and (each.part, each.name) not in seen:
                seen.add((each.part, each.name))
                yield each


def _differences(before: Result, now: Result | None) -> list[Difference]:
    if not (now and before.made_from and now.made_from):
        return []
    return differences(flat(before.made_from), flat(now.made_from))


def _why(run: Recorded, name: str, before: Result, now: Result) -> Why:
    found = _differences(before, now)
    by_part = {part: tuple(_certain(each for each in found if each.part == part)) for part in before.made_from or {}}
    then, here = _environment_of(run, name), _here()
    known = then.processor if then else ""
    environment = [
        Difference("environment", what, old, new)
        for what, old, new in _surroundings(then, here)
        if what not in (before.made_from or {}).get("libraries", {})
    ]
    kept = run.steps.get(name)
    return Why(
        by_part.get("code", ()),
        by_part.get("libraries", ()),
        by_part.get("parameters", ()),
        tuple(environment),
        _processor(known, here.processor, before, now),
        bool(known) or name.split()[0] in _EXACT,
        before.made_from is not None,
        _damage(run, kept) if kept else "",
        kept.where if kept else run.data.store.objects.where(f"{run.data.name}/ledger"),
    )


def _processor(then: str, here: str, before: Result, now: Result) -> str:
    if before.device and now.device and before.device != now.device:
        return f"{before.device} → {now.device}"
    return processor.changed(then, here) if then else ""


def _certain(found: Iterable[Difference]) -> list[Difference]:
    """Return the differences of values that both have; without any, all: another version may record others."""
    each = list(found)
    return [one for one in each if one.old is not None and one.new is not None] or each


def _surroundings(then: Environment | None, here: Environment) -> Iterator[tuple[str, str, str]]:
    if then is None:
        return
    if then.python != here.python:
        yield "Python", then.python, here.python
    for package, version in then.packages.items():
        now = here.packages.get(package, version)
        if now != version:
            yield package, version, now


def _here() -> Environment:
    from tasks.report.past_runs import environment

    return environment()


def _environment_of(run: Recorded, name: str) -> Environment | None:
    """Return where a result was made: by this run, or by the earlier one whose result it has reused."""
    kept = run.steps.get(name)
    if kept is None or not kept.step.reused:
        return run.record.environment
    for values in run.data.ledger.newest("runs"):
        for step in steps_of(values):
            if (step.step, step.key) == (kept.step.step, kept.step.key) and not step.reused:
                try:
                    return from_json(Environment, values["environment"])
                except (KeyError, TypeError, AttributeError):
                    return None
    return None


def _damage(run: Recorded, kept: Kept) -> str:
    """Return what is wrong with the files of a recorded result; empty if nothing is, or it is gone."""
    if kept.entry is None:
        return ""
    try:
        run.data.store.get(run.data.name, kept.step.step, kept.step.key, _RECORDS[kept.step.step])
    except IdxflowError as error:
        return str(error)
    return ""


def _in_words(difference: Difference) -> str:
    return f"{difference.name} {brief(difference.old)} → {brief(difference.new)}"
