"""How counts, values and names are written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

_DIGEST = re.compile(r"[0-9a-f]{16,}")
_LONGEST = 100
"""Characters of a name that is compared with others: the time grows with the square."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun: `1 image`, `2,000 images`; with `plural` where that is more than an added s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def written(value: Any) -> str:
    """Return a setting as people write it: texts bare, nothing as `none`, all else as JSON."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def brief(value: Any, longest: int = 60) -> str:
    """Return a value as it stands in a line with others: numbers to 6 digits, and `shortened`."""
    return shortened(f"{value:.6g}" if isinstance(value, float) else written(value), longest)


def shortened(text: str, longest: int) -> str:
    """Return the first 12 digits of a digest, and at most `longest` characters of any other text."""
    if _DIGEST.fullmatch(text):
        return f"{text[:12]}…"
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def meant(given: object, known: Iterable[str], alike: float = 0.6) -> str:
    """Return ` (did you mean mnist?)`, to follow what was `given`, or nothing where no known name is like it.

    Args:
        given: what somebody typed; upper and lower case count as the same.
        alike: share of the letters that have to agree, from 0 to 1.
    """
    if not isinstance(given, str) or len(given) > _LONGEST:
        return ""
    names = {name.lower(): name for name in known if name != given}
    close = get_close_matches(given.lower(), names, n=1, cutoff=alike)
    return f" (did you mean {names[close[0]]}?)" if close else ""


def times(shape: tuple[int, ...]) -> str:
    """Return a shape as people write it, such as `60,000×28×28`."""
    return "×".join(f"{n:,}" for n in shape)
