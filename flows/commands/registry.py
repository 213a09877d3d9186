"""`idxflow registry`, `promote`, `rollback`: which version is the champion and why, and changing that by hand.

Plain files of the store are all that is read and written: no TensorFlow, no Prefect, no server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any

from cyclopts import App, Parameter

from flows.champions import champion_at, damage, decision_values, differences, version_name, version_values
from flows.commands.options import AsJson, Limit, Reason, StoreFolder
from flows.dataset_in_store import DatasetInStore
from flows.terminal.output import print_json, print_line, print_table, remark, remark_older
from flows.terminal.text import brief, clock, percent
from storage.errors import ConfigError, DamagedEntry
from storage.registry import NO_RUN, Turn, Version, line
from storage.words import counted

MAX_REASON = 1000

app = App(name="registry", help="Show the champion, since when and why; compare versions.")


@app.command
def history(dataset: str, *, limit: Limit = 20, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """List the decisions about the champion, newest first.

    Each line has the time, the change, who asked for it, and why.

    Example: `idxflow registry history mnist --limit 5`

    Args:
        dataset: A data set of the store.
    """
    data = DatasetInStore.open(dataset, store)
    decisions = [decision_values(data, turn) for turn in islice(data.registry.newest(), limit)]
    if as_json:
        return print_json(decisions)
    print_table(map(_cells, decisions))
    if not decisions:
        print_line(f"{dataset}: no decision yet")
    remark_older("decisions", len(decisions), len(data.ledger.names("decisions")))
    return 0


@app.command
def show(dataset: str, version: str = "champion", *, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """Show everything about a version.

    Reads all of its files; exit code 1 if they are damaged.

    Examples: `idxflow registry show mnist` · `idxflow registry show mnist 7 --json`

    Args:
        dataset: A data set of the store.
        version: A version such as `7` or `v7`, or `champion`.
    """
    data = DatasetInStore.open(dataset, store)
    values = version_values(data, data.version(version))
    if as_json:
        print_json(values)
    else:
        _print_version(values)
    return 1 if values["damage"] else 0


@app.command
def at(dataset: str, moment: str, *, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """Show the champion at a date or time, and why.

    Example: `idxflow registry at mnist 2026-05-01`

    Args:
        dataset: A data set of the store.
        moment: A time such as `2026-05-01T09:30` (UTC) or `2026-05-01T09:30+02:00`, or a date, which means the end of
            that day (UTC), or now if it is today.
    """
    data = DatasetInStore.open(dataset, store)
    answer = champion_at(data, moment)
    decision = decision_values(data, answer.decision) if answer.decision else None
    version = answer.decision.after if answer.decision else None
    if as_json:
        values = {"version": version, "decision": decision, "doubt": answer.doubt}
        return print_json({"dataset": dataset, "at": answer.time.isoformat(), **values})
    when = f"{clock(answer.time)} UTC{' (now)' if answer.is_now else ''}"
    if decision:
        since = f"since {clock(decision['time'])} UTC by {_who(decision)}"
        print_line(f"{when}: champion v{version}, {since}: {decision['sentence']}")
    else:
        print_line(f"{when}: no champion yet")
    if answer.doubt:
        remark(answer.doubt)
    elif answer.time > datetime.now(UTC):
        remark(f"{when} is in the future: this is the champion as of now")
    return 0


@app.command
def diff(dataset: str, a: str, b: str, *, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """Show what differs between two versions.

    Compares configuration, data, code, libraries, model and accuracy.

    Example: `idxflow registry diff mnist 6 champion`

    Args:
        dataset: A data set of the store.
        a: A version such as `7` or `v7`, or `champion`.
        b: The version to compare with.
    """
    data = DatasetInStore.open(dataset, store)
    first, second = data.version(a), data.version(b)
    changed = differences(data, first, second)
    if as_json:
        return print_json({"dataset": dataset, "a": first.number, "b": second.number, "differences": changed})
    print_table(
        (f"{part:14} {name:32}", f"{_value(part, values['a'])} → {_value(part, values['b'])}")
        for part, changes in changed.items()
        for name, values in changes.items()
    )
    if not changed:
        print_line(f"v{first.number} and v{second.number} do not differ")
    return 0


def promote(
    dataset: str,
    version: str,
    *,
    force: Annotated[bool, Parameter(negative="", help="Required: confirms that you override the gate.")] = False,
    reason: Reason = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Make a version the champion, overriding the gate.

    The ledger records it as forced, with your reason.

    Example: `idxflow promote mnist 7 --force --reason "new scanner"`

    Args:
        dataset: A data set of the store.
        version: A version such as `7` or `v7`.
    """
    data = DatasetInStore.open(dataset, store)
    wanted = data.version(version)
    if not force:
        raise ConfigError(
            f"expected --force and --reason to promote v{wanted.number} by hand; found no --force; "
            f"add it to override the gate: {_gate(data, wanted)}"
        )
    change = Change("forced", _reason(reason, data), lambda history, now: wanted)
    return _report(_move(data, change), as_json)


def rollback(
    dataset: str,
    *,
    to: Annotated[str, Parameter(help="`previous`, or a version that was champion before.")] = "previous",
    reason: Reason = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Make an earlier champion the champion again.

    Rolling back twice goes back two champions. The ledger records it, with your reason. Later runs do not promote a
    version that was rolled back.

    Example: `idxflow rollback mnist --reason "class 8 is worse"`

    Args:
        dataset: A data set of the store.
    """
    data = DatasetInStore.open(dataset, store)
    if to != "previous":
        data.version(to)
    change = Change("rolled back", _reason(reason, data), lambda history, now: _earlier(data, to, history, now))
    return _report(_move(data, change), as_json)


@dataclass(frozen=True)
class Change:
    """A change of the champion that a person asks for."""

    outcome: str
    """`forced` or `rolled back`."""
    reason: str
    choose: Callable[[list[Turn], int | None], Version]
    """Returns the new champion, from the history and the present champion; called while the registry is locked."""


def _reason(text: str | None, data: DatasetInStore) -> str:
    words = " ".join((text or "").split())
    if not words or not words.isprintable() or len(words) > MAX_REASON:
        found = f"{len(words):,} characters" if words else "none"
        raise ConfigError(
            f"expected --reason with 1 to {MAX_REASON:,} printable characters, for the ledger of {data.name}; "
            f'found {found}; say why in a sentence, such as --reason "class 8 is worse"'
        )
    return words


def _earlier(data: DatasetInStore, to: str, history: list[Turn], now: int | None) -> Version:
    """Return the champion to go back to."""
    if to != "previous":
        wanted = data.version(to)
        if wanted.number not in {turn.after for turn in history if turn.changed}:
            promote = f'promote {data.name} {wanted.number} --force --reason "…"'
            raise ConfigError(
                f"expected a version that was the champion of {data.name} before; found v{wanted.number}, which "
                f"never was; to make it the champion: `{data.store.command(promote)}`"
            )
        return wanted
    champions = [number for number in line(history) if number != now]
    if not champions:
        found = f"none before v{now}" if now else "no champion yet"
        raise ConfigError(
            f"expected an earlier champion of {data.name} to go back to; found {found}; nothing was changed; to "
            f"make any other version the champion: "
            f"`{data.store.command(f'promote {data.name} NUMBER --force --reason …')}`"
        )
    return data.registry.version(champions[-1])


def _move(data: DatasetInStore, change: Change) -> dict[str, Any]:
    """Move the pointer and put that into the ledger; return the decision."""
    with data.registry.deciding(lambda: _say_waiting(data)):
        history = data.registry.outline()
        champion = data.registry.champion()
        target = change.choose(history, champion.number if champion else None)
        if champion and target.number == champion.number:
            raise ConfigError(
                f"expected a version that is not the champion of {data.name}; found v{target.number}, which is; "
                "choose another, or do nothing"
            )
        _check_whole(data, target)
        decision = _decision(data, change, target, champion)
        data.registry.carry_out(decision, NO_RUN)
    return decision


def _say_waiting(data: DatasetInStore) -> None:
    remark(f"{data.name}: another process is deciding about the champion, waiting")


def _check_whole(data: DatasetInStore, version: Version) -> None:
    data.registry.check_kept(version)
    problem = damage(data, version)
    if problem:
        raise DamagedEntry(
            f"expected all files of v{version.number} of {data.name} to be as they were written; {problem}; "
            "nothing was changed; choose another version, restore this one from a backup, or train it again"
        )


def _decision(data: DatasetInStore, change: Change, target: Version, champion: Version | None) -> dict[str, Any]:
    before = f"v{champion.number}" if champion else "no champion"
    past = _last_about(data, target)
    return {
        "outcome": change.outcome,
        "sentence": f"{change.outcome} {before}→v{target.number}: {change.reason}",
        "reason": change.reason,
        "asked_by": "command line",
        "version": target.number,
        "champion": target.number,
        "previous": champion.number if champion else None,
        # What was known of this version: the rules a forced promotion went past, as they were looked at then.
        "rules": list(past.rules) if past else [],
        "newest": max(data.registry.numbers()),
    }


def _last_about(data: DatasetInStore, version: Version) -> Turn | None:
    """Return the gate's last decision about a version."""
    return next((turn for turn in reversed(data.registry.about(version.number)) if not turn.by_hand), None)


def _gate(data: DatasetInStore, version: Version) -> str:
    """Return why the gate did not promote a version."""
    turn = _last_about(data, version)
    broken = [rule for rule in turn.rules if not rule.get("passed")] if turn else []
    if turn and broken:
        failed = "; ".join(f"{r.get('name')}: expected {r.get('limit')}, found {r.get('observed')}" for r in broken)
        return f"it failed {failed}"
    return f"its last decision was: {turn.sentence}" if turn else "the gate has made no decision on this version"


def _report(decision: Mapping[str, Any], as_json: bool) -> int:
    if as_json:
        return print_json(decision)
    print_line(decision["sentence"])
    return 0


def _cells(decision: Mapping[str, Any]) -> tuple[str, ...]:
    before, after = version_name(decision["before"]), version_name(decision["after"])
    change = f"{before}→{after}" if before != after else f"{after} stays"
    missed = "" if decision["took_effect"] else " (did not take effect: the process ended first)"
    what = f"{clock(decision['time'])}  {change:12} {decision['outcome']:12}"
    return what, f"{_who(decision):44}", f"{decision['reason']}{missed}"


def _who(decision: Mapping[str, Any]) -> str:
    asked_by = decision["asked_by"] or "unknown"
    return asked_by if decision["run"] == NO_RUN else f"run {decision['run']} ({asked_by})"


def _value(part: str, value: Any) -> str:
    return percent(value) if part == "accuracy" else brief(value)


def _print_version(values: Mapping[str, Any]) -> None:
    since = f" since {clock(values['champion_since'])} UTC" if values["champion_since"] else ""
    role = f"champion{since}" if values["champion"] else "not the champion"
    (height, width), classes = values["image_shape"], values["classes"]
    rows = {
        "version": f"v{values['version']} of {values['dataset']}, {role}",
        "registered": f"{clock(values['registered'])} UTC by run {values['run']} ({values['asked_by'] or 'unknown'})",
        "accuracy": f"{values['test_accuracy']:.2%} on test, {values['train_accuracy']:.2%} on training",
        "images": f"{height}×{width}, {counted(len(classes), 'class', 'classes')}: {', '.join(classes)}",
        "model": values["model"] + (" (removed by `idxflow gc`)" if values["collected"] else ""),
        "evaluation": values["evaluation"],
        "weights": values["weights_digest"],
        "test data": values["test_digest"],
        "files": values["damage"] or "complete and undamaged",
    }
    for name, text in rows.items():
        print_line(f"{name:12} {text}")
    for decision in values["decisions"]:
        print_line(f"{'decision':12} {'  '.join(_cells(decision))}")
        # A decision by hand repeats the rules it overrode; they are listed with the gate's own decision.
        for rule in decision["rules"] if decision["run"] != NO_RUN else ():
            verdict = "passed" if rule.get("passed") else "failed"
            print_line(f"{'':12}   {verdict}: {rule.get('name')}: {rule.get('limit')}; found {rule.get('observed')}")
