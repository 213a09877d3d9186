"""The registry: numbered model versions, and the one pointer that says which of them is the champion.

    <dataset>/registry/versions/00000007.json   created only if absent, never changed
    <dataset>/registry/retired/00000003.json    its model may be missing from the store: it was collected
    <dataset>/registry/champion.json            replaced in one step, under a lock
    <dataset>/registry/versions.index           made anew from the versions at any time

A version names a model entry and an evaluation entry of the store by their keys. It is created after
both are complete; the pointer is moved after the version is. So the pointer always names something whole.

Who was champion when, and why, is in the ledger. A decision is written there first and then the pointer is
moved, so a process killed between the two leaves a decision that never took effect. No mark is needed to tell:
each decision notes the champion it found (`previous`), read from the pointer under the same lock. So a decision
took effect if the next one found the champion it names, and the last one did if the pointer names it.

Versions and decisions are found by what is in them through an index each (`storage.index`), not by reading all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from storage.errors import DamagedEntry, StoreError
from storage.files import create_json, listed, locked, read_json, write_json
from storage.index import Index
from storage.ledger import Ledger, place, run_of
from storage.records import from_json, to_json
from storage.store import Store, store_errors
from storage.store_format import FORMAT

T = TypeVar("T")

_OF_VERSIONS = ("model", "evaluation", "weights_digest")
_OF_DECISIONS = ("outcome", "version", "previous", "champion", "time", "newest", "test_digest", "policy", "limits")


@dataclass(frozen=True)
class Version:
    """A model that was trained and evaluated, whether or not it became champion."""

    dataset: str
    number: int
    model: str
    """Key of the `train` entry."""
    evaluation: str
    """Key of the `evaluate` entry on the test split it was registered with."""
    weights_digest: str
    test_digest: str
    """Content digest of that test split."""
    test_accuracy: float
    train_accuracy: float
    classes: tuple[str, ...]
    image_shape: tuple[int, int]
    run: str
    time: str
    """When it was registered, ISO 8601, UTC."""
    format: int = 2
    """Of the store, when it was registered; versions of format 2 do not say."""


@dataclass(frozen=True)
class Turn:
    """One decision about the champion, as the ledger has it, and whether it was carried out."""

    time: datetime
    """UTC."""
    outcome: str
    """`promoted`, `kept`, `refused`; by hand: `forced`, `rolled back`."""
    version: int | None
    """What it was about; None when the candidate was refused a number."""
    before: int | None
    """The champion it found."""
    after: int | None
    """The champion it decided on."""
    took_effect: bool
    """False if the process ended before it had moved the pointer."""
    run: str
    asked_by: str | None
    sentence: str
    """With the outcome: `promoted v2: 31 more of …`."""
    reason: str
    """The same without the outcome; what a person gave as the reason where it was by hand."""
    rules: tuple[Mapping[str, Any], ...]
    newest: int
    """By hand: the newest version there was to choose from, else 0."""
    record: str = ""
    """Its name in the ledger."""

    @property
    def changed(self) -> bool:
        """Whether there was another champion afterwards."""
        return self.took_effect and self.before != self.after

    @property
    def by_hand(self) -> bool:
        return self.outcome in BY_HAND


BY_HAND = ("forced", "rolled back")
"""The outcomes of decisions that a person made."""
NO_RUN = "by-hand"
"""What such a decision has instead of a run's id."""


def turns(decisions: Sequence[Mapping[str, Any]], champion: int | None) -> list[Turn]:
    """Return what the ledger's `decisions`, oldest first, did; `champion` is what the pointer names since.

    Raises:
        DamagedEntry: a decision has no time.
    """
    # Each decision noted the champion it found, so it says whether the one before it was carried out.
    met = [*(d.get("previous") for d in decisions[1:]), champion]
    return [_turn(d, d.get("champion") == then) for d, then in zip(decisions, met, strict=bool(decisions))]


def line(history: Sequence[Turn]) -> list[int]:
    """Return the champions that led to the present one, oldest first; going back takes off the last.

    Rolling back twice goes back two champions: what was rolled back is not come back to.
    """
    champions: list[int] = []
    for turn in history:
        if not turn.changed or turn.after is None:
            continue
        if turn.outcome == "rolled back" and turn.after in champions:
            while champions[-1] != turn.after:
                champions.pop()
        else:
            champions.append(turn.after)
    return champions


def _number(path: Path) -> int:
    if not (path.stem.isascii() and path.stem.isdecimal()):
        raise DamagedEntry(f"{path}: expected the number of a version as the name; move it out of the registry")
    return int(path.stem)


def _turn(decision: Mapping[str, Any], took_effect: bool) -> Turn:
    try:
        time = datetime.fromisoformat(decision["time"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedEntry(
            f"expected every decision in the ledger to have a time; found {decision}; restore the record from a backup "
            "or move it out of the ledger"
        ) from error
    sentence = str(decision.get("sentence") or "")
    return Turn(
        time=time,
        outcome=str(decision.get("outcome")),
        version=decision.get("version"),
        before=decision.get("previous"),
        after=decision.get("champion"),
        took_effect=took_effect,
        run=str(decision.get("run") or ""),
        asked_by=decision.get("asked_by"),
        sentence=sentence,
        reason=str(decision.get("reason") or sentence.split(": ", 1)[-1]),
        rules=tuple(decision.get("rules") or ()),
        newest=decision.get("newest") or 0,
        record=str(decision.get("name") or ""),
    )


class Registry:
    """The versions and the champion of one data set, and its ledger.

    One registry serves a whole run or command: no record of the ledger is then read twice.
    """

    def __init__(self, store: Store, dataset: str) -> None:
        self.dataset = dataset
        self.store = store
        self.ledger = Ledger(store, dataset)
        self._folder = store.part(dataset, "registry")
        self._pointer = self._folder / "champion.json"
        self._versions = Index(self._folder / "versions", _OF_VERSIONS, lambda path: vars(self._read(path)))
        self._decisions = self.ledger.index("decisions", _OF_DECISIONS)

    @property
    def indexes(self) -> tuple[Index, Index]:
        """Those of the versions and of the decisions."""
        return self._versions, self._decisions

    def versions(self) -> list[Version]:
        """Return all versions, oldest first.

        Raises:
            DamagedEntry: one of them cannot be read.
            StoreError: they cannot be listed.
        """
        with store_errors(self._folder):
            return [self._read(path) for path in listed(self._folder / "versions", ".json")]

    def version(self, number: int) -> Version:
        """Return one version.

        Raises:
            StoreError: there is no such version.
            DamagedEntry: it cannot be read.
        """
        path = self._path(number)
        with store_errors(path):
            if not path.is_file():
                raise StoreError(
                    f"expected version {number} of {self.dataset!r} at {path}; found none; "
                    f"`{self.store.command(f'registry history {self.dataset}')}` lists the versions"
                )
            return self._read(path)

    def retired(self, version: Version) -> bool:
        """Whether the model of this version was collected (`storage.retention`) and not trained again since."""
        entries = (("train", version.model), ("evaluate", version.evaluation))
        with store_errors(self._folder):
            complete = all((self.store.entries(self.dataset, step) / key).is_dir() for step, key in entries)
            return not complete and self._retired(version.number).is_file()

    def check_kept(self, version: Version) -> None:
        """Raise unless the model of a version can be used.

        Raises:
            StoreError: the model was collected.
        """
        if self.retired(version):
            raise StoreError(
                f"{self.dataset}: expected a version whose model is in the store; that of version {version.number} was "
                f"removed by `idxflow gc`; run {version.run} in the ledger says how to train it again"
            )

    def retire(self, number: int) -> None:
        """Mark a version before its model is removed; it stays in the registry, with its numbers.

        Raises:
            StoreError: it is the champion, or it cannot be written.
        """
        if number == self._pointed():
            raise StoreError(
                f"{self.dataset}: expected a version that can be retired; version {number} is champion; run again"
            )
        with store_errors(self._folder):
            create_json(self._retired(number), {"time": datetime.now(UTC).isoformat(timespec="seconds")})

    def champion(self) -> Version | None:
        """Return the version in use, or None before the first promotion.

        Raises:
            DamagedEntry: the pointer cannot be read, or the version it names is not there.
        """
        number = self._pointed()
        if number is None:
            return None
        with store_errors(self._pointer):
            if not self._path(number).is_file():
                raise DamagedEntry(
                    f"{self._pointer}: expected a version that is there; found {number}; restore "
                    f'{self._path(number)} from a backup, or write {{"version": NUMBER}} of another one there'
                )
        return self.version(number)

    def numbers(self) -> list[int]:
        """Return the numbers of all versions, lowest first.

        Raises:
            StoreError: they cannot be listed.
        """
        with store_errors(self._folder):
            return [_number(path) for path in listed(self._folder / "versions", ".json")]

    def decisions(self) -> list[dict[str, Any]]:
        """Return what the index has of every decision, oldest first, with `run`, and `name` in the ledger.

        That is: outcome, version, previous, champion, time, newest, test_digest, policy and limits, where known.

        Raises:
            DamagedEntry: a decision that is not in the index cannot be read.
        """
        with store_errors(self._folder):
            records = self._decisions.records()
        return [{**records[name], "run": run_of(name), "name": name} for name in sorted(records, key=place)]

    def outline(self) -> list[Turn]:
        """Return every decision, oldest first, as far as the index has it: without a sentence, rules and who asked.

        Needs no lock.

        Raises:
            DamagedEntry: the pointer, or a decision that is not in the index, cannot be read.
        """
        champion, decisions = self._while_standing(self.decisions)
        return turns(decisions, champion)

    def newest(self) -> Iterator[Turn]:
        """Yield every decision, newest first, each read when it is asked for. Needs no lock.

        Raises:
            DamagedEntry: the pointer or a decision cannot be read.
        """
        then, names = self._while_standing(lambda: self.ledger.names("decisions"))
        for name in reversed(names):
            decision = self._named(name)
            yield _turn(decision, decision.get("champion") == then)
            then = decision.get("previous")

    def history(self) -> list[Turn]:
        """Return every decision, oldest first, with whether it was carried out: all of them are read."""
        return list(self.newest())[::-1]

    def whole(self, turn: Turn) -> Turn:
        """Return a decision of `outline` with all there is about it.

        Raises:
            DamagedEntry: it cannot be read.
        """
        return _turn(self._named(turn.record), turn.took_effect)

    def about(self, number: int) -> list[Turn]:
        """Return the decisions about one version, oldest first.

        Raises:
            DamagedEntry: the pointer or a decision cannot be read.
        """
        return [self.whole(turn) for turn in self.outline() if turn.version == number]

    def settled_by_hand(self, weights_digest: str) -> tuple[Version, Turn] | None:
        """Return the version and the decision, if a person decided while a model of these weights could be chosen.

        What a person forced or rolled back is not undone by training the same model again: only models that
        were not registered then are up to the gate. The decision is as far as `outline` has it.
        """
        by_hand = [turn for turn in self.outline() if turn.by_hand and turn.took_effect]
        if not by_hand:
            return None
        alike = [n for n in self._like(weights_digest=weights_digest) if n <= by_hand[-1].newest]
        return (self.version(alike[-1]), by_hand[-1]) if alike else None

    def find(self, model: str, evaluation: str) -> Version | None:
        """Return the version of this model with this evaluation, if it was registered before."""
        numbers = self._like(model=model, evaluation=evaluation)
        return self.version(numbers[0]) if numbers else None

    def made_of(self, keys: Set[str]) -> list[int]:
        """Return the numbers of the versions whose model or evaluation has one of these keys, lowest first."""
        with store_errors(self._folder):
            records = self._versions.records()
        return sorted(_number(Path(n)) for n, of in records.items() if keys & {of["model"], of["evaluation"]})

    def keep_index(self) -> None:
        """Write down what was found in versions and decisions, so that the next one need not read so many of them.

        Call it while `deciding`.
        """
        self._versions.keep()
        self._decisions.keep()

    def register(self, **values: Any) -> Version:
        """Create the next version from the fields of `Version` other than dataset, number, time and format.

        The same model with the same evaluation keeps the number it has.
        """
        with store_errors(self._folder):
            while True:
                number = max(self.numbers(), default=0) + 1
                # After that: a listing made while others register may lack one below the newest it has.
                known = self.find(values["model"], values["evaluation"])
                if known:
                    return known
                time = datetime.now(UTC).isoformat(timespec="seconds")
                version = Version(dataset=self.dataset, number=number, time=time, format=FORMAT, **values)
                # Another run may have taken the number since: then look again and take the next.
                if create_json(self._path(number), to_json(version)):
                    return version

    @contextmanager
    def deciding(self, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Keep others from moving the champion while a decision is made and carried out.

        `on_wait` is called once if another process is deciding.
        """
        with ExitStack() as stack:
            with store_errors(self._folder):
                stack.enter_context(locked(self._folder / "champion.lock", on_wait))
            yield

    def carry_out(self, decision: Mapping[str, Any], run: str) -> None:
        """Record a decision, a `Decision` as JSON values, and move the pointer if it says so. Call it while `deciding`.

        Ledger first: killed between the two, nothing has changed for anyone, and the history says so. The other way
        round, a change would have no reason on record.

        Args:
            run: its id; `NO_RUN` where a person decided.

        Raises:
            StoreError: as `promote`, or the ledger cannot be written.
        """
        changes = decision["champion"] != decision["previous"]
        if changes:
            self.check_kept(self.version(decision["champion"]))
        self.ledger.append("decisions", run, decision)
        if changes:
            self.promote(decision["champion"], run)

    def promote(self, number: int, run: str) -> None:
        """Make `number` the champion, which `carry_out` has recorded. Call it while `deciding`.

        Raises:
            StoreError: there is no such version, its model was collected, or the pointer cannot be written.
        """
        self.check_kept(self.version(number))
        time = datetime.now(UTC).isoformat(timespec="seconds")
        with store_errors(self._folder):
            write_json(self._pointer, {"version": number, "run": run, "time": time})

    def _while_standing(self, read: Callable[[], T]) -> tuple[int | None, T]:
        """Return what the pointer names, and what `read` finds while it does.

        A decision is in the ledger before the pointer moves: if the pointer stood still, none is missing.
        """
        while True:
            champion = self._pointed()
            result = read()
            if self._pointed() == champion:
                return champion, result

    def _named(self, name: str) -> dict[str, Any]:
        return {**self.ledger.record("decisions", name), "name": name}

    def _like(self, **values: str) -> list[int]:
        """Return the numbers of the versions that have these values, lowest first."""
        with store_errors(self._folder):
            records = self._versions.records()
        return sorted(_number(Path(name)) for name, of in records.items() if values.items() <= of.items())

    def _pointed(self) -> int | None:
        try:
            number = self._read_pointer()["version"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(error) from error
        if type(number) is not int:
            raise self._unreadable(f"found {number!r}")
        return number

    def _read_pointer(self) -> dict[str, Any]:
        try:
            return read_json(self._pointer)
        except ValueError:
            by_hand = self._pointer.read_bytes()
            # What `_unreadable` tells people to write.
            if re.fullmatch(rb'\s*\{\s*"version"\s*:\s*\d+\s*\}\s*', by_hand):
                return dict(json.loads(by_hand))
            raise

    def _unreadable(self, why: object) -> DamagedEntry:
        return DamagedEntry(
            f"{self._pointer}: expected the champion's version number; {why}; the newest decision in the ledger "
            'names it as "champion": write {"version": NUMBER} there'
        )

    def _path(self, number: int) -> Path:
        return self._folder / "versions" / f"{number:08d}.json"

    def _retired(self, number: int) -> Path:
        return self._folder / "retired" / f"{number:08d}.json"

    def _read(self, path: Path) -> Version:
        try:
            return from_json(Version, read_json(path))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DamagedEntry(f"{path}: expected a version manifest; {error}; restore it from a backup") from error
