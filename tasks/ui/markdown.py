"""Escape text for Markdown: Prefect's pages render more texts as Markdown than documented."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#|~$@!]|:(?=//))")
_SPECIAL_START = re.compile(r"^(\s*)([-+=])|^(\s*\d+)(\.)(?=\s|$)")


def escaped(text: str) -> str:
    """Return `text` on one line, escaped so that it contains no markup, HTML or links."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    text = _SPECIAL_START.sub(r"\1\3\\\2\4", _SPECIAL.sub(r"\\\1", text))
    return re.sub(r"(?i)(www)\.", r"\1\\.", text)
