"""The registry: numbered model versions, and a pointer to the champion.

    <dataset>/registry/versions/00000007.json   created only if absent, never changed
    <dataset>/registry/retired/00000003.json    marks a version whose model may have been removed by `gc`
    <dataset>/registry/champion.json            replaced atomically, under a lock
    <dataset>/registry/versions.index           can be rebuilt from the versions at any time

A version names a model entry and an evaluation entry of the store by their keys. It is created after
both are complete, and the pointer is moved after the version is created, so the pointer always names a
complete version.

The ledger records who was champion when, and why. A decision is written there before the pointer is moved,
so a process killed between the two leaves a decision that never took effect. No extra mark is needed to tell:
each decision records the champion it found (`previous`), read from the pointer under the same lock. A decision
took effect if the next one found the champion it names; the last one did if the pointer names its champion.

Versions and decisions have one index each (`storage.index`), so a search by content need not read every file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from storage.errors import DamagedEntry, StoreError
from storage.files import MAX_JSON_BYTES
from storage.index import Index
from storage.ledger import Ledger, place, run_of
from storage.objects import sealed
from storage.records import from_json, to_json
from storage.store import CHAMPION, Store, store_errors
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
    """Format of the store when it was registered; versions of format 2 do not record it."""


@dataclass(frozen=True)
class PastDecision:
    """One decision about the champion, as recorded in the ledger, and whether it was carried out."""

    time: datetime
    """UTC."""
    outcome: str
    """`promoted`, `kept`, `refused`; by hand: `forced`, `rolled back`."""
    version: int | None
    """The version it was about; None if the candidate was refused before it was registered."""
    before: int | None
    """The champion before the decision."""
    after: int | None
    """The champion it decided on."""
    took_effect: bool
    """False if the process ended before it moved the pointer."""
    run: str
    asked_by: str | None
    sentence: str
    """Outcome and reason: `promoted v2: 31 more of …`."""
    reason: str
    """The sentence without the outcome; for a manual decision, the reason that the person gave."""
    rules: tuple[Mapping[str, Any], ...]
    newest: int
    """For a manual decision, the newest version at that time; otherwise 0."""
    record: str = ""
    """Its name in the ledger."""

    @property
    def changed(self) -> bool:
        """Whether it replaced the champion."""
        return self.took_effect and self.before != self.after

    @property
    def by_hand(self) -> bool:
        return self.outcome in BY_HAND


BY_HAND = ("forced", "rolled back")
"""The outcomes of manual decisions."""
NO_RUN = "by-hand"
"""The run id of manual decisions."""


def turns(decisions: Sequence[Mapping[str, Any]], champion: int | None) -> list[PastDecision]:
    """Return the ledger's `decisions`, oldest first, as turns; `champion` is the version that the pointer names now.

    Raises:
        DamagedEntry: a decision has no time.
    """
    # Each decision recorded the champion it found, which shows whether the previous decision was carried out.
    met = [*(d.get("previous") for d in decisions[1:]), champion]
    return [_turn(d, d.get("champion") == then) for d, then in zip(decisions, met, strict=bool(decisions))]


def line(history: Sequence[PastDecision]) -> list[int]:
    """Return the champions that led to the current one, oldest first; a rollback removes the last.

    Rolling back twice goes back two champions: it never returns to one that was rolled back.
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


def _turn(decision: Mapping[str, Any], took_effect: bool) -> PastDecision:
    try:
        time = datetime.fromisoformat(decision["time"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedEntry(
            f"expected every decision in the ledger to have a time; found {decision}; restore the record from a backup "
            "or move it out of the ledger"
        ) from error
    sentence = str(decision.get("sentence") or "")
    return PastDecision(
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

    Use one registry for a whole run or command, so that no record of the ledger is read twice.
    """

    def __init__(self, store: Store, dataset: str) -> None:
        self.dataset = dataset
        self.store = store
        self.ledger = Ledger(store, dataset)
        self._objects = store.objects
        self._folder = store.key(dataset, "registry")
        self._pointer = f"{self._folder}/champion.json"
        self._versions = Index(
            store.objects,
            store.root,
            f"{self._folder}/versions",
            _OF_VERSIONS,
            lambda name: vars(self._read(self._number(name))),
        )
        self._decisions = self.ledger.index("decisions", _OF_DECISIONS)

    @property
    def indexes(self) -> tuple[Index, Index]:
        """The indexes of the versions and of the decisions."""
        return self._versions, self._decisions

    def versions(self) -> list[Version]:
        """Return all versions, oldest first.

        Raises:
            DamagedEntry: one of them cannot be read.
            StoreError: they cannot be listed.
        """
        with self._errors():
            return [self._read(number) for number in self.numbers()]

    def version(self, number: int) -> Version:
        """Return one version.

        Raises:
            StoreError: the version does not exist.
            DamagedEntry: it cannot be read.
        """
        try:
            return self._read(number)
        except FileNotFoundError as error:
            raise StoreError(
                f"expected version {number} of {self.dataset!r} at {self._objects.where(self._path(number))}; found "
                f"none; `{self.store.command(f'registry history {self.dataset}')}` lists the versions"
            ) from error

    def retired(self, version: Version) -> bool:
        """Return whether the model of this version was removed by `gc` (`storage.retention`) and not yet retrained."""
        entries = (("train", version.model), ("evaluate", version.evaluation))
        with self._errors():
            complete = all(self.store.has(self.dataset, step, key) for step, key in entries)
            return not complete and self._exists(self._retired(version.number))

    def check_kept(self, version: Version) -> None:
        """Check that the model of a version is in the store.

        Raises:
            StoreError: the model was removed by `gc`.
        """
        if self.retired(version):
            raise StoreError(
                f"{self.dataset}: expected a version whose model is in the store; that of version {version.number} was "
                f"removed by `idxflow gc`; run {version.run} in the ledger says how to train it again"
            )

    def retire(self, number: int) -> None:
        """Mark a version before its model is removed; the version and its figures stay in the registry.

        Raises:
            StoreError: it is the champion, or the mark cannot be written.
        """
        if number == self._pointed():
            raise StoreError(
                f"{self.dataset}: expected a version that can be retired; version {number} is champion; run again"
            )
        time = datetime.now(UTC).isoformat(timespec="seconds")
        with self._errors():
            sealed.create(self._objects, self._retired(number), {"time": time})

    def champion(self) -> Version | None:
        """Return the version in use, or None before the first promotion.

        Raises:
            DamagedEntry: the pointer cannot be read, or the version it names does not exist.
        """
        number = self._pointed()
        return None if number is None else self.version(number)

    def numbers(self) -> list[int]:
        """Return the numbers of all versions, lowest first.

        Raises:
            StoreError: they cannot be listed.
        """
        with self._errors():
            found = self._objects.list(f"{self._folder}/versions").objects
        return [self._number(version.name) for version in found if version.name.endswith(".json")]

    def decisions(self) -> list[dict[str, Any]]:
        """Return the indexed fields of every decision, oldest first, with its `run` and its `name` in the ledger.

        The fields are outcome, version, previous, champion, time, newest, test_digest, policy and limits, if known.

        Raises:
            DamagedEntry: a decision that is not in the index cannot be read.
        """
        with self._errors():
            records = self._decisions.records()
        return [{**records[name], "run": run_of(name), "name": name} for name in sorted(records, key=place)]

    def outline(self) -> list[PastDecision]:
        """Return every decision from the index, oldest first: without sentence, reason, rules and `asked_by`.

        Needs no lock.

        Raises:
            DamagedEntry: the pointer, or a decision that is not in the index, cannot be read.
        """
        champion, decisions = self._while_standing(self.decisions)
        return turns(decisions, champion)

    def newest(self) -> Iterator[PastDecision]:
        """Yield every decision, newest first, reading each on demand. Needs no lock.

        Raises:
            DamagedEntry: the pointer or a decision cannot be read.
        """
        then, names = self._while_standing(lambda: self.ledger.names("decisions"))
        for name in reversed(names):
            decision = self._named(name)
            yield _turn(decision, decision.get("champion") == then)
            then = decision.get("previous")

    def history(self) -> list[PastDecision]:
        """Return every decision, oldest first, reading all records."""
        return list(self.newest())[::-1]

    def whole(self, turn: PastDecision) -> PastDecision:
        """Return a decision of `outline` with all its fields.

        Raises:
            DamagedEntry: it cannot be read.
        """
        return _turn(self._named(turn.record), turn.took_effect)

    def about(self, number: int) -> list[PastDecision]:
        """Return the decisions about one version, oldest first.

        Raises:
            DamagedEntry: the pointer or a decision cannot be read.
        """
        return [self.whole(turn) for turn in self.outline() if turn.version == number]

    def manual_decision_about(self, weights_digest: str) -> tuple[Version, PastDecision] | None:
        """Return the manual decision that already ruled on a model with these weights, and the model's version.

        Training the same model again does not undo what a person forced or rolled back: the gate decides only on
        models that were not registered then. The decision has only the fields that `outline` has.
        """
        by_hand = [turn for turn in self.outline() if turn.by_hand and turn.took_effect]
        if not by_hand:
            return None
        alike = [n for n in self._like(weights_digest=weights_digest) if n <= by_hand[-1].newest]
        return (self.version(alike[-1]), by_hand[-1]) if alike else None

    def find(self, model: str, evaluation: str) -> Version | None:
        """Return the registered version of this model with this evaluation, or None."""
        numbers = self._like(model=model, evaluation=evaluation)
        return self.version(numbers[0]) if numbers else None

    def made_of(self, keys: Set[str]) -> list[int]:
        """Return the numbers of the versions whose model or evaluation has one of these keys, lowest first."""
        with self._errors():
            records = self._versions.records()
        return sorted(self._number(n) for n, of in records.items() if keys & {of["model"], of["evaluation"]})

    def keep_index(self) -> None:
        """Save both indexes, so that the next process reads fewer versions and decisions. Call it while `deciding`."""
        self._versions.keep()
        self._decisions.keep()

    def register(self, **values: Any) -> Version:
        """Create the next version from the fields of `Version` other than dataset, number, time and format.

        If the same model with the same evaluation is already registered, return its version.
        """
        with self._errors():
            while True:
                # A version must not name a model that `gc` may have removed.
                self.store.check_in_use(self.dataset)
                number = max(self.numbers(), default=0) + 1
                # Search after listing: a listing made while others register may lack a version below its newest.
                existing = self.find(values["model"], values["evaluation"])
                if existing:
                    return existing
                time = datetime.now(UTC).isoformat(timespec="seconds")
                version = Version(dataset=self.dataset, number=number, time=time, format=FORMAT, **values)
                # Another run may have taken the number since; if so, try the next.
                if sealed.create(self._objects, self._path(number), to_json(version)):
                    return version

    @contextmanager
    def deciding(self, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Keep others from moving the champion while a decision is made and carried out.

        `on_wait` is called once if another process is deciding.
        """
        with ExitStack() as stack:
            with self._errors():
                stack.enter_context(self.store.alone(self.dataset, CHAMPION, on_wait))
            yield

    def carry_out(self, decision: Mapping[str, Any], run: str) -> None:
        """Record a decision, and move the pointer if the champion changes. Call it while `deciding`.

        The ledger is written first: if the process is killed between the two, the champion has not changed, and the
        history shows that. In the other order, a change would have no reason on record.

        Args:
            decision: a `Decision` as JSON values.
            run: the run's id; `NO_RUN` for a manual decision.

        Raises:
            StoreError: as for `promote`, or the ledger cannot be written.
        """
        self.store.check_in_use(self.dataset)
        changes = decision["champion"] != decision["previous"]
        if changes:
            self.check_kept(self.version(decision["champion"]))
        self.ledger.append("decisions", run, decision)
        if changes:
            self.promote(decision["champion"], run)

    def promote(self, number: int, run: str) -> None:
        """Make `number` the champion, which `carry_out` has recorded. Call it while `deciding`.

        Raises:
            StoreError: the version does not exist, its model was removed by `gc`, or the pointer cannot be written.
        """
        self.check_kept(self.version(number))
        time = datetime.now(UTC).isoformat(timespec="seconds")
        with self._errors():
            sealed.write(self._objects, self._pointer, {"version": number, "run": run, "time": time})

    def _while_standing(self, read: Callable[[], T]) -> tuple[int | None, T]:
        """Return the version that the pointer names, and the result of `read` while the pointer did not change.

        A decision is in the ledger before the pointer moves: if the pointer did not move, no decision is missing.
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
        with self._errors():
            records = self._versions.records()
        return sorted(self._number(name) for name, of in records.items() if values.items() <= of.items())

    def _pointed(self) -> int | None:
        try:
            number = self._read_pointer()["version"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(error) from error
        if type(number) is not int:
            raise self._unreadable(f"found {number!r}")
        with self._errors():
            if not self._exists(self._path(number)):
                raise DamagedEntry(
                    f"{self._objects.where(self._pointer)}: expected an existing version; found {number}; restore "
                    f"{self._objects.where(self._path(number))} from a backup, or write "
                    '{"version": NUMBER} of another one there'
                )
        return number

    def _read_pointer(self) -> dict[str, Any]:
        try:
            return sealed.read(self._objects, self._pointer)
        except ValueError:
            by_hand = self._objects.get(self._pointer, MAX_JSON_BYTES)
            # The text that `_unreadable` asks people to write.
            if re.fullmatch(rb'\s*\{\s*"version"\s*:\s*\d+\s*\}\s*', by_hand):
                return dict(json.loads(by_hand))
            raise

    def _unreadable(self, why: object) -> DamagedEntry:
        return DamagedEntry(
            f"{self._objects.where(self._pointer)}: expected the champion's version number; {why}; the newest decision "
            'in the ledger names it as "champion": write {"version": NUMBER} there'
        )

    def _path(self, number: int) -> str:
        return f"{self._folder}/versions/{number:08d}.json"

    def _retired(self, number: int) -> str:
        return f"{self._folder}/retired/{number:08d}.json"

    def _number(self, name: str) -> int:
        """Return the number of a version, from its name."""
        number = name.removesuffix(".json")
        if not (number.isascii() and number.isdecimal()):
            where = self._objects.where(f"{self._folder}/versions/{name}")
            raise DamagedEntry(f"{where}: expected the number of a version as the name; move it out of the registry")
        return int(number)

    def _read(self, number: int) -> Version:
        """Return a version.

        Raises:
            FileNotFoundError: there is none.
            DamagedEntry: it cannot be read.
        """
        key = self._path(number)
        try:
            return from_json(Version, sealed.read(self._objects, key))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DamagedEntry(
                f"{self._objects.where(key)}: expected a version manifest; {error}; restore it from a backup"
            ) from error

    def _exists(self, key: str) -> bool:
        try:
            self._objects.get(key, 1)
        except FileNotFoundError:
            return False
        return True

    def _errors(self) -> AbstractContextManager[None]:
        """Turn an `OSError` about the registry into a `StoreError` with a remedy."""
        return store_errors(self.store.root / self._folder)
