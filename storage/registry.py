"""The registry: numbered model versions, and the champion among them.

    <dataset>/registry/versions/00000007.json   created only if absent, never changed
    <dataset>/registry/champion.json            a hint: the newest decision that is known, and its champion
    <dataset>/registry/versions.index           can be rebuilt from the versions at any time

A version names a model entry and an evaluation entry of the store by their keys. It is created after
both are complete, and decisions name only versions that exist, so the champion is always a complete version.

The champion is the one of the newest decision in the ledger. Decisions are numbered without a gap, and a decision is
made by creating the record with the next number, which only one process can: the other one is `Overtaken`, and has to
read the champion and to judge again. So a decision that is in the ledger has taken effect, and each names the champion
that it found (`previous`). `champion.json` is written afterwards, to spare others the listing of the ledger: whoever
reads it looks for the decisions after it. If it is missing, damaged or behind, only time is lost.

Other records in the same sequence say that the models of versions are removed (`retire`) or made again (`restore`).
They keep the champion, and no history shows them. A rollback to a version that is retired meanwhile is overtaken.

In stores of format 3 and earlier, `champion.json` was the authority, and `retired/00000003.json` marked a version whose
model may have been removed. A decision was recorded before `champion.json` was replaced, so it took effect only if the
next one found the champion that it names, or for the last one, if `champion.json` names it. That still holds for such
decisions, and `champion.json` counts until the first decision of a later format.

Versions and decisions have one index each (`storage.index`), so a search by content need not read every file.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import NoneType
from typing import Any, TypeVar

from storage import store_format
from storage.errors import DamagedEntry, StoreError
from storage.files import MAX_JSON_BYTES
from storage.index import Index
from storage.ledger import Ledger, Place, is_decision, place, place_in, run_of
from storage.objects import sealed
from storage.records import from_json, to_json
from storage.store import CHAMPION, Store, store_errors
from storage.store_format import FORMAT

T = TypeVar("T")

_OF_VERSIONS = ("model", "evaluation", "weights_digest")
_OF_DECISIONS = (
    *("outcome", "version", "versions", "previous", "champion", "run", "after", "time", "newest"),
    *("test_digest", "policy", "limits", "spent", "asked"),
)
_RETIRED, _RESTORED = "retired", "restored"
"""The outcomes of records in the sequence of decisions that are about models in the store, not about the champion."""

_log = logging.getLogger(__name__)


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
    """False if the process ended before it moved the pointer, which was possible up to format 3."""
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
    place: Place = (False, 0, 0, "")
    """Its place among all records of the ledger."""

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


class Overtaken(Exception):
    """Another process has decided first: read the champion again, and judge again. Never shown to people."""


@dataclass(frozen=True)
class Standing:
    """What counts after the newest decision."""

    number: int
    """Of that decision; 0 before the first."""
    champion: int | None
    """A version; None before the first promotion."""


def turns(decisions: Sequence[Mapping[str, Any]], champion: int | None = None) -> list[PastDecision]:
    """Return the ledger's `decisions`, oldest first, as turns.

    Args:
        decisions: with their names, if they have numbers of their own.
        champion: the version that the pointer names now, if the last of them does not have a number of its own.

    Raises:
        DamagedEntry: a decision has no time.
    """
    # Each decision recorded the champion it found, which shows whether the previous decision was carried out.
    met = [*(d.get("previous") for d in decisions[1:]), champion]
    return [_turn(d, _took_effect(d, then)) for d, then in zip(decisions, met, strict=bool(decisions))]


def _took_effect(decision: Mapping[str, Any], then: int | None) -> bool:
    """Return whether a decision took effect; `then` is the champion that was found after it."""
    return is_decision(decision.get("name") or "") or decision.get("champion") == then


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


def _is_about_models(decision: Mapping[str, Any]) -> bool:
    return decision.get("outcome") in (_RETIRED, _RESTORED)


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
        place=place_in(decision, str(decision.get("name") or "")),
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
        self.pointer = f"{self._folder}/champion.json"
        """The key of the hint."""
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
        return version in self.retired_of([version])

    def retired_of(self, versions: Iterable[Version]) -> list[Version]:
        """Return those of the versions whose model was removed by `gc`, or may be from now on, and not yet retrained.

        Raises:
            DamagedEntry: a decision that is not in the index cannot be read.
            StoreError: the registry or the ledger cannot be read.
        """
        with self._errors():
            numbers = self._retired()
            return [version for version in versions if version.number in numbers or self._is_marked(version)]

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

    def retire(self, numbers: Iterable[int], standing: Standing) -> None:
        """Record that the models of versions are no longer needed, before any is removed.

        The versions and their figures stay in the registry. Does nothing if all of them are retired already.

        Args:
            numbers: of the versions.
            standing: what counted when it was found that they are not needed.

        Raises:
            Overtaken: another process has decided since.
            StoreError: one of them is the champion, or the record cannot be written.
        """
        if standing.champion in {*numbers}:
            raise StoreError(
                f"{self.dataset}: expected versions that can be retired; version {standing.champion} is champion; "
                "run again"
            )
        with self._errors():
            new = {*numbers} - self._retired()
        if new:
            self._record({"outcome": _RETIRED, "versions": sorted(new)}, "gc", standing)

    def restore(self, version: Version, run: str) -> None:
        """Record that a run has made the model of a version again, if the version is retired.

        Raises:
            StoreError: the record cannot be written.
        """
        while True:
            standing = self.standing()
            with self._errors():
                if version.number not in self._retired():
                    return
            with suppress(Overtaken):
                self._record({"outcome": _RESTORED, "versions": [version.number]}, run, standing)
                return

    def standing(self) -> Standing:
        """Return the number of the newest decision and its champion.

        Takes two reads where the hint is up to date, and a listing of the ledger where there is none.

        Raises:
            DamagedEntry: the newest decision cannot be read; in a store of format 3, the pointer.
            StoreError: the registry or the ledger cannot be read.
        """
        with self._errors():
            standing = self._hint() or self._without_hint()
            while decision := self.ledger.decision(standing.number + 1):
                standing = Standing(standing.number + 1, decision.get("champion"))
        return standing

    def champion(self) -> Version | None:
        """Return the version in use, or None before the first promotion.

        Raises:
            DamagedEntry: the newest decision cannot be read, or the version it names does not exist.
        """
        standing = self.standing()
        if standing.champion is None:
            return None
        with self._errors():
            try:
                return self._read(standing.champion)
            except FileNotFoundError as error:
                promote = f"promote {self.dataset} NUMBER --force --reason …"
                raise DamagedEntry(
                    f"{self._objects.where(self.ledger.decision_key(standing.number))}: expected an existing version "
                    f"as champion; found {standing.champion}; restore "
                    f"{self._objects.where(self._path(standing.champion))} from a backup, or make another version the "
                    f"champion: `{self.store.command(promote)}`"
                ) from error

    def numbers(self) -> list[int]:
        """Return the numbers of all versions, lowest first.

        Raises:
            StoreError: they cannot be listed.
        """
        with self._errors():
            found = self._objects.list(f"{self._folder}/versions").objects
        return [self._number(version.name) for version in found if version.name.endswith(".json")]

    def decisions(self) -> list[dict[str, Any]]:
        """Return the indexed fields of every decision about the champion, oldest first, with its `name` in the ledger.

        The others are outcome, version, previous, champion, run, time, newest, test_digest, policy, limits, spent and
        asked, if known.

        Raises:
            DamagedEntry: a decision that is not in the index cannot be read.
        """
        with self._errors():
            return [decision for decision in self._indexed() if not _is_about_models(decision)]

    def outline(self) -> list[PastDecision]:
        """Return every decision from the index, oldest first: without sentence, reason, rules and `asked_by`.

        Needs no lock.

        Raises:
            DamagedEntry: a decision that is not in the index cannot be read; in a store of format 3, the pointer.
        """
        champion, decisions = self._with_pointer(self._indexed, lambda decision: str(decision["name"]))
        pairs = zip(decisions, turns(decisions, champion), strict=True)
        return [turn for decision, turn in pairs if not _is_about_models(decision)]

    def newest(self) -> Iterator[PastDecision]:
        """Yield every decision, newest first, reading each on demand. Needs no lock.

        Raises:
            DamagedEntry: a decision cannot be read; in a store of format 3, the pointer.
        """
        then, names = self._with_pointer(lambda: self.ledger.names("decisions"), str)
        for name in reversed(names):
            decision = self._named(name)
            if not _is_about_models(decision):
                yield _turn(decision, _took_effect(decision, then))
            then = decision.get("previous")

    def decision_of(self, run: str) -> dict[str, Any] | None:
        """Return the decision of a run, or None.

        Raises:
            DamagedEntry: it cannot be read, or one that is not in the index.
        """
        names = [decision["name"] for decision in self.decisions() if decision["run"] == run]
        return self._named(names[-1]) if names else None

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

    def weights(self) -> dict[int, str]:
        """Return the weights digest of each version, by its number, lowest first.

        Raises:
            DamagedEntry: a version that is not in the index cannot be read.
            StoreError: they cannot be listed.
        """
        with self._errors():
            records = self._versions.records()
        return dict(sorted((self._number(name), str(of["weights_digest"])) for name, of in records.items()))

    def keep_index(self) -> None:
        """Save both indexes, so that the next process reads fewer versions and decisions. Call it while `deciding`."""
        self._versions.keep()
        self._decisions.keep()

    def register(self, **values: Any) -> Version:
        """Create the next version from the fields of `Version` other than dataset, number, time and format.

        If the same model with the same evaluation is already registered, return its version, which is not retired then.
        """
        with self._errors():
            while True:
                number = max(self.numbers(), default=0) + 1
                # Search after listing: a listing made while others register may lack a version below its newest.
                existing = self.find(values["model"], values["evaluation"])
                # A version must not name a model that `gc` may have removed.
                self.store.check_in_use(self.dataset)
                if existing:
                    self.restore(existing, values["run"])
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

    def carry_out(self, decision: Mapping[str, Any], run: str, after: int) -> None:
        """Record a decision, which makes it count.

        Args:
            decision: a `Decision` as JSON values.
            run: the run's id; `NO_RUN` for a manual decision.
            after: the number of the newest decision when the champion was read that this one was judged against.

        Raises:
            Overtaken: another process has decided since; nothing was changed.
            StoreError: the new champion does not exist, its model was removed by `gc`, or the ledger cannot be written.
        """
        self.store.check_in_use(self.dataset)
        if decision["champion"] != decision["previous"]:
            self.check_kept(self.version(decision["champion"]))
        self._create(decision, run, after)

    def _record(self, values: Mapping[str, Any], run: str, standing: Standing) -> None:
        """Record what does not change the champion."""
        same = {"previous": standing.champion, "champion": standing.champion}
        self._create({**values, **same}, run, standing.number)

    def _create(self, decision: Mapping[str, Any], run: str, after: int) -> None:
        with self._errors():
            # Earlier versions of idxflow must not use a store in which they would take the hint for the authority.
            store_format.mark(self._objects)
            newest = self._newest_number()
            if newest < after:
                where, hint = self._objects.where(self.ledger.decision_key(after)), self._objects.where(self.pointer)
                raise DamagedEntry(
                    f"{hint}: expected an existing decision; found the number {after}, and {newest} is the newest; "
                    f"restore {where} from a backup, or remove this file to go on from decision {newest}"
                )
            if newest > after or not self.ledger.decide(after + 1, run, decision):
                raise Overtaken
            # The decision counts already.
            with suppress(OSError, StoreError):
                hint_values = {"decision": after + 1, "version": decision["champion"]}
                sealed.write(self._objects, self.pointer, hint_values)

    def _newest_number(self) -> int:
        return max((place(name)[1] for name in self.ledger.names("decisions")), default=0)

    def _hint(self) -> Standing | None:
        """Return what the hint says; None if there is none that can be used."""
        try:
            values = sealed.read(self._objects, self.pointer)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.debug("%s: %s; the ledger is listed instead", self._objects.where(self.pointer), error)
            return None
        number, champion = values.get("decision"), values.get("version")
        return Standing(number, champion) if type(number) is int and type(champion) in (int, NoneType) else None

    def _without_hint(self) -> Standing:
        number, names = self._newest_number(), self.ledger.names("decisions")
        if names and is_decision(names[-1]):
            return Standing(number, self._named(names[-1]).get("champion"))
        return Standing(number, self._pointed())

    def _with_pointer(
        self, read: Callable[[], Sequence[T]], name_of: Callable[[T], str]
    ) -> tuple[int | None, Sequence[T]]:
        """Return the decisions, oldest first, and the version that the pointer names, if only that tells of the last.

        A decision of format 3 is in the ledger before the pointer moves: if the pointer did not move while they were
        read, no decision is missing.
        """
        with self._errors():
            decisions = read()
            if not decisions or is_decision(name_of(decisions[-1])):
                return None, decisions
            while True:
                champion = self._pointed()
                decisions = read()
                if self._pointed() == champion:
                    return champion, decisions

    def _indexed(self) -> list[dict[str, Any]]:
        """Return the indexed fields of all records in the sequence of decisions, with run and name, oldest first."""
        records = self._decisions.records()
        return [{"run": run_of(name), **records[name], "name": name} for name in sorted(records, key=place)]

    def _retired(self) -> set[int]:
        """Return the numbers of the versions that the ledger says are retired."""
        numbers: set[int] = set()
        for decision in self._indexed():
            if decision.get("outcome") == _RETIRED:
                numbers |= {*decision["versions"]}
            elif decision.get("outcome") == _RESTORED:
                numbers -= {*decision["versions"]}
        return numbers

    def _is_marked(self, version: Version) -> bool:
        """Return whether a version was retired in format 3 and is not complete."""
        entries = (("train", version.model), ("evaluate", version.evaluation))
        is_marked = self._exists(f"{self._folder}/retired/{version.number:08d}.json")
        return is_marked and not all(self.store.has(self.dataset, step, key) for step, key in entries)

    def _named(self, name: str) -> dict[str, Any]:
        return {**self.ledger.record("decisions", name), "name": name}

    def _like(self, **values: str) -> list[int]:
        """Return the numbers of the versions that have these values, lowest first."""
        with self._errors():
            records = self._versions.records()
        return sorted(self._number(name) for name, of in records.items() if values.items() <= of.items())

    def _pointed(self) -> int | None:
        """Return the champion of a store of format 3, which the pointer names."""
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
                    f"{self._objects.where(self.pointer)}: expected an existing version; found {number}; restore "
                    f"{self._objects.where(self._path(number))} from a backup, or write "
                    '{"version": NUMBER} of another one there'
                )
        return number

    def _read_pointer(self) -> dict[str, Any]:
        try:
            return sealed.read(self._objects, self.pointer)
        except ValueError:
            by_hand = self._objects.get(self.pointer, MAX_JSON_BYTES)
            # The text that `_unreadable` asks people to write.
            if re.fullmatch(rb'\s*\{\s*"version"\s*:\s*\d+\s*\}\s*', by_hand):
                return dict(json.loads(by_hand))
            raise

    def _unreadable(self, why: object) -> DamagedEntry:
        return DamagedEntry(
            f"{self._objects.where(self.pointer)}: expected the champion's version number; {why}; the newest decision "
            'in the ledger names it as "champion": write {"version": NUMBER} there'
        )

    def _path(self, number: int) -> str:
        return f"{self._folder}/versions/{number:08d}.json"

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
