"""The commands about versions and champions: history, show, at, diff; promote and roll back by hand.

They read and write plain files of the store: no TensorFlow, no Prefect, no server.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from itertools import islice
from typing import Annotated, Any

from cyclopts import App, Parameter

from flows import datasets
from flows.commands.options import AsJson, Limit, Reason, StoreFolder
from flows.commands.output import remark, say_json, say_table
from flows.settings import store_root
from storage.errors import ConfigError, DamagedEntry
from storage.ledger import TOLERANCE, Ledger
from storage.records import Evaluation, TrainedModel
from storage.registry import NO_RUN, Registry, Turn, Version, line
from storage.store import Store
from storage.words import counted, meant, written

MAX_REASON = 1000

app = App(name="registry", help="Show which model is the champion, since when and why, and compare versions.")


@app.command
def history(dataset: str, *, limit: Limit = 20, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """List the decisions about the champion, newest first: when, what changed, who asked, and why.

    Args:
        dataset: A data set of the store.
    """
    place = open_place(dataset, store)
    turns = [_told(turn, place) for turn in islice(place.registry.newest(), limit)]
    if as_json:
        return say_json(turns)
    say_table(map(_cells, turns))
    if not turns:
        print(f"{dataset}: no decision yet")
    remark_older("decisions", len(turns), len(place.ledger.names("decisions")))
    return 0


@app.command
def show(dataset: str, version: str = "champion", *, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """Show everything about a version. Exit code 1 if its files are damaged.

    Args:
        dataset: A data set of the store.
        version: A version such as `7` or `v7`, or `champion`.
    """
    place = open_place(dataset, store)
    found = _shown(place, _version(place, version))
    if as_json:
        say_json(found)
    else:
        _print_shown(found)
    return 1 if found["damage"] else 0


@app.command
def at(dataset: str, moment: str, *, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """Show which version was the champion at a date or time, and why.

    Example: `idxflow registry at mnist 2026-05-01`

    Args:
        dataset: A data set of the store.
        moment: A time such as `2026-05-01T09:30` (UTC) or `2026-05-01T09:30+02:00`, or a date, which means the end of
            that day (UTC), or now if it is today.
    """
    place, now = open_place(dataset, store), datetime.now(UTC)
    asked = _moment(moment)
    # Nobody knows the rest of today. A time in the future is answered for clocks that were wrong.
    so_far = asked.date() == now.date() and asked > now
    asked = now if so_far else asked
    changes = [turn for turn in place.registry.outline() if turn.changed]
    found = next((turn for turn in reversed(changes) if turn.time <= asked), None)
    turn = place.registry.whole(found) if found else None
    told = _told(turn, place) if turn else None
    doubt = _doubt(place, changes, found, asked)
    if as_json:
        version = turn.after if turn else None
        return say_json(
            {"dataset": dataset, "at": asked.isoformat(), "version": version, "decision": told, "doubt": doubt}
        )
    when = f"{asked:%Y-%m-%d %H:%M:%S} UTC" + (" (now)" if so_far else "")
    if turn and told:
        print(f"{when}: champion v{turn.after}, since {_clock(told['time'])} UTC by {_who(told)}: {turn.sentence}")
    else:
        print(f"{when}: no champion yet")
    if doubt:
        remark(doubt)
    elif asked > now:
        remark(f"{when} is in the future: this is the champion as of now")
    return 0


@app.command
def diff(dataset: str, a: str, b: str, *, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """Show the differences between two versions: configuration, data, code, libraries, accuracy.

    Args:
        dataset: A data set of the store.
        a: A version such as `7` or `v7`, or `champion`.
        b: The version to compare with.
    """
    place = open_place(dataset, store)
    first, second = _version(place, a), _version(place, b)
    found = _differences(_made(place, first), _made(place, second))
    if as_json:
        return say_json({"dataset": dataset, "a": first.number, "b": second.number, "differences": found})
    say_table(
        (f"{part:14} {name:32}", f"{_brief(part, change['a'])} → {_brief(part, change['b'])}")
        for part, changes in found.items()
        for name, change in changes.items()
    )
    if not found:
        print(f"v{first.number} and v{second.number} do not differ")
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
    """Make a version the champion, overriding the gate. The ledger records it as forced, with your reason.

    Example: `idxflow promote mnist 7 --force --reason "new scanner"`

    Args:
        dataset: A data set of the store.
        version: A version such as `7` or `v7`.
    """
    place = open_place(dataset, store)
    wanted = _version(place, version)
    if not force:
        raise ConfigError(
            f"expected --force and --reason to promote v{wanted.number} by hand; found no --force; "
            f"add it to override the gate: {_gate(place, wanted)}"
        )
    change = Change("forced", _reason(reason, place), lambda history, now: wanted)
    return _report(_move(place, change), as_json)


def rollback(
    dataset: str,
    *,
    to: Annotated[str, Parameter(help="`previous`, or a version that was champion before.")] = "previous",
    reason: Reason = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Make an earlier champion the champion again. The ledger records it, with your reason.

    Rolling back twice goes back two champions. Later runs do not promote a version that was rolled back.

    Example: `idxflow rollback mnist --reason "class 8 is worse"`

    Args:
        dataset: A data set of the store.
    """
    place = open_place(dataset, store)
    if to != "previous":
        _version(place, to)
    change = Change("rolled back", _reason(reason, place), lambda history, now: _earlier(place, to, history, now))
    return _report(_move(place, change), as_json)


@dataclass(frozen=True)
class Place:
    """A data set of a store."""

    store: Store
    dataset: str

    @property
    def registry(self) -> Registry:
        return Registry(self.store, self.dataset)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.store, self.dataset)

    @property
    def remedy(self) -> str:
        """The command that makes what is not there yet."""
        return f"`{datasets.run_command(self.store, self.dataset)}`"


@dataclass(frozen=True)
class Change:
    """What a person asks of the champion."""

    outcome: str
    """`forced` or `rolled back`."""
    reason: str
    choose: Callable[[list[Turn], int | None], Version]
    """Returns the version that is to be champion, from the history and the present champion; called while deciding."""


def open_place(dataset: str, store: str | None) -> Place:
    """Return a data set that the store has runs or versions of.

    Raises:
        ConfigError: there is none of this name.
    """
    root = store_root(store)
    known = {path.parent.name for part in ("registry", "ledger") for path in root.glob(f"*/{part}")}
    opened = Store(root)
    datasets.check_known(opened, dataset, known)
    return Place(opened, dataset)


def _version(place: Place, text: str) -> Version:
    """Return the version that `7`, `v7` or `champion` names."""
    if text == "champion":
        champion = place.registry.champion()
        if champion is None:
            raise ConfigError(f"expected a champion of {place.dataset}; found none yet; run it: {place.remedy}")
        return champion
    digits = text.removeprefix("v")
    known = place.registry.numbers()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and int(digits) in known):
        newest = max(known, default=0)
        choice = "give v1, the only one" if newest == 1 else f"give one of v1 to v{newest}"
        there = choice if known else f"it has no version yet: {place.remedy}"
        known_names = ("champion", *(f"v{number}" for number in known))
        raise ConfigError(
            f"expected a version of {place.dataset}, a number or `champion`; found {text[:40]!r}"
            f"{meant(text, known_names, alike=0.75)}; {there}"
        )
    return place.registry.version(int(digits))


def _reason(text: str | None, place: Place) -> str:
    words = " ".join((text or "").split())
    if not words or not words.isprintable() or len(words) > MAX_REASON:
        found = f"{len(words):,} characters" if words else "none"
        raise ConfigError(
            f"expected --reason with 1 to {MAX_REASON:,} printable characters, for the ledger of {place.dataset}; "
            f'found {found}; say why in a sentence, such as --reason "class 8 is worse"'
        )
    return words


def _moment(text: str) -> datetime:
    """Return the time (UTC) that `text` means; a date means its end, a time without a zone is UTC."""
    try:
        try:
            return datetime.combine(date.fromisoformat(text), time.max, UTC)
        except ValueError:
            found = datetime.fromisoformat(text)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"expected a date or a time such as 2026-05-01 or 2026-05-01T09:30+02:00; found {text[:40]!r}; "
            "use one of these forms"
        ) from error


def _earlier(place: Place, to: str, history: list[Turn], now: int | None) -> Version:
    """Return the champion to go back to."""
    if to != "previous":
        wanted = _version(place, to)
        if wanted.number not in {turn.after for turn in history if turn.changed}:
            promote = f'promote {place.dataset} {wanted.number} --force --reason "…"'
            raise ConfigError(
                f"expected a version that was the champion of {place.dataset} before; found v{wanted.number}, which "
                f"never was; to make it the champion: `{place.store.command(promote)}`"
            )
        return wanted
    champions = [number for number in line(history) if number != now]
    if not champions:
        found = f"none before v{now}" if now else "no champion yet"
        raise ConfigError(
            f"expected an earlier champion of {place.dataset} to go back to; found {found}; nothing was changed; to "
            f"make any other version the champion: "
            f"`{place.store.command(f'promote {place.dataset} NUMBER --force --reason …')}`"
        )
    return place.registry.version(champions[-1])


def _move(place: Place, change: Change) -> dict[str, Any]:
    """Move the pointer and put that into the ledger; return the decision."""
    with place.registry.deciding(lambda: _say_waiting(place)):
        history = place.registry.outline()
        champion = place.registry.champion()
        target = change.choose(history, champion.number if champion else None)
        if champion and target.number == champion.number:
            raise ConfigError(
                f"expected a version that is not the champion of {place.dataset}; found v{target.number}, which is; "
                "choose another, or do nothing"
            )
        _check_whole(place, target)
        decision = _decision(place, change, target, champion)
        place.registry.carry_out(decision, NO_RUN)
    return decision


def _say_waiting(place: Place) -> None:
    print(f"{place.dataset}: another process is deciding about the champion, waiting", file=sys.stderr, flush=True)


def _check_whole(place: Place, version: Version) -> None:
    place.registry.check_kept(version)
    damage = _damage(place, version)
    if damage:
        raise DamagedEntry(
            f"expected all files of v{version.number} of {place.dataset} to be as they were written; {damage}; "
            "nothing was moved; choose another version, restore this one from a backup, or train it again"
        )


def _verify(place: Place, version: Version) -> None:
    """Read every file of the version once.

    Raises:
        DamagedEntry: a file is missing or changed, or is not of this version.
    """
    model = place.store.get(place.dataset, "train", version.model, TrainedModel)
    score = place.store.get(place.dataset, "evaluate", version.evaluation, Evaluation)
    for record in (model, score):
        if record.weights_digest != version.weights_digest:
            raise DamagedEntry(
                f"{record.folder}: expected weights {version.weights_digest[:12]}…, as v{version.number} of "
                f"{place.dataset} has; found {record.weights_digest[:12]}…"
            )


def _decision(place: Place, change: Change, target: Version, champion: Version | None) -> dict[str, Any]:
    before = f"v{champion.number}" if champion else "no champion"
    past = _last_about(place, target)
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
        "newest": max(place.registry.numbers()),
    }


def _last_about(place: Place, version: Version) -> Turn | None:
    """Return the gate's last decision about a version."""
    return next((turn for turn in reversed(place.registry.about(version.number)) if not turn.by_hand), None)


def _gate(place: Place, version: Version) -> str:
    """Say what the gate would have needed to promote `version`."""
    turn = _last_about(place, version)
    broken = [rule for rule in turn.rules if not rule.get("passed")] if turn else []
    if turn and broken:
        said = "; ".join(f"{r.get('name')}: expected {r.get('limit')}, found {r.get('observed')}" for r in broken)
        return f"it failed {said}"
    return f"its last decision was: {turn.sentence}" if turn else "the gate has made no decision on this version"


def _report(decision: dict[str, Any], as_json: bool) -> int:
    if as_json:
        return say_json(decision)
    print(decision["sentence"])
    return 0


def _told(turn: Turn, place: Place) -> dict[str, Any]:
    """Return a decision as JSON values."""
    return {
        "time": turn.time.isoformat(timespec="milliseconds"),
        "outcome": turn.outcome,
        "version": turn.version,
        "before": turn.before,
        "after": turn.after if turn.took_effect else turn.before,
        "took_effect": turn.took_effect,
        "run": turn.run,
        "asked_by": turn.asked_by or _asked_by(place, turn.run),
        "reason": turn.reason,
        "sentence": turn.sentence,
        "rules": list(turn.rules),
    }


def _doubt(place: Place, changes: Sequence[Turn], found: Turn | None, asked: datetime) -> str | None:
    """Say that a clock was wrong where it matters to which of the `changes`, oldest first, was the last by then.

    The last one with an earlier time is taken to be it. By right clocks, it is also the last before the first one
    with a later time. (A time that is still to come is certainly wrong.)
    """
    past = [turn for turn in changes if turn.time <= datetime.now(UTC) + TOLERANCE]
    after = next((n for n, turn in enumerate(past) if turn.time > asked), len(past))
    other = past[after - 1] if after else None
    if other == found:
        return None
    names = " or ".join(_name(turn.after if turn else None) for turn in (found, other))
    return (
        f"the clock was put back between changes of the champion, so the answer is uncertain: {names}, of which the "
        f"first is shown; `{place.store.command(f'registry history {place.dataset}')}` shows the order, "
        f"`{place.store.command('verify')}` the wrong times"
    )


def _asked_by(place: Place, run: str) -> str | None:
    """Return who asked for a run, if the ledger has it."""
    return (place.ledger.find("runs", run) or {}).get("asked_by") or None


def _line(turn: Mapping[str, Any]) -> str:
    return "  ".join(_cells(turn))


def _cells(turn: Mapping[str, Any]) -> tuple[str, ...]:
    before, after = _name(turn["before"]), _name(turn["after"])
    change = f"{before}→{after}" if before != after else f"{after} stays"
    missed = "" if turn["took_effect"] else " (did not take effect: the process ended first)"
    what = f"{_clock(turn['time'])}  {change:12} {turn['outcome']:12}"
    return what, f"{_who(turn):44}", f"{turn['reason']}{missed}"


def _who(turn: Mapping[str, Any]) -> str:
    asked = turn["asked_by"] or "unknown"
    return asked if turn["run"] == NO_RUN else f"run {turn['run']} ({asked})"


def _name(number: int | None) -> str:
    return "none" if number is None else f"v{number}"


def _clock(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _shown(place: Place, version: Version) -> dict[str, Any]:
    champion = place.registry.champion()
    current = champion is not None and champion.number == version.number
    last = next((t for t in reversed(place.registry.outline()) if t.changed), None)
    return {
        "dataset": place.dataset,
        "version": version.number,
        "champion": current,
        "champion_since": last.time.isoformat(timespec="milliseconds") if last and current else None,
        "registered": version.time,
        "run": version.run,
        "asked_by": _asked_by(place, version.run),
        "test_accuracy": version.test_accuracy,
        "train_accuracy": version.train_accuracy,
        "classes": list(version.classes),
        "image_shape": list(version.image_shape),
        "model": version.model,
        "evaluation": version.evaluation,
        "weights_digest": version.weights_digest,
        "test_digest": version.test_digest,
        "collected": place.registry.retired(version),
        "damage": _damage(place, version),
        "decisions": [_told(turn, place) for turn in place.registry.about(version.number)],
    }


def _damage(place: Place, version: Version) -> str | None:
    if place.registry.retired(version):
        return None
    try:
        _verify(place, version)
    except DamagedEntry as error:
        return str(error)
    return None


def _print_shown(found: Mapping[str, Any]) -> None:
    since = f"champion since {_clock(found['champion_since'])} UTC" if found["champion_since"] else "champion"
    rows = {
        "version": f"v{found['version']} of {found['dataset']}, {since if found['champion'] else 'not the champion'}",
        "registered": f"{_clock(found['registered'])} UTC by run {found['run']} ({found['asked_by'] or 'unknown'})",
        "accuracy": f"{found['test_accuracy']:.2%} on test, {found['train_accuracy']:.2%} on training",
        "images": f"{found['image_shape'][0]}×{found['image_shape'][1]}, "
        f"{counted(len(found['classes']), 'class', 'classes')}: {', '.join(found['classes'])}",
        "model": found["model"] + (" (removed by `idxflow gc`)" if found["collected"] else ""),
        "evaluation": found["evaluation"],
        "weights": found["weights_digest"],
        "test data": found["test_digest"],
        "files": found["damage"] or "complete and undamaged",
    }
    for name, text in rows.items():
        print(f"{name:12} {text}")
    for turn in found["decisions"]:
        print(f"{'decision':12} {_line(turn)}")
        # A decision by hand repeats the rules it went past; they stand at the gate's own decision.
        for rule in turn["rules"] if turn["run"] != NO_RUN else ():
            verdict = "passed" if rule.get("passed") else "failed"
            print(f"{'':12}   {verdict}: {rule.get('name')}: {rule.get('limit')}; found {rule.get('observed')}")


def _made(place: Place, version: Version) -> dict[str, dict[str, Any]]:
    """Return what a version was made from and what came of it, by part and name."""
    train = place.store.made_from(place.dataset, "train", version.model)
    score = place.store.made_from(place.dataset, "evaluate", version.evaluation)
    run = place.ledger.find("runs", version.run) or {}
    return {
        # The run's own configuration; the entry's where the run was killed before the ledger had it.
        "training": {"profile": run.get("profile"), **(run.get("config") or train["parameters"])},
        "data": {**train["inputs"], "test": version.test_digest},
        "code": _merged(train["code"], score["code"]),
        "libraries": _merged(train["libraries"], score["libraries"]),
        "model": {"weights": version.weights_digest, "classes": version.classes, "image size": version.image_shape},
        "accuracy": {"training": version.train_accuracy, "test": version.test_accuracy},
    }


def _merged(train: Mapping[str, Any], score: Mapping[str, Any]) -> dict[str, Any]:
    """Return both, with the names that training and scoring have in another state told apart."""
    apart = {name for name in train.keys() & score.keys() if train[name] != score[name]}
    return {
        f"{name} ({step})" if name in apart else name: value
        for step, values in (("training", train), ("scoring", score))
        for name, value in values.items()
    }


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    found = {part: dict(_changes(a[part], b[part])) for part in a}
    return {part: changes for part, changes in found.items() if changes}


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in sorted(a.keys() | b.keys()):
        if a.get(name) != b.get(name):
            yield name, {"a": a.get(name), "b": b.get(name)}


def _brief(part: str, value: Any) -> str:
    if part == "accuracy":
        return f"{value:.2%}"
    text = f"{value:.6g}" if isinstance(value, float) else written(value)
    return text if len(text) <= 48 else f"{text[:12]}…"


def remark_older(what: str, shown: int, there: int) -> None:
    """Say how many more there are than are shown, and how to see them; on standard error, it is none of them."""
    if shown < there:
        remark(f"{there - shown:,} older {what} are not shown; --limit {there} shows all {there:,}")
