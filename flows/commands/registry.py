"""`idxflow registry`: which version is the champion and why, from plain files of the store."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from cyclopts import App

from flows.champions import champion_at, decision_values, version_differences, version_name, version_values
from flows.commands.options import AsJson, Limit, StoreFolder
from flows.dataset_in_store import DatasetInStore
from flows.terminal.output import print_json, print_line, print_table, remark, remark_older
from flows.terminal.text import clock, percent
from storage.registry import NO_RUN
from storage.words import brief, counted

app = App(name="registry", help="Show the champion and its history; compare versions.")


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
    remark_older("decisions", len(decisions), len(data.registry.decisions()))
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
    changed = version_differences(data, first, second)
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


def _intervals(worth: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the line with the interval of the champion's accuracy, and the one that allows for many decisions."""
    if worth is None:
        return {}
    lines = {"interval": f"{worth['low']:.2%} to {worth['high']:.2%} (95%)"}
    if worth["sentence"]:
        lines["worth"] = worth["sentence"]
    return lines


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
        **_intervals(values["worth"]),
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
        # A manual decision repeats the rules it overrode; they are listed with the gate's own decision.
        for rule in decision["rules"] if decision["run"] != NO_RUN else ():
            verdict = "passed" if rule.get("passed") else "failed"
            print_line(f"{'':12}   {verdict}: {rule.get('name')}: {rule.get('limit')}; found {rule.get('observed')}")
