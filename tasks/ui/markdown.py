"""Texts that Markdown takes literally. Prefect's pages take more for Markdown than they say."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#|~$@!]|:(?=//))")
_SPECIAL_START = re.compile(r"^(\s*)([-+=])|^(\s*\d+)(\.)(?=\s|$)")


def escaped(text: str) -> str:
    """Return `text` so that it is neither markup nor HTML nor a link, on one line."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    text = _SPECIAL_START.sub(r"\1\3\\\2\4", _SPECIAL.sub(r"\\\1", text))
    return re.sub(r"(?i)(www)\.", r"\1\\.", text)
