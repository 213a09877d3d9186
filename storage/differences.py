"""What differs between two results: why a step ran, what changed since the champion, two runs or versions compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """One value that is not the same in both."""

    part: str
    """Such as `parameters` or `code`."""
    name: str
    old: Any
    """None where there is none of this name."""
    new: Any


def differences(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> list[Difference]:
    """Return what differs, by the parts of `old` in their order, and by name within one; both have the same parts."""
    return [
        Difference(part, name, values.get(name), new[part].get(name))
        for part, values in old.items()
        for name in sorted(values.keys() | new[part].keys())
        if values.get(name) != new[part].get(name)
    ]
