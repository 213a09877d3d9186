"""The outcome of a run: the form that `--json` prints and the form that the ledger keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from storage.datasets.catalog import ROLES
from storage.records import SPLITS, Failure, Finding, Step, to_json

_ORDER = ("fetch", "decode", "audit", "validate", "normalize", "train", "evaluate", "confirm")
_SUBJECTS = ("", *ROLES, *SPLITS)


@dataclass(frozen=True)
class Outcome:
    """How a run ended. Results that it did not reach are None."""

    state: str
    """`promoted`, `kept`, `unchanged`, `refused`, `failed`, `valid`, `superseded` or one of `CUT_OFF`."""
    sentence: str
    dataset: str
    store: str
    run: str | None = None
    version: int | None = None
    """The candidate's."""
    champion: int | None = None
    """The champion's after the run."""
    train_accuracy: float | None = None
    """In [0, 1], of the candidate."""
    test_accuracy: float | None = None
    epochs: int | None = None
    steps: tuple[Step, ...] = ()
    seconds: float = 0.0
    report: str | None = None
    """Path of the HTML page."""
    error: Failure | None = None
    as_of: str | None = None
    """The day, ISO 8601, whose data it used; None: all."""
    study: str | None = None
    """The key of the study whose result it trained with; None unless its profile is `tuned`."""
    findings: tuple[Finding, ...] = ()
    """What was found in the training, the most important first."""

    @property
    def exit_code(self) -> int:
        return self.error.exit_code if self.error else 0

    def to_json(self) -> dict[str, Any]:
        """Return the outcome that `--json` prints (docs/reference/exit-codes.md), with the steps by name."""
        steps = {step.name: _of_step(step, ("seconds", "reused", "reason", "summary", "key")) for step in self.steps}
        return {**{name: to_json(getattr(self, name)) for name in _JSON}, "steps": steps}

    def for_ledger(self) -> dict[str, Any]:
        """Return the outcome that the ledger keeps: the same, but with the steps as a list, since names may repeat."""
        names = tuple(field.name for field in fields(Step))
        return {**self.to_json(), "steps": [_of_step(step, names) for step in self.steps]}


_JSON = (
    *("state", "sentence", "dataset", "run", "version", "champion", "train_accuracy", "test_accuracy", "epochs"),
    *("findings", "steps", "seconds", "store", "report", "error", "as_of", "study"),
)


def steps_of(record: Mapping[str, Any]) -> tuple[Step, ...]:
    """Return the steps of a run's ledger record, in order.

    Earlier versions stored them by name, such as `{"evaluate champion": {"key": …}}`, and unordered.

    Raises:
        AttributeError, TypeError, ValueError: the steps are in neither form.
    """
    steps = record.get("steps") or ()
    if isinstance(steps, Mapping):
        return tuple(sorted((_step({**_identity(name), **values}) for name, values in steps.items()), key=_place))
    return tuple(_step(values) for values in steps)


def _of_step(step: Step, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(step, name) for name in names} | {"seconds": round(step.seconds, 3)}


def _step(values: Mapping[str, Any]) -> Step:
    texts = {name: str(values.get(name) or "") for name in ("step", "key", "summary", "reason", "subject", "of")}
    return Step(**texts, seconds=float(values.get("seconds") or 0), reused=bool(values.get("reused")))


def _identity(name: str) -> dict[str, str]:
    """Return the fields of a step that its name contains."""
    step, _, rest = name.partition(" ")
    return {"step": step, "of": rest} if step == "evaluate" else {"step": step, "subject": rest}


def _place(step: Step) -> tuple[int, int, str]:
    position = _ORDER.index(step.step) if step.step in _ORDER and not step.of else len(_ORDER)
    return position, _SUBJECTS.index(step.subject) if step.subject in _SUBJECTS else len(_SUBJECTS), step.name
