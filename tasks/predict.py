"""Deprecated alias of `tasks.serving.predict`, kept for one release."""

from __future__ import annotations

import warnings

from tasks.serving.predict import Model, load_champion

__all__ = ["Model", "load_champion"]

warnings.warn(
    "tasks.predict has moved: import load_champion from tasks.serving.predict; the next release removes this module",
    DeprecationWarning,
    stacklevel=2,
)
