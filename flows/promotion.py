"""Change the champion by hand: promote a version past the gate, or go back to an earlier champion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flows.champions import damage
from flows.dataset_in_store import DatasetInStore
from flows.terminal.output import remark
from storage.errors import ConfigError, DamagedEntry
from storage.registry import NO_RUN, Overtaken, PastDecision, Version, line

MAX_REASON = 1000


def promote(data: DatasetInStore, version: str, force: bool, reason: str | None) -> dict[str, Any]:
    """Make a version the champion, overriding the gate; return the decision as JSON values.

    Args:
        version: a number such as `7` or `v7`.
        force: confirms that the gate should be overridden.
        reason: for the ledger.

    Raises:
        ConfigError: `force` or the reason is missing, there is no such version, or it is the champion.
        StoreError: a file of the version is missing or damaged, or the ledger cannot be written.
    """
    target = data.version(version)
    if not force:
        raise ConfigError(
            f"expected --force and --reason to promote v{target.number} by hand; found no --force; "
            f"add it to override the gate: {_why_not(data, target)}"
        )
    return _carry_out(data, Change("forced", _reason(reason, data), lambda history, now: target))


def roll_back(data: DatasetInStore, to: str, reason: str | None) -> dict[str, Any]:
    """Make an earlier champion the champion again; return the decision as JSON values.

    Args:
        to: `previous`, or the number of a version that was champion before.
        reason: for the ledger.

    Raises:
        ConfigError: the reason is missing, or there is no such champion to go back to.
        StoreError: a file of the version is missing or damaged, or the ledger cannot be written.
    """
    if to != "previous":
        data.version(to)
    change = Change("rolled back", _reason(reason, data), lambda history, now: _earlier(data, to, history, now))
    return _carry_out(data, change)


@dataclass(frozen=True)
class Change:
    """A change of the champion that a person asks for."""

    outcome: str
    """`forced` or `rolled back`."""
    reason: str
    choose: Callable[[list[PastDecision], int | None], Version]
    """Returns the new champion, from the history and the current champion; may be called again."""


def _reason(text: str | None, data: DatasetInStore) -> str:
    words = " ".join((text or "").split())
    if not words or not words.isprintable() or len(words) > MAX_REASON:
        actual = f"{len(words):,} characters" if words else "none"
        raise ConfigError(
            f"expected --reason with 1 to {MAX_REASON:,} printable characters, for the ledger of {data.name}; "
            f'found {actual}; say why in a sentence, such as --reason "class 8 is worse"'
        )
    return words


def _earlier(data: DatasetInStore, to: str, history: list[PastDecision], now: int | None) -> Version:
    """Return the champion to go back to."""
    if to != "previous":
        target = data.version(to)
        if target.number not in {turn.after for turn in history if turn.changed}:
            promote = f'promote {data.name} {target.number} --force --reason "…"'
            raise ConfigError(
                f"expected a version that was the champion of {data.name} before; found v{target.number}, which "
                f"never was; to make it the champion: `{data.store.command(promote)}`"
            )
        return target
    champions = [number for number in line(history) if number != now]
    if not champions:
        actual = f"none before v{now}" if now else "no champion yet"
        raise ConfigError(
            f"expected an earlier champion of {data.name} to go back to; found {actual}; nothing was changed; to "
            f"make any other version the champion: "
            f"`{data.store.command(f'promote {data.name} NUMBER --force --reason …')}`"
        )
    return data.registry.version(champions[-1])


def _carry_out(data: DatasetInStore, change: Change) -> dict[str, Any]:
    """Decide and record the decision; return it."""
    with data.registry.deciding(lambda: _remark_waiting(data)):
        while True:
            try:
                return _decided(data, change)
            except Overtaken:
                remark(f"{data.name}: another process has decided about the champion meanwhile; deciding again")


def _decided(data: DatasetInStore, change: Change) -> dict[str, Any]:
    """Decide and record the decision; return it.

    Raises:
        Overtaken: another process has decided meanwhile.
    """
    # First: if something is decided while the rest is read, this decision is overtaken.
    standing = data.registry.standing()
    target = change.choose(data.registry.outline(), standing.champion)
    if target.number == standing.champion:
        raise ConfigError(
            f"expected a version other than the champion of {data.name}; v{target.number} is the champion already; "
            "nothing was changed; choose another version"
        )
    _check_whole(data, target)
    decision = _decision(data, change, target, standing.champion)
    data.registry.carry_out(decision, NO_RUN, standing.number)
    return decision


def _remark_waiting(data: DatasetInStore) -> None:
    remark(f"{data.name}: waiting for another process that is deciding about the champion")


def _check_whole(data: DatasetInStore, version: Version) -> None:
    data.registry.check_kept(version)
    problem = damage(data, version)
    if problem:
        raise DamagedEntry(
            f"expected all files of v{version.number} of {data.name} to be as they were written; {problem}; "
            "nothing was changed; choose another version, restore this one from a backup, or train it again"
        )


def _decision(data: DatasetInStore, change: Change, target: Version, champion: int | None) -> dict[str, Any]:
    before = f"v{champion}" if champion else "no champion"
    past = _last_about(data, target)
    return {
        "outcome": change.outcome,
        "sentence": f"{change.outcome} {before}→v{target.number}: {change.reason}",
        "reason": change.reason,
        "asked_by": "command line",
        "version": target.number,
        "champion": target.number,
        "previous": champion,
        # The rules from the gate's last decision on this version, which a forced promotion overrides.
        "rules": list(past.rules) if past else [],
        "newest": max(data.registry.numbers()),
    }


def _last_about(data: DatasetInStore, version: Version) -> PastDecision | None:
    """Return the gate's last decision about a version."""
    return next((turn for turn in reversed(data.registry.about(version.number)) if not turn.by_hand), None)


def _why_not(data: DatasetInStore, version: Version) -> str:
    """Return why the gate did not promote a version."""
    turn = _last_about(data, version)
    broken = [rule for rule in turn.rules if not rule.get("passed")] if turn else []
    if turn and broken:
        failed = "; ".join(f"{r.get('name')}: expected {r.get('limit')}, found {r.get('observed')}" for r in broken)
        return f"it failed {failed}"
    return f"its last decision was: {turn.sentence}" if turn else "the gate has made no decision on this version"
