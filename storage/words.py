"""How counts are written."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun: `1 image`, `2,000 images`; with `plural` where that is more than an added s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
