"""The space of a study: which training parameters are searched, and over which values.

A file of a space is TOML, with a table for each parameter:

    [learning_rate]
    low = 0.0001
    high = 0.3
    log = true

    [hidden]
    choices = [[50, 50], [100], [200, 100]]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.datasets.catalog import read_toml, shown
from storage.datasets.model_errors import checked
from storage.datasets.training import CHOICES, TrainingConfig, taken_by, without_effect
from storage.errors import ConfigError
from storage.words import meant

FIXED = ("model", "seed", "memory", "validation_fraction", "held_out", "normalize_on")
"""Parameters that no study searches: a user's own model, what decides which rows are held out, or only how a machine
trains."""
MOST_COMBINATIONS = 100_000
"""The most combinations of a grid."""
_KEYS = ("low", "high", "log", "step", "choices")

DEFAULT: Mapping[str, Mapping[str, Any]] = {
    "hidden": {"choices": [[50, 50], [100], [200], [100, 50], [200, 100], [100, 100, 100]]},
    "activation": {"choices": ["tanh", "relu", "elu", "gelu", "silu"]},
    "learning_rate": {"low": 0.001, "high": 0.3, "log": True},
    "momentum": {"low": 0.0, "high": 0.98},
    "decay": {"low": 1e-7, "high": 0.01, "log": True},
    "weight_decay": {"low": 1e-6, "high": 0.01, "log": True},
    "batch_size": {"choices": [16, 32, 64, 128, 256]},
    "dropout": {"low": 0.0, "high": 0.5},
    "optimizer": {"choices": ["sgd", "adam", "adamw", "rmsprop"]},
}
"""What is searched without `--space`: those of these that `TrainingConfig` has and nobody fixes."""


@dataclass(frozen=True)
class Values:
    """The values of one parameter: `choices`, or the numbers from `low` to `high`."""

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    """Whether their logarithms are evenly spread, instead of the numbers themselves."""
    step: float | None = None
    whole: bool = False
    """Whether they are whole numbers."""

    @property
    def texts(self) -> list[str]:
        """The choices as JSON, which stands for them where lists cannot."""
        return [json.dumps(choice) for choice in self.choices]

    def has(self, value: Any) -> bool:
        """Return whether this is one of the values."""
        if self.choices:
            return json.dumps(value) in self.texts
        if isinstance(value, str | list) or value is None or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def listed(self) -> list[Any]:
        """Return all values.

        Raises:
            ConfigError: there are infinitely many.
        """
        if self.choices:
            return [*self.choices]
        step = self.step or (1 if self.whole and not self.log else None)
        if step is None:
            raise ConfigError(
                f"expected `choices` or a `step` for {self.name}, because a grid has finitely many combinations; found "
                "a range without; add one to the file of --space, or choose another --sampler"
            )
        numbers = [self.low + step * number for number in range(int((self.high - self.low) / step + 1e-9) + 1)]
        return [round(number) if self.whole else number for number in numbers]

    def to_json(self) -> dict[str, Any]:
        """Return what a file of a space says of the parameter."""
        if self.choices:
            return {"choices": [*self.choices]}
        numbers = {"low": self.low, "high": self.high}
        return numbers | ({"log": True} if self.log else {}) | ({"step": self.step} if self.step else {})


Space = Mapping[str, Values]
"""By the name of the parameter."""


def default(fixed: Sequence[str]) -> Space:
    """Return the space without a file; it leaves out what is `fixed`."""
    searched = {
        name: values for name, values in DEFAULT.items() if name in TrainingConfig.model_fields and name not in fixed
    }
    return parsed(searched, "the default space", fixed)


def read(path: Path, fixed: Sequence[str]) -> Space:
    """Read a file of a space.

    Args:
        path: of the file.
        fixed: parameters that have one value, so that they cannot be searched.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong.
    """
    _, tables = read_toml(path, "the space of a study in TOML", "see the example in docs/how-to/tune.md")
    return parsed(tables, str(path), fixed)


def parsed(tables: Mapping[str, Any], where: str, fixed: Sequence[str] = ()) -> Space:
    """Return a space from its tables.

    Raises:
        ConfigError: something in them is wrong.
    """
    if not tables:
        raise ConfigError(f"{where}: expected a table for each parameter to search; found none; add one")
    return {name: _values(name, table, where, fixed) for name, table in tables.items()}


def check_effects(space: Space, usual: Mapping[str, Any], where: str) -> None:
    """Check that each parameter of a space has an effect in some trial.

    Args:
        usual: the optimizer and the schedule where the space does not choose them.
        where: the file of the space.

    Raises:
        ConfigError: one has none.
    """
    for name, choice in ((name, choice) for name in space for choice in CHOICES):
        takers, values = taken_by(choice, name), space.get(choice)
        tried = values.choices if values else (usual[choice],)
        if takers and not {*takers} & {*tried}:
            raise ConfigError(
                f"{where}: [{name}]: expected {choice} {' or '.join(takers)}, which takes it; found "
                f"{', '.join(map(str, tried))}; remove [{name}], or give another {choice}: "
                f"{'in' if values else '--set, or'} [{choice}]"
            )


def with_effect(values: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what the chosen optimizer or schedule does not take.

    Args:
        values: of parameters of a space.
        usual: the optimizer and the schedule where `values` do not choose them.
    """
    return {name: value for name, value in values.items() if not without_effect(name, {**usual, **values})}


def combinations(space: Space) -> list[dict[str, Any]]:
    """Return all combinations of the values of a space.

    Raises:
        ConfigError: there are too many of them, or infinitely many.
    """
    lists = {name: values.listed() for name, values in space.items()}
    count = math.prod(map(len, lists.values()))
    if count > MOST_COMBINATIONS:
        raise ConfigError(
            f"expected at most {MOST_COMBINATIONS:,} combinations of a grid; found {count:,}; give fewer values with "
            "--space, or choose another --sampler"
        )
    found: list[dict[str, Any]] = [{}]
    for name, values in lists.items():
        found = [{**one, name: value} for one in found for value in values]
    return found


def to_toml(space: Space) -> str:
    """Return a space as a file of it says it."""
    tables = []
    for name, values in space.items():
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.to_json().items()]
        tables.append("\n".join([f"[{name}]", *lines]))
    return "\n\n".join(tables) + "\n"


def _values(name: str, table: Any, where: str, fixed: Sequence[str]) -> Values:
    known = [field for field in TrainingConfig.model_fields if field not in FIXED]
    place = f"{where}: [{name}]"
    if name not in known:
        raise ConfigError(
            f"{place}: expected a training parameter that a study can search ({', '.join(known)}); found "
            f"{shown(name)}{meant(name, known)}; correct or remove it"
        )
    if name in fixed:
        raise ConfigError(f"{place}: expected a parameter that is not fixed; found --set {name}; leave one of them out")
    if not isinstance(table, Mapping) or not ({"choices"} <= {*table} or {"low", "high"} <= {*table}):
        raise ConfigError(f"{place}: expected `choices`, or `low` and `high`; found {shown(table)}; add them")
    unknown = next((key for key in table if key not in _KEYS or ("choices" in table and key != "choices")), None)
    if unknown:
        raise ConfigError(
            f"{place}: expected nothing beside {'`choices`' if 'choices' in table else ', '.join(_KEYS[:4])}; found "
            f"{shown(unknown)}; remove it"
        )
    return _choices(name, table["choices"], place) if "choices" in table else _range(name, table, place)


def _choices(name: str, choices: Any, place: str) -> Values:
    if not isinstance(choices, list) or not choices:
        raise ConfigError(f"{place}: expected a list of values as `choices`; found {shown(choices)}; give at least one")
    # As they are after pydantic has had them: 1 for a number with a fraction is 1.0.
    values = tuple(_checked(name, choice, place) for choice in choices)
    if len({json.dumps(value) for value in values}) < len(values):
        raise ConfigError(f"{place}: expected `choices` that differ; found {shown(choices)}; remove what is twice")
    return Values(name, values)


def _range(name: str, table: Mapping[str, Any], place: str) -> Values:
    low, high, log, step = (table.get(key) for key in ("low", "high", "log", "step"))
    for key, number in (("low", low), ("high", high), *((("step", step),) if step is not None else ())):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigError(f"{place}: expected a number as `{key}`; found {shown(number)}; correct it")
    if not isinstance(log, bool | None):
        raise ConfigError(f"{place}: expected true or false as `log`; found {shown(log)}; correct it")
    low, high = _checked(name, low, place), _checked(name, high, place)
    if isinstance(low, list | str | bool) or isinstance(high, list | str | bool):
        raise ConfigError(f"{place}: expected `choices`, because it is no number; found `low` and `high`; list them")
    if not low < high or (log and low <= 0) or (log and step) or (step is not None and step <= 0):
        raise ConfigError(
            f"{place}: expected `low` below `high`, above 0 with `log`, and either `log` or a `step` above 0; found "
            f"{shown(dict(table))}; correct it"
        )
    whole = isinstance(low, int)
    if step is not None:
        _check_step(step, high - low, whole, place)
    return Values(name, (), low, high, bool(log), step, whole)


def _check_step(step: float, span: float, whole: bool, place: str) -> None:
    # Also if it is not a number.
    if not span / MOST_COMBINATIONS <= step <= span or (whole and step != int(step)):
        raise ConfigError(
            f"{place}: expected a {'whole number' if whole else 'number'} as `step`, at most the {span:g} from `low` "
            f"to `high`, and with at most {MOST_COMBINATIONS:,} steps in it; found {shown(step)}; correct it"
        )


def _checked(name: str, value: Any, place: str) -> Any:
    """Return a value as the training gets it, in JSON's types."""
    # With a choice that takes it.
    choices = {choice: takers[0] for choice in CHOICES if (takers := taken_by(choice, name))}
    config = checked(TrainingConfig, {**choices, name: value}, f"{place}, training parameters")
    return config.model_dump(mode="json")[name]
