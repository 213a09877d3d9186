"""Where the product refuses, and which of these places a test has been through: here, and in the commands it calls.

A test marked `@pytest.mark.remedies("flows.watcher:_inbox", "flows.watcher:_inbox:2")` meets the refusals
of these places, does what their messages advise, and shows that the next command gets further. It fails where one of
them was not met.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from storage import errors
from storage.errors import IdxflowError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "tasks", "expectations", "storage")
NOTES = "IDXFLOW_TESTS_REFUSALS"
"""The file that notes go into: for each error, the place where it was made."""
_KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, IdxflowError)}


@dataclass(frozen=True)
class Refusal:
    """A place in the code where an error of the project is made, or a finding of `idxflow doctor` with advice."""

    file: Path
    name: str
    """`module:function`, for the second one of a function `module:function:2`."""
    lines: range


def refusals() -> tuple[Refusal, ...]:
    """Return all places, by module and line."""
    files = (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))
    return tuple(refusal for file in files for refusal in _of_file(file))


@cache
def _of_file(file: Path) -> tuple[Refusal, ...]:
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return tuple(_numbered(_refusals(file, module, ast.parse(file.read_text(encoding="utf-8")), "")))


def _refusals(file: Path, module: str, node: ast.AST, function: str) -> Iterator[Refusal]:
    for child in ast.iter_child_nodes(node):
        inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(child, ast.Call) and _advises(child, module):
            yield Refusal(file, f"{module}:{inner}", range(child.lineno, (child.end_lineno or child.lineno) + 1))
        yield from _refusals(file, module, child, inner)


def _advises(call: ast.Call, module: str) -> bool:
    """Whether it makes an error, or a finding of `idxflow doctor` that is not that all is well."""
    if not (isinstance(call.func, ast.Name) and call.args):
        return False
    verdict = call.args[0].value if isinstance(call.args[0], ast.Constant) else None
    return call.func.id in _KINDS or (module == "flows.diagnosis" and call.func.id == "Diagnosis" and verdict != "ok")


def _numbered(places: Iterator[Refusal]) -> Iterator[Refusal]:
    seen: dict[str, int] = {}
    for refusal in places:
        number = seen[refusal.name] = seen.get(refusal.name, 0) + 1
        yield Refusal(refusal.file, f"{refusal.name}:{number}", refusal.lines) if number > 1 else refusal


def marked() -> Iterator[str]:
    """Yield the places that the marks of all tests name."""
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        text = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "mark.remedies" in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.remedies":
                yield from (ast.literal_eval(argument) for argument in node.args)


@contextmanager
def noting(notes: Path, raised: list[IdxflowError] | None = None) -> Iterator[None]:
    """Note each error that is made in the block, here and in called commands; append those made here to `raised`."""
    from flows.diagnosis import Diagnosis

    notes.touch()
    initialise = Diagnosis.__init__
    os.environ[NOTES] = str(notes)
    note_if_asked(raised)

    def find(finding: Diagnosis, *arguments: Any) -> None:
        _note(sys._getframe(1))
        initialise(finding, *arguments)

    Diagnosis.__init__ = find  # type: ignore[method-assign]
    try:
        yield
    finally:
        Diagnosis.__init__ = initialise  # type: ignore[method-assign]
        del IdxflowError.__init__
        del os.environ[NOTES]


def note_if_asked(raised: list[IdxflowError] | None = None) -> None:
    """Have this process note each error that it makes, if the environment names a file for that."""
    if NOTES not in os.environ:
        return

    def note(error: IdxflowError, *arguments: Any) -> None:
        frame = sys._getframe(1)
        while frame.f_locals.get("self") is error and frame.f_back:
            frame = frame.f_back
        _note(frame)
        if raised is not None:
            raised.append(error)
        Exception.__init__(error, *arguments)

    IdxflowError.__init__ = note  # type: ignore[method-assign]


def _note(frame: FrameType) -> None:
    with Path(os.environ[NOTES]).open("a", encoding="utf-8") as stream:
        stream.write(f"{frame.f_code.co_filename}:{frame.f_lineno}\n")


def environment() -> dict[str, str]:
    """Return what has a command note its errors, where this process does."""
    return {name: os.environ[name] for name in (NOTES,) if name in os.environ}


def python_environment() -> dict[str, str]:
    """Return the same for the installed command, and for what it starts: PYTHONPATH has `noting` imported first."""
    return {**environment(), "PYTHONPATH": str(ROOT / "tests" / "support" / "noting")} if NOTES in os.environ else {}


def met(notes: Path) -> set[str]:
    """Return the places of which there are notes."""
    lines: dict[Path, set[int]] = {}
    for line in notes.read_text(encoding="utf-8").splitlines():
        file, number = line.rsplit(":", 1)
        lines.setdefault(Path(file), set()).add(int(number))
    # Only of files with notes: to read all takes each process of tests more than a second.
    files = (file for file in lines if any(file.is_relative_to(ROOT / package) for package in PACKAGES))
    return {
        refusal.name for file in files for refusal in _of_file(file) if any(n in lines[file] for n in refusal.lines)
    }
