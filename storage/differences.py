"""Differences between two results: why a step ran, what changed since the champion, how two runs or versions differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """One value that differs between the two."""

    part: str
    """Such as `parameters` or `code`."""
    name: str
    old: Any
    """None if the name is missing."""
    new: Any


def differences(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> list[Difference]:
    """Return the differences in the order of the parts of `old`, then by name; both must have the same parts."""
    return [
        Difference(part, name, values.get(name), new[part].get(name))
        for part, values in old.items()
        for name in sorted(values.keys() | new[part].keys())
        if values.get(name) != new[part].get(name)
    ]


def flat(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the parts with the values inside of mappings by themselves, such as `config.epochs`."""
    return {
        part: {
            **{name: value for name, value in values.items() if not isinstance(value, Mapping)},
            **{
                f"{name}.{inner}": each
                for name, value in values.items()
                if isinstance(value, Mapping)
                for inner, each in value.items()
            },
        }
        for part, values in parts.items()
    }
