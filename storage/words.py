"""Formatting of counts, values and names in messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

_DIGEST = re.compile(r"[0-9a-f]{16,}")
_LONGEST = 100
"""The most characters of a name to compare with others: the time grows with the square of the length."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun: `1 image`, `2,000 images`; give `plural` if it is irregular."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def written(value: Any) -> str:
    """Return a setting as people write it: strings without quotes, None as `none`, everything else as JSON."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def brief(value: Any, longest: int = 60) -> str:
    """Return a value in short form: numbers to 6 digits, and `shortened`."""
    return shortened(f"{value:.6g}" if isinstance(value, float) else written(value), longest)


def shortened(text: str, longest: int) -> str:
    """Return the first 12 digits of a digest, and at most `longest` characters of any other text."""
    if _DIGEST.fullmatch(text):
        return f"{text[:12]}…"
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def meant(value: object, known: Iterable[str], alike: float = 0.6) -> str:
    """Return ` (did you mean mnist?)`, to be placed after `value`, or an empty string if no known name is similar.

    Args:
        given: the text that a user typed; case is ignored.
        alike: share of letters that must match, from 0 to 1.
    """
    if not isinstance(value, str) or len(value) > _LONGEST:
        return ""
    names = {name.lower(): name for name in known if name != value}
    close = get_close_matches(value.lower(), names, n=1, cutoff=alike)
    return f" (did you mean {names[close[0]]}?)" if close else ""


def versions_to_give(numbers: Sequence[int]) -> str:
    """Return which of these versions to name instead, at least one, such as `give one of v1 to v7`."""
    return "give v1, the only one" if max(numbers) == 1 else f"give one of v1 to v{max(numbers)}"


def times(shape: tuple[int, ...]) -> str:
    """Return a shape as people write it, such as `60,000×28×28`."""
    return "×".join(f"{n:,}" for n in shape)
