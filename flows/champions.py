"""Champions and versions of a data set as JSON values, from the registry and the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time
from typing import Any

from flows.dataset_in_store import DatasetInStore
from storage.differences import differences
from storage.errors import ConfigError, DamagedEntry
from storage.ledger import TOLERANCE
from storage.records import Evaluation, TrainedModel
from storage.registry import PastDecision, Version


@dataclass(frozen=True)
class Moment:
    """The champion at a time."""

    time: datetime
    """UTC; now, if a later time today was requested."""
    is_now: bool
    decision: PastDecision | None
    """The decision that made it the champion; None if there was no champion yet."""
    doubt: str | None
    """Why the answer is uncertain, if the clock was set back."""


def decision_values(data: DatasetInStore, turn: PastDecision) -> dict[str, Any]:
    """Return a decision as JSON values."""
    return {
        "time": turn.time.isoformat(timespec="milliseconds"),
        "outcome": turn.outcome,
        "version": turn.version,
        "before": turn.before,
        "after": turn.after if turn.took_effect else turn.before,
        "took_effect": turn.took_effect,
        "run": turn.run,
        "asked_by": turn.asked_by or _asked_by(data, turn.run),
        "reason": turn.reason,
        "sentence": turn.sentence,
        "rules": list(turn.rules),
    }


def version_values(data: DatasetInStore, version: Version) -> dict[str, Any]:
    """Return everything about a version as JSON values; read all of its files to detect damage."""
    champion = data.registry.champion()
    is_champion = champion is not None and champion.number == version.number
    last = next((turn for turn in reversed(data.registry.outline()) if turn.changed), None)
    return {
        "dataset": data.name,
        "version": version.number,
        "champion": is_champion,
        "champion_since": last.time.isoformat(timespec="milliseconds") if last and is_champion else None,
        "registered": version.time,
        "run": version.run,
        "asked_by": _asked_by(data, version.run),
        "test_accuracy": version.test_accuracy,
        "train_accuracy": version.train_accuracy,
        "classes": list(version.classes),
        "image_shape": list(version.image_shape),
        "model": version.model,
        "evaluation": version.evaluation,
        "weights_digest": version.weights_digest,
        "test_digest": version.test_digest,
        "worth": _worth(data, version) if is_champion else None,
        "collected": data.registry.retired(version),
        "damage": damage(data, version),
        "decisions": [decision_values(data, turn) for turn in data.registry.about(version.number)],
    }


def _worth(data: DatasetInStore, version: Version) -> dict[str, Any] | None:
    """Return what the test accuracy of a champion is worth; None if the ledger does not know the number of rows."""
    rows = (data.ledger.find("runs", version.run) or {}).get("test_rows")
    if not rows:
        return None
    # Importing it takes a hundredth of a second, and most commands do not need it.
    from tasks.gate import looks

    decisions = looks.count(data.registry.decisions(), version.test_digest)
    return asdict(looks.worth(round(version.test_accuracy * rows), rows, decisions))


def damage(data: DatasetInStore, version: Version) -> str | None:
    """Return what is wrong with a version's files, in a sentence; None if they are intact, or removed by `gc`."""
    if data.registry.retired(version):
        return None
    try:
        _verify(data, version)
    except DamagedEntry as error:
        return str(error)
    return None


def champion_at(data: DatasetInStore, text: str) -> Moment:
    """Return the champion at a time, given in a format of `parsed_moment`.

    Raises:
        ConfigError: the text is not a time.
    """
    moment, now = parsed_moment(text), datetime.now(UTC)
    # The rest of today is unknown. Later days are allowed, because a wrong clock may have recorded them.
    is_now = moment.date() == now.date() and moment > now
    moment = now if is_now else moment
    changes = [turn for turn in data.registry.outline() if turn.changed]
    last = next((turn for turn in reversed(changes) if turn.time <= moment), None)
    return Moment(moment, is_now, data.registry.whole(last) if last else None, _doubt(data, changes, last, moment))


def parsed_moment(text: str) -> datetime:
    """Parse ISO 8601 to a time in UTC; a date means the end of that day, a time without a zone is in UTC.

    Raises:
        ConfigError: the text is neither a date nor a time.
    """
    try:
        try:
            return datetime.combine(date.fromisoformat(text), time.max, UTC)
        except ValueError:
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"expected a date or a time such as 2026-05-01 or 2026-05-01T09:30+02:00; found {text[:40]!r}; "
            "use one of these forms"
        ) from error


def version_differences(data: DatasetInStore, a: Version, b: Version) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the differences between two versions: part (such as `code`) → name → values `a` and `b`."""
    changes: dict[str, dict[str, dict[str, Any]]] = {}
    for difference in differences(_origin(data, a), _origin(data, b)):
        changes.setdefault(difference.part, {})[difference.name] = {"a": difference.old, "b": difference.new}
    return changes


def _verify(data: DatasetInStore, version: Version) -> None:
    """Read every file of the version once.

    Raises:
        DamagedEntry: a file is missing or changed, or belongs to another version.
    """
    model = data.store.get(data.name, "train", version.model, TrainedModel)
    score = data.store.get(data.name, "evaluate", version.evaluation, Evaluation)
    for record in (model, score):
        if record.weights_digest != version.weights_digest:
            raise DamagedEntry(
                f"{record.entry.where()}: expected weights {version.weights_digest[:12]}…, as v{version.number} of "
                f"{data.name} has; found {record.weights_digest[:12]}…"
            )


def _asked_by(data: DatasetInStore, run: str) -> str | None:
    """Return who asked for a run; None if the ledger does not know."""
    return (data.ledger.find("runs", run) or {}).get("asked_by") or None


def _doubt(
    data: DatasetInStore, changes: Sequence[PastDecision], answer: PastDecision | None, moment: datetime
) -> str | None:
    """Return why the answer is uncertain, if a wrong clock affects which of the `changes` was the last by then.

    The answer is the last change with an earlier time. If all clocks were right, it directly precedes the first change
    with a later time. (A time in the future is certainly wrong.)
    """
    past = [turn for turn in changes if turn.time <= datetime.now(UTC) + TOLERANCE]
    after = next((n for n, turn in enumerate(past) if turn.time > moment), len(past))
    alternative = past[after - 1] if after else None
    if alternative == answer:
        return None
    names = " or ".join(version_name(turn.after if turn else None) for turn in (answer, alternative))
    return (
        f"the clock was set back between changes of the champion, so the answer is uncertain: {names}; the first of "
        f"these is shown; `{data.store.command(f'registry history {data.name}')}` shows the order, "
        f"`{data.store.command('verify')}` the wrong times"
    )


def version_name(number: int | None) -> str:
    """Return `v7`, or `none`."""
    return "none" if number is None else f"v{number}"


def _origin(data: DatasetInStore, version: Version) -> dict[str, dict[str, Any]]:
    """Return the inputs and results of a version, by part and name."""
    train = data.store.made_from(data.name, "train", version.model)
    score = data.store.made_from(data.name, "evaluate", version.evaluation)
    run = data.ledger.find("runs", version.run) or {}
    return {
        # The run's own configuration; the entry's if the run was killed before the ledger had it.
        "training": {"profile": run.get("profile"), **(run.get("config") or train["parameters"])},
        "data": {**train["inputs"], "test": version.test_digest},
        "code": _merged(train["code"], score["code"]),
        "libraries": _merged(train["libraries"], score["libraries"]),
        "model": {"weights": version.weights_digest, "classes": version.classes, "image size": version.image_shape},
        "accuracy": {"training": version.train_accuracy, "test": version.test_accuracy},
    }


def _merged(train: Mapping[str, Any], score: Mapping[str, Any]) -> dict[str, Any]:
    """Merge both; names whose values differ between training and scoring get the step appended."""
    apart = {name for name in train.keys() & score.keys() if train[name] != score[name]}
    return {
        f"{name} ({step})" if name in apart else name: value
        for step, values in (("training", train), ("scoring", score))
        for name, value in values.items()
    }
