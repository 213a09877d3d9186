"""The code and the libraries that compute an item, so that a worker of another version is refused before it does.

The key of a result is computed where the run is. If a worker with other code computed the result, it would be published
under a key that promises something else, and no check would ever find it.

What counts is the code that a process has loaded. Python reads a file when it is imported first, so a process that was
started before a file was edited runs what the file was then. `Loaded` notes what the files are when the process comes
to use them, and finds out if they change after that.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from storage.runtime import code_digests, timings
from storage.runtime.code_digests import ROOT
from storage.words import counted

PACKAGES = ("expectations", "storage", "tasks")
"""What workers may import; `flows` and the command line are not among it."""
LIBRARIES = {
    "numpy": "numpy",
    "pyarrow": "pyarrow",
    "isal": "isal",
    "pandas": "pandas",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "great_expectations": "great-expectations",
    "tensorflow": "tensorflow",
    "keras": "keras",
}
"""Libraries whose version can change a result, by the name of the module, with that of the distribution."""
_ALWAYS = frozenset({"numpy", "pyarrow"})
_ALSO = ("idxflow", "distributed")
"""What is not imported by the code that computes, but brings items to it."""
_IMPORT = re.compile(r"^\s*(?:from|import)\s+(\w+)", re.MULTILINE)
_CHANGED = "changed after the process had started"
_MOST_NAMED = 3
_TICK_SECONDS = 0.02
"""How exactly the start of a process is known."""


@dataclass(frozen=True)
class Fingerprint:
    """What a function's results depend on besides its arguments."""

    python: str
    """Such as `3.12`."""
    libraries: Mapping[str, str]
    """Version of each library that the function's code imports; `none` if it is not installed."""
    code: Mapping[str, str]
    """A digest of each module that decides the result, and of each of `storage`, by name."""

    @property
    def stale(self) -> tuple[str, ...]:
        """The modules whose files are no longer what the process has loaded."""
        return tuple(name for name, digest in sorted(self.code.items()) if digest == _CHANGED)

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits; equal for equal fingerprints."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


def differences(ours: Fingerprint, theirs: Fingerprint) -> str:
    """Return what a worker has and this process has not, in words, for a message; empty if there is no difference."""
    found = [f"Python {theirs.python} instead of {ours.python}"] if theirs.python != ours.python else []
    for name in sorted({*ours.libraries, *theirs.libraries}):
        here, there = (each.libraries.get(name, "none") for each in (ours, theirs))
        found += [f"{name} {there} instead of {here}"] if here != there else []
    names = sorted({*ours.code, *theirs.code})
    other = [name for name in names if ours.code.get(name) != theirs.code.get(name)]
    stale = [name for name in other if theirs.code.get(name) == _CHANGED]
    changed = [name for name in other if name not in stale]
    found += [f"another {named(changed)}"] if changed else []
    found += [f"{named(stale)} loaded before it was edited"] if stale else []
    return ", ".join(found)


def named(modules: Sequence[str]) -> str:
    """Return the names of the first modules, and how many there are besides."""
    more = f" and {counted(len(modules) - _MOST_NAMED, 'more module')}" if len(modules) > _MOST_NAMED else ""
    return ", ".join(modules[:_MOST_NAMED]) + more


class Loaded:
    """The code that this process has loaded, or will.

    Args:
        before: the modules that had been imported when this was made. Their files are only trusted if they are older
            than the process.
    """

    def __init__(self, before: Iterable[str] = ()) -> None:
        self._files: dict[str, Path] = {}
        self._contents: dict[str, str] = {}
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._before = frozenset(before)
        self._started = time.time() - timings.age() + _TICK_SECONDS
        self._stale = set[str]()
        for package in PACKAGES:
            self._note((ROOT / package).rglob("*.py"))
        self._known: dict[str, Fingerprint] = {}

    def fingerprint(self, module: str) -> Fingerprint:
        """Return the fingerprint of the functions of a module, which need not have been imported.

        A file that is no longer what this process has loaded has a digest that equals no other.
        """
        if module not in self._known:
            self._known[module] = self._made(module)
        known = self._known[module]
        stale = self._changed(known.code)
        if not stale:
            return known
        return Fingerprint(known.python, known.libraries, {**known.code, **dict.fromkeys(stale, _CHANGED)})

    def _note(self, files: Iterable[Path]) -> None:
        for name, file in ((_name(file), file) for file in files):
            if name not in self._files:
                self._files[name], self._stamps[name] = file, _stamp(file)
                if name in self._before and _since(file) > self._started:
                    self._stale.add(name)

    def _made(self, module: str) -> Fingerprint:
        self._note([_path(module)])
        self._changed(self._files)
        deciding = code_digests.digests(module)
        for name in (each for each in self._files if each.startswith("storage.") or each in deciding):
            self._contents.setdefault(name, _digest(self._files[name]))
        others = {name: content for name, content in self._contents.items() if name.startswith("storage.")}
        imported = {name for each in deciding for name in _IMPORT.findall(_source(each))}
        libraries = {LIBRARIES[name]: _version(LIBRARIES[name]) for name in LIBRARIES if name in imported | _ALWAYS}
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return Fingerprint(python, {**libraries, **{name: _version(name) for name in _ALSO}}, {**others, **deciding})

    def _changed(self, names: Iterable[str]) -> set[str]:
        """Return which of these modules' files have changed since this was made; what changed once stays changed."""
        for name in self._files.keys() & names:
            file = self._files[name]
            if name not in self._stale and _stamp(file) != self._stamps[name]:
                self._stamps[name] = _stamp(file)
                # What nobody has read yet cannot be compared.
                if _digest(file) != self._contents.get(name):
                    self._stale.add(name)
        return self._stale.intersection(names)


def _name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _path(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _source(module: str) -> str:
    return _path(module).read_text(encoding="utf-8")


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError:
        return "absent"


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _since(file: Path) -> float:
    """Return when a file got its contents or its name, in seconds since the epoch; no program can set that back."""
    return file.stat().st_ctime


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"
