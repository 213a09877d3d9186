"""Import a library without the others that it could use, but does not need."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType


@contextmanager
def without(*libraries: str) -> Iterator[None]:
    """Make imports of `libraries` fail in this thread while the block runs, as if they were not installed.

    Those that are imported already stay importable.
    """
    hidden = _Hidden(frozenset(libraries) - sys.modules.keys())
    sys.meta_path.insert(0, hidden)
    try:
        yield
    finally:
        sys.meta_path.remove(hidden)


class _Hidden:
    """A finder (PEP 451) that is asked before all others."""

    def __init__(self, libraries: frozenset[str]) -> None:
        self._libraries, self._thread = libraries, threading.get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self._libraries and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None
