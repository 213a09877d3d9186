"""Make the values of a run safe to show to anyone, in any text: no local folders, no control characters."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from storage.records import from_json, to_json

MAX_TEXT = 1000
"""Maximum characters shown of a single text."""

_PATH = re.compile(r"(?:[~…]|(?<=file://)|(?<![\w:/.>]))/(?:[^\s/:;,'\"<>|]+/)+")
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def shareable(record: Any, roots: Mapping[str, str]) -> Any:
    """Return a copy of a record that is safe to show to anyone and to put into any text.

    Each folder of `roots` becomes its short name, any other folder of the machine `…/`; control characters and lone
    surrogates are replaced, long texts are cut, non-finite numbers become None. Store folders are left out.
    """
    return from_json(type(record), shareable_values(to_json(record), roots))


def shareable_values(value: Any, roots: Mapping[str, str]) -> Any:
    """Do for JSON values what `shareable` does for a record."""
    if isinstance(value, str):
        return presentable(_without_folders(value, roots))
    if isinstance(value, Mapping):
        return {presentable(name): shareable_values(inner, roots) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shareable_values(inner, roots) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def presentable(text: str) -> str:
    """Replace characters that UTF-8 cannot encode or that would disturb the surrounding text; cut at `MAX_TEXT`."""
    shortened = (text[:MAX_TEXT] + "…") if len(text) > MAX_TEXT else text
    # Nearly all are, and looking at each character takes a tenth of a report's time.
    return shortened if shortened.isprintable() else "".join(_shown(character) for character in shortened)


def _shown(character: str) -> str:
    if character in "\n\t":
        return " "
    hidden = character in _BIDI or unicodedata.category(character) in ("Cc", "Cs")
    return "\ufffd" if hidden else character


def _without_folders(text: str, roots: Mapping[str, str]) -> str:
    for folder, name in roots.items():
        text = text.replace(folder, name) if len(folder) > 1 else text
    return _PATH.sub("…/", text)
